"""Slides of scanners' own formats (.svs, .ndpi, .mrxs, .scn, …) through OpenSlide."""

from pathlib import Path

import numpy as np
import openslide

from fseg_jax.errors import InputError
from fseg_jax.slides.pixels import flatten, is_plausible

_CACHE = 64 << 20  # bytes; OpenSlide's own 32 MB do not hold a row of tiles
_BLOCK = 256  # level pixels, see OpenSlidePixels.read


class OpenSlidePixels:
    """A slide of any format that OpenSlide reads."""

    def __init__(self, path: Path):
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise InputError(
                f"{path}: OpenSlide cannot read it ({error}); it is damaged, truncated or another format"
            ) from None
        self._slide.set_cache(openslide.OpenSlideCache(_CACHE))
        properties = self._slide.properties
        self.format = "openslide/" + properties[openslide.PROPERTY_NAME_VENDOR]
        self.shapes = [(height, width) for width, height in self._slide.level_dimensions]
        self.mpp = self._mpp()
        red, green, blue = bytes.fromhex(properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF"))
        self._background = (red, green, blue)

    @staticmethod
    def knows(path: Path) -> bool:
        """Whether OpenSlide recognises the file."""
        return openslide.OpenSlide.detect_format(path) is not None

    def _mpp(self) -> tuple[float, float] | None:
        properties = self._slide.properties
        try:
            y = float(properties[openslide.PROPERTY_NAME_MPP_Y])
            x = float(properties[openslide.PROPERTY_NAME_MPP_X])
        except (KeyError, ValueError):
            return None
        if self.format == "openslide/generic-tiff" and not (is_plausible(y) and is_plausible(x)):
            return None  # the 72 or 96 dots per inch of any picture
        return y, x

    def read(self, level: int, y: int, x: int, height: int, width: int) -> np.ndarray:
        down = self._slide.level_downsamples[level]
        if down == round(down):
            return self._region(level, y, x, height, width)
        # OpenSlide places a coarse level by whole level-0 pixels and interpolates the rest, so that one
        # pixel's value would depend on where the box begins. Beginning at fixed blocks makes it the same for
        # every box.
        out = np.empty((height, width, 3), np.uint8)
        for top in range(y - y % _BLOCK, y + height, _BLOCK):
            for left in range(x - x % _BLOCK, x + width, _BLOCK):
                bottom, right = min(top + _BLOCK, y + height), min(left + _BLOCK, x + width)
                block = self._region(level, top, left, bottom - top, right - left)
                inside = block[max(y - top, 0) :, max(x - left, 0) :]
                out[max(top - y, 0) : bottom - y, max(left - x, 0) : right - x] = inside
        return out

    def _region(self, level: int, y: int, x: int, height: int, width: int) -> np.ndarray:
        down = self._slide.level_downsamples[level]
        region = self._slide.read_region((round(x * down), round(y * down)), level, (width, height))
        return flatten(region, self._background)

    def close(self) -> None:
        self._slide.close()
