"""TIFFs that tifffile reads: upright, and the part that was written, which OpenSlide gives as bounds."""

from pathlib import Path
from typing import Any

import numpy as np

from fseg_jax.slides.bounds import Frame, Origin
from fseg_jax.slides.pixels import Box, Pixels, PlacedPixels, compute_downsamples
from fseg_jax.slides.tiff import TiffPixels
from fseg_jax.slides.upright import UprightPixels


def read_tiff_in_frame(path: Path, tiff: Any, series: int | None, frame: Frame) -> Pixels:
    """Make the reader of a TIFF.

    Args:
        path: The file.
        tiff: It, as ``open_slide_tiff`` opens it; it is closed with the reader.
        series: Which of its images to read, as the file counts them; None for the largest.
        frame: ``"bounds"`` for the part of a plain TIFF that was written, ``"canvas"`` for all of it.

    Raises:
        InputError: The TIFF is damaged, or of a kind that is not read.
    """
    pixels = TiffPixels(path, tiff, series)
    if pixels.orientation != 1:
        return UprightPixels(pixels, pixels.orientation)
    return _crop_to_written(pixels) if frame == "bounds" else pixels


def _crop_to_written(pixels: TiffPixels) -> Pixels:
    """Crop a TIFF to the tiles that were written. An OME-TIFF is left whole, as its readers show it."""
    if pixels.written is None or pixels.format == "ome-tiff":
        return pixels
    begin, end = [], []
    for axis, (side, size) in enumerate(zip(pixels.written.tile, pixels.shapes[0], strict=True)):
        held = np.flatnonzero(pixels.written.written.any(axis=1 - axis))
        if not len(held):
            return pixels
        begin.append(int(held[0]) * side)
        end.append(min((int(held[-1]) + 1) * side, size))
    if (*begin, *end) == (0, 0, *pixels.shapes[0]):
        return pixels
    return _Part(pixels, (begin[0], begin[1]), (end[0] - begin[0], end[1] - begin[1]))


class _Part(PlacedPixels):
    """A part of each of a reader's levels."""

    def __init__(self, pixels: Pixels, origin: Origin, shape: tuple[int, int]) -> None:
        """Choose the part.

        Args:
            pixels: The reader.
            origin: (y, x) of the part's corner in level 0.
            shape: Its (height, width) there.
        """
        super().__init__(pixels)
        self.mpp = pixels.mpp
        self.origin: Origin | None = origin
        downs = [compute_downsamples(pixels.shapes[0], level) for level in pixels.shapes]
        self.shapes = [(max(1, int(shape[0] / y)), max(1, int(shape[1] / x))) for y, x in downs]
        self._corners = [(int(origin[0] / y), int(origin[1] / x)) for y, x in downs]

    def _find_stored(self, level: int, box: Box) -> Box:
        """Find the box of a level in the whole of it."""
        y, x, height, width = box
        return y + self._corners[level][0], x + self._corners[level][1], height, width
