"""Slides in scanners' formats (.svs, .ndpi, .mrxs, .scn, …), read by OpenSlide."""

import logging
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import tifffile
from jaxtyping import Bool, UInt8
from PIL import Image

from fseg_jax.errors import InputError, first_line
from fseg_jax.slides.bounds import Frame, Origin
from fseg_jax.slides.openslide_tiles import TiledLevels
from fseg_jax.slides.pixels import Box, compute_downsamples, flatten, is_plausible
from fseg_jax.slides.tiff_tiles import TiffTiles
from fseg_jax.slides.tile_pyramid import WrittenTiles

_log = logging.getLogger(__name__)

_CACHE = 64 << 20  # bytes of decoded tiles; OpenSlide's default of 32 MB does not hold a row of tiles
# OpenSlide's names of formats that are TIFFs with a page for each level, and of those that are whole.
_PLAIN_TIFFS = ("aperio", "generic-tiff", "philips")
_WITHOUT_GAPS = ("hamamatsu",)
_TILING = "dicom.DimensionOrganizationType"  # the property that says whether a DICOM slide has all its tiles
_BLOCK = 256  # pixels of the side of the blocks in which a level with a fractional downsample is read


class OpenSlidePixels:
    """A slide of any format that OpenSlide reads.

    Where OpenSlide states bounds, the part of its canvas that was scanned, the levels are that part alone,
    but for the frame ``"canvas"``.
    """

    series: int | None = None

    def __init__(self, path: Path, frame: Frame, tiff: Any = None) -> None:
        """Open a slide.

        Args:
            path: The file.
            frame: What coordinates count from.
            tiff: The file, open in tifffile where it is a TIFF; it is closed with this.

        Raises:
            InputError: OpenSlide does not read it.
        """
        self._tiff = tiff
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise InputError(f"{path}: OpenSlide does not read it ({_explain(error)})") from None
        self._path = path
        self._slide.set_cache(openslide.OpenSlideCache(_CACHE))
        properties = self._slide.properties
        self.format = "openslide/" + properties[openslide.PROPERTY_NAME_VENDOR]
        self.origin, self.shapes = self._place_levels(frame)
        self.mpp = self._read_mpp()
        red, green, blue = bytes.fromhex(properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF"))
        self._background = (red, green, blue)
        canvas = [(height, width) for width, height in self._slide.level_dimensions]
        vendor = properties[openslide.PROPERTY_NAME_VENDOR]
        self._tiles = TiledLevels(path, tiff, vendor, canvas, self._read_canvas)

    @staticmethod
    def detect(path: Path) -> str | None:
        """Return OpenSlide's name for a file's format; None where it recognises none."""
        vendor: str | None = openslide.OpenSlide.detect_format(path)
        return vendor

    def _place_levels(self, frame: Frame) -> tuple[Origin | None, list[tuple[int, int]]]:
        """Place the levels on the canvas: find the corner of level 0, and the shape of each."""
        canvas = [(height, width) for width, height in self._slide.level_dimensions]
        self._downs = downs = [compute_downsamples(canvas[0], shape) for shape in canvas]
        bounds = self._read_bounds() if frame == "bounds" else None
        if bounds is None:
            self._corners = [(0.0, 0.0)] * len(canvas)
            return None, canvas
        y, x, height, width = bounds
        self._corners = [(y / down_y, x / down_x) for down_y, down_x in downs]
        # Without the pixels that the bounds cut: what was not scanned shows in them.
        shapes = [(max(1, int(height / down_y)), max(1, int(width / down_x))) for down_y, down_x in downs]
        return (y, x), shapes

    def _read_bounds(self) -> tuple[int, int, int, int] | None:
        """Read where what was scanned lies on the canvas: (y, x, height, width) in level-0 pixels.

        Returns None where the file does not say, or all of the canvas was scanned.
        """
        full_width, full_height = self._slide.dimensions
        names = ("BOUNDS_Y", "BOUNDS_X", "BOUNDS_HEIGHT", "BOUNDS_WIDTH")
        try:
            y, x, height, width = (
                int(self._slide.properties[getattr(openslide, f"PROPERTY_NAME_{name}")]) for name in names
            )
        except (KeyError, ValueError):
            return None
        y0, x0, y1, x1 = max(y, 0), max(x, 0), min(y + height, full_height), min(x + width, full_width)
        if y1 <= y0 or x1 <= x0 or (y0, x0, y1, x1) == (0, 0, full_height, full_width):
            return None
        return y0, x0, y1 - y0, x1 - x0

    def _read_mpp(self) -> tuple[float, float] | None:
        """Read the µm per level-0 pixel along y and x; return None where the file states none."""
        properties = self._slide.properties
        try:
            y = float(properties[openslide.PROPERTY_NAME_MPP_Y])
            x = float(properties[openslide.PROPERTY_NAME_MPP_X])
        except (KeyError, ValueError):
            return None
        if self.format == "openslide/generic-tiff" and not (is_plausible(y) and is_plausible(x)):
            return None  # a picture's print resolution, 72 or 96 dots per inch
        return y, x

    def read(
        self, level: int, y: int, x: int, height: int, width: int
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Decode a box of a level; transparent pixels take the file's background colour."""
        if self._is_tiled(level):
            return self._tiles.read(level, *self._find_on_canvas(level, (y, x, height, width)))
        down = self._slide.level_downsamples[level]
        if down == round(down):
            return self._read_region(level, y, x, height, width)
        # OpenSlide takes a region's corner in whole level-0 pixels and interpolates the remaining fraction: a
        # pixel's value would depend on where the box begins. Fixed blocks make it the same in every box.
        out = np.empty((height, width, 3), np.uint8)
        for top in range(y - y % _BLOCK, y + height, _BLOCK):
            for left in range(x - x % _BLOCK, x + width, _BLOCK):
                bottom, right = min(top + _BLOCK, y + height), min(left + _BLOCK, x + width)
                block = self._read_region(level, top, left, bottom - top, right - left)
                part = block[max(y - top, 0) :, max(x - left, 0) :]
                out[max(top - y, 0) : bottom - y, max(left - x, 0) : right - x] = part
        return out

    def _read_region(
        self, level: int, y: int, x: int, height: int, width: int
    ) -> UInt8[np.ndarray, "height width 3"]:
        top, left = self._corners[level]
        return self._read_canvas(level, top + y, left + x, height, width)

    def _read_canvas(
        self, level: int, y: float, x: float, height: int, width: int
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Read a box by OpenSlide, whose corner is in pixels of the level from the canvas's."""
        return flatten(self._read_rgba(level, y, x, height, width), self._background)

    def _read_rgba(self, level: int, y: float, x: float, height: int, width: int) -> Image.Image:
        down = self._slide.level_downsamples[level]
        return self._slide.read_region((round(x * down), round(y * down)), level, (width, height))

    def _is_tiled(self, level: int) -> bool:
        """Whether a level is decoded tile by tile: OpenSlide interpolates where it begins between pixels."""
        return level in self._tiles and all(at == round(at) for at in self._corners[level])

    def _find_on_canvas(self, level: int, box: Box) -> Box:
        top, left = self._corners[level]
        return box[0] + round(top), box[1] + round(left), *box[2:]

    def read_scanned(
        self, level: int, y: int, x: int, height: int, width: int
    ) -> Bool[np.ndarray, "height width"] | None:
        """Tell which pixels of a box were scanned; None where all were.

        OpenSlide leaves the others transparent. To see that costs a read of the slide, but not where a file
        is simple, and lists which tiles it lacks.
        """
        vendor = self.format.removeprefix("openslide/")
        if vendor in _PLAIN_TIFFS:
            if self._written is None:
                return None
            return self._written.crop((y, x, height, width), self._downs[level], self.origin or (0, 0))
        has_gaps = vendor not in _WITHOUT_GAPS and self._slide.properties.get(_TILING) != "TILED_FULL"
        if not has_gaps and self._read_bounds() is None:
            return None
        top, left = self._corners[level]
        return np.asarray(self._read_rgba(level, top + y, left + x, height, width).getchannel("A")) > 0

    @cached_property
    def _written(self) -> WrittenTiles | None:
        """The tiles of a plain TIFF's finest page that were written; None where all were."""
        try:
            tiled = [page for page in self._tiff.pages if page.is_tiled]
            finest = max(tiled, key=lambda page: page.imagelength * page.imagewidth)
            return TiffTiles(self._path, [finest], blank=255).find_written()
        except Exception as error:  # what tifffile cannot parse is left to OpenSlide
            _log.debug("%s: is not searched for tiles that were never written: %s", self._path, error)
            return None

    def announce(self, level: int, boxes: Sequence[Box]) -> AbstractContextManager[Callable[[int], None]]:
        """Keep what boxes share until each has been read; OpenSlide keeps what it decodes itself."""
        if self._is_tiled(level):
            return self._tiles.announce(level, [self._find_on_canvas(level, box) for box in boxes])
        return nullcontext(lambda number: None)

    def close(self) -> None:
        """Release the file."""
        self._tiles.close()
        self._slide.close()
        if self._tiff is not None:
            self._tiff.close()


def _explain(error: openslide.OpenSlideError) -> str:
    """Return OpenSlide's reason, a compression by its name."""
    reason = first_line(error)
    if match := re.search(r"compression:? (\d+)", reason):
        number = int(match[1])
        if number in set(tifffile.COMPRESSION):
            reason += f", {tifffile.COMPRESSION(number).name}"
    return reason
