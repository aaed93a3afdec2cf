"""The tiles or strips of a TIFF image, decoded one at a time by tifffile, in as many threads as like."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from fseg_jax.errors import InputError
from fseg_jax.files.extent import check_extent, check_piece
from fseg_jax.files.tiff_files import read_at
from fseg_jax.slides.tile_pyramid import WrittenTiles

_MOST_EXTRA = 16 << 20  # bytes of a compressed tile beside its pixels, such as a profile of colours
# Compressions by their numbers in TIFF.
_JPEG = (6, 7, 33007, 34892)
_JPEG_LS = 0xF7  # the marker of its frame header
_JPEG2000 = (33003, 33004, 33005, 34712)

Tile = Shaped[np.ndarray, "tile_height tile_width samples"]


class TiffTiles:
    """The tiles or strips of a TIFF image of any pixels, on one page or on one page for each channel.

    Attributes:
        keyframe: tifffile's page that describes all pages.
        pages: tifffile's pages.
        shape: (height, width) of the image.
        samples: Number of channels.
        tile: (height, width) of a tile or strip.
        rows: Number of tiles along y.
        columns: Number of tiles along x.
        mapped: The whole image (height, width, samples), mapped into memory; None where it is compressed.
    """

    together = 1

    def __init__(self, path: Path, pages: Sequence[Any], *, blank: int) -> None:
        """Describe the tiles, and check that each is small enough to be decoded.

        Args:
            path: The file, for error messages.
            pages: tifffile's pages.
            blank: The value of pixels that were never written.

        Raises:
            InputError: The tiles are too large, or the file is damaged.
        """
        keyframe = pages[0].keyframe
        self.keyframe = keyframe
        self.pages = pages
        self._path = path
        self._blank = blank
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
        decoded = self.tile[0] * self.tile[1] * self.samples * keyframe.dtype.itemsize
        self._most_bytes = 4 * decoded + _MOST_EXTRA
        self.columns = -(-self.shape[1] // self.tile[1])
        self.rows = -(-self.shape[0] // self.tile[0])
        self.mapped: np.ndarray | None = None
        if len(pages) == 1 and keyframe.is_memmappable and pages[0].dataoffsets[0]:
            planar = (self.samples, *self.shape) if self._planes > 1 else (*self.shape, self.samples)
            self._check_mapped()
            order = keyframe.parent.byteorder
            dtype = keyframe.dtype.newbyteorder(order)
            mapped = np.memmap(pages[0].parent.filehandle.path, dtype, "r", pages[0].dataoffsets[0], planar)
            self.mapped = np.moveaxis(mapped, 0, 2) if self._planes > 1 else mapped
        else:
            check_piece(path, keyframe, self.tile, self.samples)

    def decode(self, places: Sequence[tuple[int, int]]) -> Iterator[Tile]:
        """Decode the tiles or strips at some rows and columns."""
        return (self.decode_tile(row, column) for row, column in places)

    def decode_tile(self, row: int, column: int) -> Tile:
        """Read and decode one tile or strip; at the image's lower and right edge it may be smaller."""
        planes = []
        index = row * self.columns + column
        area = self.rows * self.columns
        for page, segment in [(page, index + p * area) for page in self.pages for p in range(self._planes)]:
            offset, count = page.dataoffsets[segment], page.databytecounts[segment]
            if count > self._most_bytes:
                raise OSError(f"a tile is stated to have {count} bytes, far more than its pixels")
            data = read_at(page.parent, offset, count) if offset and count else None
            planes.append(self._decode_segment(page, segment, data))
        return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)

    def _decode_segment(self, page: Any, segment: int, data: bytes | None) -> Tile:
        """Decode a tile of one page, with that page's JPEG tables; without data it is blank."""
        tables = {"jpegtables": page.jpegtables, "jpegheader": self.keyframe.jpegheader}
        count_pixels = _COUNT_PIXELS.get(self.keyframe.compression)
        if data and count_pixels and count_pixels(data) > self.tile[0] * self.tile[1]:
            raise OSError("its JPEG states more pixels than the tile has")
        pixels, _, shape = self.keyframe.decode(
            data, segment, **(tables if self.keyframe.compression in _JPEG else {})
        )
        if pixels is None:
            return np.full(shape[1:], self._blank, self.keyframe.dtype)
        return np.asarray(pixels[0])

    def find_written(self) -> WrittenTiles | None:
        """Find which tiles the file holds, those of all channels; None where it holds all."""
        written = np.ones((self.rows, self.columns), bool)
        for page in self.pages if self.mapped is None else ():
            for values in (page.dataoffsets, page.databytecounts):
                listed = np.array(values[: self._planes * written.size]).astype(bool)
                written &= listed.reshape(self._planes, *written.shape).all(axis=0)
        return None if written.all() else WrittenTiles(written, self.tile)

    def check_extent(self) -> None:
        """Raise ``InputError`` where tiles are not listed or lie past the end of the file."""
        for page in self.pages if self.mapped is None else ():
            check_extent(self._path, page)

    def _check_mapped(self) -> None:
        """Raise ``InputError`` unless an uncompressed image is whole and inside the file."""
        page = self.pages[0]
        if 0 < sum(page.databytecounts) < page.nbytes:
            raise InputError(f"{self._path}: the TIFF is damaged (it declares more pixels than it holds)")
        if page.dataoffsets[0] + page.nbytes > page.parent.filehandle.size:
            raise InputError(f"{self._path}: the TIFF is truncated (pixels lie past the end of the file)")


def count_jpeg_pixels(data: bytes) -> int:
    """Read the number of pixels from the frame header (SOF) of a JPEG or a JPEG-LS; return 0 without one."""
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == _JPEG_LS:
            height, width = data[position + 5 : position + 7], data[position + 7 : position + 9]
            return int.from_bytes(height, "big") * int.from_bytes(width, "big")
        position += 2 + length
    return 0


def count_jpeg2000_pixels(data: bytes) -> int:
    """Read the number of pixels from a JPEG 2000's codestream header (SIZ); return 0 where there is none."""
    if (start := data.find(b"\xff\x4f\xff\x51")) < 0:
        return 0
    right, bottom, left, top = (
        int.from_bytes(data[start + i : start + i + 4], "big") for i in (8, 12, 16, 20)
    )
    return max(0, right - left) * max(0, bottom - top)


_COUNT_PIXELS = dict.fromkeys(_JPEG, count_jpeg_pixels) | dict.fromkeys(_JPEG2000, count_jpeg2000_pixels)
