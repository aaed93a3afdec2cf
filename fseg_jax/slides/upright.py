"""Slides that are stored turned or mirrored, read as they are shown (the EXIF tag Orientation)."""

import numpy as np

from fseg_jax.slides.pixels import Box, Pixels, PlacedPixels


class UprightPixels(PlacedPixels):
    """A reader's pixels, turned as an orientation of 2 to 8 says."""

    def __init__(self, pixels: Pixels, orientation: int) -> None:
        super().__init__(pixels)
        self._is_transposed = orientation >= 5
        # Whether the upright picture's rows, and columns, run against those of the (transposed) stored one.
        self._flips = (orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7))
        self.origin = pixels.origin
        self.shapes, self.mpp = pixels.shapes, pixels.mpp
        if self._is_transposed:
            self.shapes = [(width, height) for height, width in pixels.shapes]
            self.mpp = pixels.mpp and pixels.mpp[::-1]

    def _turn(self, part: np.ndarray) -> np.ndarray:
        """Turn a box as it is stored."""
        part = part.swapaxes(0, 1) if self._is_transposed else part
        return np.ascontiguousarray(part[:: -1 if self._flips[0] else 1, :: -1 if self._flips[1] else 1])

    def _find_stored(self, level: int, box: Box) -> Box:
        """Find the box of a level as it is stored."""
        y, x, height, width = box
        full_height, full_width = self.shapes[level]
        if self._flips[0]:
            y = full_height - y - height
        if self._flips[1]:
            x = full_width - x - width
        return (x, y, width, height) if self._is_transposed else (y, x, height, width)
