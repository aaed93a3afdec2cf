"""Slides that are stored turned or mirrored, read as they are shown (the EXIF tag Orientation)."""

import numpy as np
from jaxtyping import UInt8

from fseg_jax.slides.pixels import Pixels


class UprightPixels:
    """A reader's pixels, turned as an orientation of 2 to 8 says."""

    def __init__(self, pixels: Pixels, orientation: int) -> None:
        self._pixels = pixels
        self._is_transposed = orientation >= 5
        # Whether the upright picture's rows, and columns, run against those of the (transposed) stored one.
        self._flips = (orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7))
        self.format, self.origin, self.series = pixels.format, pixels.origin, pixels.series
        self.shapes, self.mpp = pixels.shapes, pixels.mpp
        if self._is_transposed:
            self.shapes = [(width, height) for height, width in pixels.shapes]
            self.mpp = pixels.mpp and pixels.mpp[::-1]

    def read(
        self, level: int, y: int, x: int, height: int, width: int
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Decode a box of a level."""
        full_height, full_width = self.shapes[level]
        if self._flips[0]:
            y = full_height - y - height
        if self._flips[1]:
            x = full_width - x - width
        if self._is_transposed:
            part = self._pixels.read(level, x, y, width, height).swapaxes(0, 1)
        else:
            part = self._pixels.read(level, y, x, height, width)
        return np.ascontiguousarray(part[:: -1 if self._flips[0] else 1, :: -1 if self._flips[1] else 1])

    def close(self) -> None:
        """Release the file."""
        self._pixels.close()
