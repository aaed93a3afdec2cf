"""Slides in scanners' formats (.svs, .ndpi, .mrxs, .scn, …), read by OpenSlide."""

from pathlib import Path

import numpy as np
import openslide
from jaxtyping import UInt8

from fseg_jax.errors import InputError
from fseg_jax.slides.pixels import flatten, is_plausible

_CACHE = 64 << 20  # bytes of decoded tiles; OpenSlide's default of 32 MB does not hold a row of tiles
_BLOCK = 256  # pixels of the side of the blocks in which a level with a fractional downsample is read


class OpenSlidePixels:
    """A slide of any format that OpenSlide reads."""

    def __init__(self, path: Path) -> None:
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise InputError(f"{path}: OpenSlide cannot read it ({error})") from None
        self._slide.set_cache(openslide.OpenSlideCache(_CACHE))
        properties = self._slide.properties
        self.format = "openslide/" + properties[openslide.PROPERTY_NAME_VENDOR]
        self.shapes = [(height, width) for width, height in self._slide.level_dimensions]
        self.mpp = self._read_mpp()
        red, green, blue = bytes.fromhex(properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF"))
        self._background = (red, green, blue)

    @staticmethod
    def detect(path: Path) -> str | None:
        """Return OpenSlide's name for a file's format; None where it recognises none."""
        vendor: str | None = openslide.OpenSlide.detect_format(path)
        return vendor

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
        down = self._slide.level_downsamples[level]
        region = self._slide.read_region((round(x * down), round(y * down)), level, (width, height))
        return flatten(region, self._background)

    def close(self) -> None:
        """Release the file."""
        self._slide.close()
