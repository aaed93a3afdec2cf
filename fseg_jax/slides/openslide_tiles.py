"""The tiles of slides that OpenSlide opens, where the file is a plain tiled TIFF underneath.

OpenSlide says what the levels are, and its pixels are those of the tiles. Decoded here, each is decoded once,
straight to RGB, in as many threads as like.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fseg_jax.slides.tiff_tiles import TiffTiles, Tile
from fseg_jax.slides.tile_pyramid import TilePyramid

_log = logging.getLogger(__name__)

# Formats whose levels are pages, of tiles side by side. Those of Leica and Ventana place scans and tiles on a
# canvas, between its pixels or one over the other, and Hamamatsu's are not tiled: OpenSlide reads them.
_VENDORS = ("aperio", "generic-tiff", "philips")
_PADDED = "philips"  # its pages are of whole tiles, and state no other size
# Compressions and photometric interpretations by their numbers in TIFF.
_LOSSLESS = (1, 5, 8, 32946)
_JPEG, _JPEG2000_YCBCR, _JPEG2000_RGB = 7, 33003, 33005
_RGB, _YCBCR = 2, 6

ReadBox = Callable[[int, int, int, int], UInt8[np.ndarray, "height width 3"]]
ReadLevel = Callable[[int, int, int, int, int], UInt8[np.ndarray, "height width 3"]]


class TiledLevels(TilePyramid):
    """The levels of a slide that are decoded tile by tile."""

    def __init__(
        self, path: Path, tiff: Any, vendor: str, shapes: Sequence[tuple[int, int]], read_level: ReadLevel
    ) -> None:
        """Find the levels; what tifffile cannot parse is left to OpenSlide.

        Args:
            path: The slide's file.
            tiff: It, open in tifffile; None where it is no TIFF.
            vendor: OpenSlide's name for its format.
            shapes: (height, width) of OpenSlide's levels.
            read_level: Reads a box of a level, (level, y, x, height, width), by OpenSlide.
        """
        levels: dict[int, TiffTiles] = {}
        if tiff is not None and vendor in _VENDORS:
            try:
                levels = find_levels(path, tiff, shapes, read_level, is_padded=vendor == _PADDED)
            except Exception as error:
                _log.debug("%s: its tiles are left to OpenSlide: %s", path, error)
        super().__init__(levels)

    def __contains__(self, level: int) -> bool:
        return level in self._tiled


class _OpenSlideTiles(TiffTiles):
    """The tiles of one level, with the colours that OpenSlide gives."""

    def __init__(self, path: Path, page: Any, shape: tuple[int, int], read_box: ReadBox) -> None:
        super().__init__(path, [page], blank=255)
        self.shape = shape  # without a page's padding
        self._read_box = read_box

    def _decode_segment(self, page: Any, segment: int, data: bytes | None) -> Tile:
        """Decode a tile; OpenSlide knows what to show for one that was never written."""
        is_ycbcr = page.compression == _JPEG2000_YCBCR
        if data is None or (is_ycbcr and _is_subsampled(data)):
            y, x = segment // self.columns * self.tile[0], segment % self.columns * self.tile[1]
            return self._read_box(
                y, x, min(self.tile[0], self.shape[0] - y), min(self.tile[1], self.shape[1] - x)
            )
        pixels = super()._decode_segment(page, segment, data)
        return _convert_ycbcr(pixels) if is_ycbcr else pixels


def find_levels(
    path: Path,
    tiff: Any,
    shapes: Sequence[tuple[int, int]],
    read_level: ReadLevel,
    *,
    is_padded: bool = False,
) -> dict[int, TiffTiles]:
    """Find the page of each level; one that has none, or colours that are coded otherwise, is left out.

    Args:
        path: The slide's file, for error messages.
        tiff: The file, open in tifffile.
        shapes: (height, width) of the levels.
        read_level: Reads a box of a level where a tile is not decoded: one that was never written, for one.
        is_padded: Whether a page may be larger than its level, by less than a tile.
    """
    tiled: list[Any] = [page for page in tiff.pages if page.is_tiled]
    levels: dict[int, TiffTiles] = {}
    for level, shape in enumerate(shapes):
        pages = [page for page in tiled if _has_size(page, shape, is_padded)]
        if len(pages) == 1 and _has_known_colours(pages[0]):
            levels[level] = _OpenSlideTiles(path, pages[0], shape, partial(read_level, level))
    return levels


def _has_size(page: Any, shape: tuple[int, int], is_padded: bool) -> bool:
    """Return whether a page has the size of a level, or exceeds it by less than a tile where it is padded."""
    most = (page.tilelength, page.tilewidth) if is_padded else (1, 1)
    sides = zip((page.imagelength, page.imagewidth), shape, most, strict=True)
    return all(0 <= side - wanted < padding for side, wanted, padding in sides)


def _has_known_colours(page: Any) -> bool:
    """Return whether tifffile's decoders, and the conversion below, give the colours that OpenSlide gives."""
    if (page.samplesperpixel, page.bitspersample, page.planarconfig) != (3, 8, 1) or page.dtype != np.uint8:
        return False
    if page.compression == _JPEG:
        return page.photometric in (_RGB, _YCBCR)
    if page.compression in (_JPEG2000_RGB, *_LOSSLESS):
        return bool(page.photometric == _RGB)
    return bool(page.compression == _JPEG2000_YCBCR)


def _is_subsampled(data: bytes) -> bool:
    """Return whether a JPEG 2000 has fewer samples of some component, by its codestream's header (SIZ)."""
    start = data.find(b"\xff\x4f\xff\x51")
    count = int.from_bytes(data[start + 40 : start + 42], "big")
    steps = [data[start + 43 + 3 * i : start + 45 + 3 * i] for i in range(count)]
    return start < 0 or any(step != b"\x01\x01" for step in steps)


_CHROMA = np.arange(-128, 128)
_RED_OF_CR = np.round(1.402 * _CHROMA).astype(np.int32)
_BLUE_OF_CB = np.round(1.772 * _CHROMA).astype(np.int32)
# In 1/65536, rounded as OpenSlide's tables are.
_GREEN_OF_CB = np.ceil(-0.34414 * 65536 * _CHROMA).astype(np.int32) + 32768
_GREEN_OF_CR = np.round(-0.71414 * 65536 * _CHROMA).astype(np.int32)


def _convert_ycbcr(pixels: Tile) -> Tile:
    """Convert YCbCr, which a JPEG 2000 does not say that it holds, to the RGB that OpenSlide gives."""
    luma, cb, cr = pixels[..., 0].astype(np.int32), pixels[..., 1], pixels[..., 2]
    green = (_GREEN_OF_CB[cb] + _GREEN_OF_CR[cr]) >> 16
    rgb = np.stack([luma + _RED_OF_CR[cr], luma + green, luma + _BLUE_OF_CB[cb]], axis=2)
    return rgb.clip(0, 255).astype(np.uint8)
