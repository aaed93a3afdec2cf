"""Slides that are stored turned or mirrored, read as they are shown (the EXIF tag Orientation)."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
from jaxtyping import Bool, UInt8

from fseg_jax.slides.pixels import Box, Pixels


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
        return self._turn(self._pixels.read(level, *self._find_stored(level, (y, x, height, width))))

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

    def announce(self, level: int, boxes: Sequence[Box]) -> AbstractContextManager[Callable[[int], None]]:
        """Keep what boxes share until each has been read."""
        return self._pixels.announce(level, [self._find_stored(level, box) for box in boxes])

    def read_scanned(
        self, level: int, y: int, x: int, height: int, width: int
    ) -> Bool[np.ndarray, "height width"] | None:
        """Tell which pixels of a box were scanned."""
        scanned = self._pixels.read_scanned(level, *self._find_stored(level, (y, x, height, width)))
        return None if scanned is None else self._turn(scanned)

    def close(self) -> None:
        """Release the file."""
        self._pixels.close()
