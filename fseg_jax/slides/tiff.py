"""TIFF and OME-TIFF through tifffile: only the tiles or strips that a box touches are decoded."""

import logging
import struct
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
from PIL import Image

from fseg_jax.errors import InputError
from fseg_jax.slides.formats import flatten, is_plausible, one_line

# Its remarks are of no use to someone with a slide; what matters becomes an InputError.
logging.getLogger("tifffile").propagate = False
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_CACHE = 256 << 20  # bytes of decoded tiles: a row of wide strips fits
_SEGMENT_LIMIT = 256 << 20  # bytes of one decoded tile or strip
_JPEG = (6, 7, 33007, 34892)
_SELF_COLOURED = (
    6,
    7,
    33003,
    33004,
    33005,
    33007,
    34712,
    34892,
    50001,
)  # codecs that give RGB whatever is stored
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
    """A tiled or striped, plain or OME, flat or pyramidal 8-bit RGB TIFF."""

    def __init__(self, path: Path):
        self._path = path
        try:
            self._tiff = tifffile.TiffFile(path)
        except Exception as error:
            raise InputError(f"{path}: not a readable TIFF, or truncated: {one_line(error)}") from None
        try:
            self._open()
        except InputError:
            self._tiff.close()
            raise
        except Exception as error:
            self._tiff.close()
            raise InputError(f"{path}: the TIFF is damaged or truncated: {one_line(error)}") from None

    def _open(self) -> None:
        size = self._tiff.filehandle.size
        if _next_directory(self._tiff) >= size:
            raise InputError(
                f"{self._path}: the TIFF is truncated (a directory lies past the end of the file)"
            )
        images = [series for series in self._tiff.series if {"Y", "X"} <= set(series.axes)]
        if not images:
            raise InputError(f"{self._path}: the TIFF has no image")
        # By axes: what ``sizes`` calls them changed with tifffile's versions.
        series = max(images, key=lambda s: s.shape[s.axes.index("Y")] * s.shape[s.axes.index("X")])
        self._levels = [_Level(self._path, level) for level in series.levels]
        for level in self._levels:
            level.check_extent(size)
        first = self._levels[0].shape
        # A label or macro picture is sometimes filed as a level: a level has the slide's aspect ratio.
        self._levels = [
            level
            for level in self._levels
            if abs(level.shape[0] * first[1] - level.shape[1] * first[0]) <= 2 * sum(first)
        ]
        self._levels.sort(key=lambda level: -level.shape[0])
        self.shapes = [level.shape for level in self._levels]
        if self._tiff.is_ome:
            self.format = "ome-tiff"
            self.mpp = _ome_mpp(self._tiff.ome_metadata or "", images.index(series), len(images))
        else:
            self.format = "tiff"
            self.mpp = None
        self.mpp = self.mpp or _tag_mpp(self._levels[0].keyframe.tags)
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._cached = 0

    def read(self, level: int, y: int, x: int, height: int, width: int) -> np.ndarray:
        source = self._levels[level]
        if source.mapped is not None:
            out = np.array(source.mapped[y : y + height, x : x + width], order="C")
        else:
            out = np.empty((height, width, source.samples), np.uint8)
            th, tw = source.tile
            for row in range(y // th, (y + height - 1) // th + 1):
                for column in range(x // tw, (x + width - 1) // tw + 1):
                    top, left = row * th, column * tw
                    y0, y1 = max(y, top), min(y + height, top + th)
                    x0, x1 = max(x, left), min(x + width, left + tw)
                    tile = self._tile(level, row, column)
                    out[y0 - y : y1 - y, x0 - x : x1 - x] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
        return flatten(Image.fromarray(out)) if source.samples == 4 else out

    def _tile(self, level: int, row: int, column: int) -> np.ndarray:
        """One decoded tile (height, width, samples), from the cache where it is there."""
        source = self._levels[level]
        key = (level, row * source.columns + column)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        parts = []
        for page, index in source.segments(row, column):
            count = page.databytecounts[index]
            data = None
            if count:
                with self._lock:
                    page.parent.filehandle.seek(page.dataoffsets[index])
                    data = page.parent.filehandle.read(count)
                if len(data) < count:
                    raise OSError("the file ends before its pixels do")
            parts.append(source.decode(page, index, data))
        tile = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = tile
                self._cached += tile.nbytes
            while self._cached > _CACHE and len(self._cache) > 1:
                self._cached -= self._cache.popitem(last=False)[1].nbytes
        return tile

    def close(self) -> None:
        self._cache.clear()
        self._tiff.close()


class _Level:
    """One pyramid level: a page with three or four samples, or a page for each of three channels."""

    def __init__(self, path: Path, series: Any):
        keyframe = series.keyframe
        self.keyframe = keyframe
        self.pages = list(series.pages)
        self._path = path
        others = {
            axis: n for axis, n in zip(series.axes, series.shape, strict=True) if axis not in "YXSC" and n > 1
        }
        self.samples = keyframe.samplesperpixel * len(self.pages)
        if others:
            raise InputError(f"{path}: has several planes ({others}); give a file with one plane")
        one_page = len(self.pages) == 1 and keyframe.samplesperpixel in (3, 4)
        per_channel = len(self.pages) in (3, 4) and keyframe.samplesperpixel == 1
        coloured = keyframe.photometric == 2 or (
            keyframe.photometric == 6 and keyframe.compression in _SELF_COLOURED
        )
        coloured = coloured or (keyframe.photometric == 1 and "C" in series.axes)
        if keyframe.dtype != np.uint8 or not (one_page or per_channel) or not coloured:
            raise InputError(
                f"{path}: 8-bit RGB is required, "
                f"and the TIFF is {keyframe.dtype} with {self.samples} channel(s), "
                f"{tifffile.PHOTOMETRIC(keyframe.photometric).name.lower()}; convert it to 8-bit RGB"
            )
        self.shape = (int(keyframe.imagelength), int(keyframe.imagewidth))
        self._planes = self.samples if keyframe.planarconfig == 2 and one_page else 1
        self.tile = (
            (keyframe.tilelength, keyframe.tilewidth)
            if keyframe.is_tiled
            else (min(keyframe.rowsperstrip, self.shape[0]), self.shape[1])
        )
        self.columns = -(-self.shape[1] // self.tile[1])
        self._rows = -(-self.shape[0] // self.tile[0])
        self.mapped: np.ndarray | None = None
        if len(self.pages) == 1 and keyframe.is_memmappable:
            planar = (self.samples, *self.shape) if self._planes > 1 else (*self.shape, self.samples)
            mapped = np.memmap(path, np.uint8, "r", self.pages[0].dataoffsets[0], planar)
            self.mapped = np.moveaxis(mapped, 0, 2) if self._planes > 1 else mapped
        elif self.tile[0] * self.tile[1] * self.samples > _SEGMENT_LIMIT:
            raise InputError(
                f"{path}: its pixels are compressed in pieces of {self.tile[0]} × {self.tile[1]}, "
                "too large to decode one by one; convert it to a tiled TIFF"
            )

    def segments(self, row: int, column: int) -> list[tuple[Any, int]]:
        """The (page, segment index) pairs whose samples make up a tile."""
        index = row * self.columns + column
        area = self._rows * self.columns
        return [(page, index + plane * area) for page in self.pages for plane in range(self._planes)]

    def decode(self, page: Any, index: int, data: bytes | None) -> np.ndarray:
        tables = {"jpegtables": page.jpegtables, "jpegheader": self.keyframe.jpegheader}
        pixels, _, shape = self.keyframe.decode(
            data, index, **(tables if self.keyframe.compression in _JPEG else {})
        )
        if pixels is None:  # a tile that was never written
            return np.full(shape[1:], self.keyframe.nodata, np.uint8)
        return pixels[0]

    def check_extent(self, size: int) -> None:
        """Fail now, and not hours later, where tiles lie past the end of the file."""
        need = self._rows * self.columns * self._planes
        for page in self.pages:
            if page is None:
                raise InputError(f"{self._path}: the TIFF lacks some of its planes")
            offsets, counts = np.asarray(page.dataoffsets), np.asarray(page.databytecounts)
            if self.mapped is None and min(len(offsets), len(counts)) < need:
                raise InputError(f"{self._path}: the TIFF is damaged (its list of tiles is too short)")
            if page.parent.filehandle.path == str(self._path) and (offsets + counts).max() > size:
                raise InputError(f"{self._path}: the TIFF is truncated (pixels lie past the end of the file)")


def _next_directory(tiff: tifffile.TiffFile) -> int:
    """Where the directory after the last readable one should be; 0 at a proper end."""
    layout, file = tiff.tiff, tiff.filehandle
    file.seek(tiff.pages[len(tiff.pages) - 1].offset)
    count = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))[0]
    file.seek(count * layout.tagsize, 1)
    return struct.unpack(layout.offsetformat, file.read(layout.offsetsize))[0]


def _tag_mpp(tags: Any) -> tuple[float, float] | None:
    """µm per pixel from the resolution tags, where they name inches or centimetres."""
    um = {2: 25400.0, 3: 10000.0}.get(int(tags.valueof("ResolutionUnit", 1)))
    values = []
    for name in ("YResolution", "XResolution"):
        numerator, denominator = tags.valueof(name, (0, 1))
        if not (um and numerator and denominator):
            return None
        values.append(um * denominator / numerator)
    # The 72 or 96 dots per inch of any picture are its print size.
    return (values[0], values[1]) if all(map(is_plausible, values)) else None


def _ome_mpp(xml: str, index: int, count: int) -> tuple[float, float] | None:
    """µm per pixel from an OME header's PhysicalSizeY and PhysicalSizeX."""
    try:
        pixels = [e for e in ElementTree.fromstring(xml).iter() if e.tag.rpartition("}")[2] == "Pixels"]
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
