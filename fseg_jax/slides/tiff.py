"""TIFF and OME-TIFF slides, read by tifffile: only the tiles or strips that a box touches are decoded.

When a file is opened, the sizes that it declares are checked against what it holds. A tile that was never
written (its byte count is 0) is white; a tile that is listed but lies past the end of the file is an error.
"""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
from jaxtyping import UInt8
from PIL import Image

from fseg_jax.errors import InputError, first_line
from fseg_jax.files.extent import check_directories
from fseg_jax.slides.pixels import flatten, is_plausible
from fseg_jax.slides.tiff_tiles import TiffTiles

_CACHE = 256 << 20  # bytes of decoded tiles: a row of wide strips fits
# Compressions and photometric interpretations by their numbers in TIFF.
_YCBCR_TO_RGB = (6, 7, 33003, 33004, 33005, 33007, 34712, 34892, 50001)  # decoded to RGB by their codecs
_RGB, _YCBCR, _MIN_IS_BLACK = 2, 6, 1
_UNIT_UM = {
    "m": 1e6,
    "cm": 1e4,
    "mm": 1e3,
    "µm": 1.0,
    "μm": 1.0,
    "um": 1.0,
    "nm": 1e-3,
    "Å": 1e-4,
    "in": 25400.0,
}


class TiffPixels:
    """An 8-bit RGB TIFF: tiled or in strips, plain or OME, flat or a pyramid."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._tiff = tifffile.TiffFile(path)
        except Exception as error:
            raise InputError(f"{path}: not a readable TIFF, or truncated: {first_line(error)}") from None
        try:
            self._open()
        except InputError:
            self._tiff.close()
            raise
        except Exception as error:
            self._tiff.close()
            raise InputError(f"{path}: the TIFF is damaged or truncated: {first_line(error)}") from None

    def _open(self) -> None:
        check_directories(self._path, self._tiff)
        images = [series for series in self._tiff.series if {"Y", "X"} <= set(series.axes)]
        if not images:
            raise InputError(f"{self._path}: the TIFF has no image")
        # Sides are found by ``axes``: the keys of ``sizes`` differ between tifffile's versions.
        series = max(images, key=lambda s: s.shape[s.axes.index("Y")] * s.shape[s.axes.index("X")])
        self._levels = [_Level(self._path, level) for level in series.levels]
        for level in self._levels:
            level.check_extent()
        first = self._levels[0].shape
        # Some files list a label or macro picture as a level: it does not have the slide's aspect ratio.
        self._levels = [
            level
            for level in self._levels
            if abs(level.shape[0] * first[1] - level.shape[1] * first[0]) <= 2 * sum(first)
        ]
        self._levels.sort(key=lambda level: -level.shape[0])
        self.shapes = [level.shape for level in self._levels]
        if self._tiff.is_ome:
            self.format = "ome-tiff"
            self.mpp = _parse_ome_mpp(self._tiff.ome_metadata or "", images.index(series), len(images))
        else:
            self.format = "tiff"
            self.mpp = None
        self.mpp = self.mpp or _parse_tag_mpp(self._levels[0].keyframe.tags)
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._cached_bytes = 0

    def read(
        self, level: int, y: int, x: int, height: int, width: int
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Decode a box of a level; transparent pixels become white."""
        source = self._levels[level]
        if source.mapped is not None:
            out = np.array(source.mapped[y : y + height, x : x + width], order="C")
        else:
            out = np.empty((height, width, source.samples), np.uint8)
            tile_height, tile_width = source.tile
            for row in range(y // tile_height, (y + height - 1) // tile_height + 1):
                for column in range(x // tile_width, (x + width - 1) // tile_width + 1):
                    top, left = row * tile_height, column * tile_width
                    y0, y1 = max(y, top), min(y + height, top + tile_height)
                    x0, x1 = max(x, left), min(x + width, left + tile_width)
                    tile = self._read_tile(level, row, column)
                    out[y0 - y : y1 - y, x0 - x : x1 - x] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
        return flatten(Image.fromarray(out)) if source.samples == 4 else out

    def _read_tile(
        self, level: int, row: int, column: int
    ) -> UInt8[np.ndarray, "tile_height tile_width samples"]:
        """Read one tile, from the cache if it is there."""
        source = self._levels[level]
        key = (level, row * source.columns + column)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        tile = source.decode(row, column, self._lock)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = tile
                self._cached_bytes += tile.nbytes
            while self._cached_bytes > _CACHE and len(self._cache) > 1:
                self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return tile

    def close(self) -> None:
        """Release the file and the cache."""
        self._cache.clear()
        self._tiff.close()


class _Level(TiffTiles):
    """One pyramid level: a page with three or four samples, or a page for each of three or four channels."""

    def __init__(self, path: Path, series: Any) -> None:
        keyframe = series.keyframe
        pages = list(series.pages)
        others = {
            axis: n for axis, n in zip(series.axes, series.shape, strict=True) if axis not in "YXSC" and n > 1
        }
        samples = keyframe.samplesperpixel * len(pages)
        if others:
            raise InputError(f"{path}: has several planes ({others}); give a file with one plane")
        one_page = len(pages) == 1 and keyframe.samplesperpixel in (3, 4)
        per_channel = len(pages) in (3, 4) and keyframe.samplesperpixel == 1
        is_rgb = (
            keyframe.photometric == _RGB
            or (keyframe.photometric == _YCBCR and keyframe.compression in _YCBCR_TO_RGB)
            or (keyframe.photometric == _MIN_IS_BLACK and "C" in series.axes)  # a page for each channel
        )
        if keyframe.dtype != np.uint8 or not (one_page or per_channel) or not is_rgb:
            raise InputError(
                f"{path}: 8-bit RGB is required, and the TIFF is {keyframe.dtype} with {samples} channel(s), "
                f"{tifffile.PHOTOMETRIC(keyframe.photometric).name.lower()}; convert it to 8-bit RGB"
            )
        if any(page is None for page in pages):
            raise InputError(f"{path}: the TIFF lacks some of its planes")
        super().__init__(path, pages, blank=255)


def _parse_tag_mpp(tags: Any) -> tuple[float, float] | None:
    """Parse the µm per pixel along y and x of the resolution tags; return None where they are implausible."""
    um = {2: 25400.0, 3: 10000.0}.get(int(tags.valueof("ResolutionUnit", 1)))
    values = []
    for name in ("YResolution", "XResolution"):
        numerator, denominator = tags.valueof(name, (0, 1))
        if not (um and numerator and denominator):
            return None
        values.append(um * denominator / numerator)
    # A picture's 72 or 96 dots per inch, which say how it is printed, are implausible.
    return (values[0], values[1]) if all(map(is_plausible, values)) else None


def _parse_ome_mpp(xml: str, index: int, count: int) -> tuple[float, float] | None:
    """Parse an OME header's PhysicalSizeY and PhysicalSizeX, in µm; return None where they are missing.

    Args:
        xml: The header.
        index: Number of the image whose size it is.
        count: Number of images in the file.
    """
    try:
        elements = ElementTree.fromstring(xml).iter()
        pixels = [element for element in elements if element.tag.rpartition("}")[2] == "Pixels"]
    except ElementTree.ParseError:
        return None
    if not pixels:
        return None
    attributes = pixels[index if len(pixels) == count else 0].attrib
    values = []
    for axis in "YX":
        unit = _UNIT_UM.get(attributes.get(f"PhysicalSize{axis}Unit", "µm"))
        try:
            value = float(attributes[f"PhysicalSize{axis}"])
        except (KeyError, ValueError):
            return None
        if unit is None:
            return None
        values.append(value * unit)
    return values[0], values[1]
