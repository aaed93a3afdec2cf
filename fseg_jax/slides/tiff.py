"""TIFF and OME-TIFF through tifffile: only the tiles or strips that a box touches are decoded.

``Pieces`` are an image's tiles or strips, whatever its pixels; ``TiffPixels`` is a slide of them. What a file
declares is checked against what it holds when it is opened: a tile that was never written (its byte count is
0) is blank, and one that should be there and is not is an error.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
from PIL import Image

from fseg_jax.errors import InputError, first_line
from fseg_jax.files.extent import check_directories, check_extent, check_piece
from fseg_jax.slides.pixels import flatten, is_plausible

_CACHE = 256 << 20  # bytes of decoded tiles: a row of wide strips fits
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
        # By axes: what ``sizes`` calls them changed with tifffile's versions.
        series = max(images, key=lambda s: s.shape[s.axes.index("Y")] * s.shape[s.axes.index("X")])
        self._levels = [_Level(self._path, level) for level in series.levels]
        for level in self._levels:
            level.check_extent()
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
        tile = source.piece(row, column, self._lock)
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


class Pieces:
    """The tiles or strips of a TIFF's image: of one page, or of one page for each channel.

    Raises ``InputError`` where one is too large to be decoded; ``check_extent`` says whether all are there.
    """

    def __init__(self, path: Path, pages: Sequence[Any], *, blank: int):
        keyframe = pages[0].keyframe
        self.keyframe = keyframe
        self.pages = pages
        self._path = path
        self._blank = blank  # the value of what was never written
        self.samples = keyframe.samplesperpixel * len(pages)
        self.shape = (int(keyframe.imagelength), int(keyframe.imagewidth))
        self._planes = keyframe.samplesperpixel if keyframe.planarconfig == 2 else 1
        self.tile = (
            (keyframe.tilelength, keyframe.tilewidth)
            if keyframe.is_tiled
            else (min(keyframe.rowsperstrip, self.shape[0]), self.shape[1])
        )
        if min(*self.shape, *self.tile, self.samples) < 1 or keyframe.dtype is None:
            raise InputError(f"{path}: the TIFF is damaged (an image of no size, or of no known pixels)")
        self.columns = -(-self.shape[1] // self.tile[1])
        self.rows = -(-self.shape[0] // self.tile[0])
        self.mapped: np.ndarray | None = None
        if len(pages) == 1 and keyframe.is_memmappable and pages[0].dataoffsets[0]:
            planar = (self.samples, *self.shape) if self._planes > 1 else (*self.shape, self.samples)
            self._check_mapped()
            order = keyframe.parent.byteorder
            dtype = keyframe.dtype.newbyteorder(order)
            mapped = np.memmap(path, dtype, "r", pages[0].dataoffsets[0], planar)
            self.mapped = np.moveaxis(mapped, 0, 2) if self._planes > 1 else mapped
        else:
            check_piece(path, keyframe, self.tile, self.samples)

    def piece(self, row: int, column: int, lock: AbstractContextManager) -> np.ndarray:
        """Read and decode one tile or strip, (height, width, samples); at the image's edge it may be less."""
        parts = []
        index = row * self.columns + column
        area = self.rows * self.columns
        for page, segment in [(page, index + p * area) for page in self.pages for p in range(self._planes)]:
            offset, count = page.dataoffsets[segment], page.databytecounts[segment]
            data = None
            if offset and count:
                with lock:
                    page.parent.filehandle.seek(offset)
                    data = page.parent.filehandle.read(count)
                if len(data) < count:
                    raise OSError("the file ends before its pixels do")
            parts.append(self._decode(page, segment, data))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)

    def _decode(self, page: Any, segment: int, data: bytes | None) -> np.ndarray:
        tables = {"jpegtables": page.jpegtables, "jpegheader": self.keyframe.jpegheader}
        stated = _STATED.get(self.keyframe.compression)
        if data and stated and stated(data) > self.tile[0] * self.tile[1]:
            raise OSError("its JPEG states more pixels than the tile has")
        pixels, _, shape = self.keyframe.decode(
            data, segment, **(tables if self.keyframe.compression in _JPEG else {})
        )
        if pixels is None:  # never written
            return np.full(shape[1:], self._blank, self.keyframe.dtype)
        return pixels[0]

    def check_extent(self) -> None:
        """Fail now, and not hours later, where tiles are not listed or lie past the end of the file."""
        for page in self.pages if self.mapped is None else ():
            check_extent(self._path, page)

    def _check_mapped(self) -> None:
        """What lies in one piece is as long as the image, and inside the file."""
        page = self.pages[0]
        if 0 < sum(page.databytecounts) < page.nbytes:
            raise InputError(f"{self._path}: the TIFF is damaged (it declares more pixels than it holds)")
        if page.dataoffsets[0] + page.nbytes > page.parent.filehandle.size:
            raise InputError(f"{self._path}: the TIFF is truncated (pixels lie past the end of the file)")


class _Level(Pieces):
    """One pyramid level: a page with three or four samples, or a page for each of three channels."""

    def __init__(self, path: Path, series: Any):
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
        coloured = keyframe.photometric == 2 or (
            keyframe.photometric == 6 and keyframe.compression in _SELF_COLOURED
        )
        coloured = coloured or (keyframe.photometric == 1 and "C" in series.axes)
        if keyframe.dtype != np.uint8 or not (one_page or per_channel) or not coloured:
            raise InputError(
                f"{path}: 8-bit RGB is required, and the TIFF is {keyframe.dtype} with {samples} channel(s), "
                f"{tifffile.PHOTOMETRIC(keyframe.photometric).name.lower()}; convert it to 8-bit RGB"
            )
        if any(page is None for page in pages):
            raise InputError(f"{path}: the TIFF lacks some of its planes")
        super().__init__(path, pages, blank=255)


def _jpeg_pixels(data: bytes) -> int:
    """The pixels that a JPEG says it has, by its frame header; 0 where there is none."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 5 : at + 7], "big") * int.from_bytes(data[at + 7 : at + 9], "big")
        at += 2 + length
    return 0


def _jpeg2000_pixels(data: bytes) -> int:
    """The pixels that a JPEG 2000 says it has, by the header of its codestream; 0 where there is none."""
    if (at := data.find(b"\xff\x4f\xff\x51")) < 0:
        return 0
    right, bottom, left, top = (int.from_bytes(data[at + i : at + i + 4], "big") for i in (8, 12, 16, 20))
    return max(0, right - left) * max(0, bottom - top)


_STATED = dict.fromkeys(_JPEG, _jpeg_pixels) | dict.fromkeys((33003, 33004, 33005, 34712), _jpeg2000_pixels)


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
