"""Outlines of areas, tissue and artefacts, that are drawn over a picture of the slide."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from fseg_jax.outputs.lettering import Lettering, measure_text
from fseg_jax.outputs.style import FAINT

_CASING, _LINE = 4.0, 2.0  # pixels: the width of a line's white casing, and of the line
_SMOOTHING = 0.7  # pixels of what is traced: the steps of a mask are no part of its outline
_FINEST = 0.7  # pixels of the picture: a finer mask is averaged over blocks first


class Outline(NamedTuple):
    """An area of the slide, and how it is outlined.

    Attributes:
        name: What it is.
        mask: True inside; its top left corner is the slide's.
        mpp: µm per mask pixel.
        colour: Its colour in hexadecimal digits.
        hatch: matplotlib's pattern inside it; empty: none.
    """

    name: str
    mask: Bool[np.ndarray, "height width"]
    mpp: float
    colour: str
    hatch: str = ""


def draw_outlines(
    lettering: Lettering, outlines: Sequence[Outline], corner: tuple[int, int], mpp: float
) -> None:
    """Draw outlines over a slide whose top left corner is at ``corner`` (y, x), of ``mpp`` µm per pixel."""
    from contourpy import FillType, contour_generator

    for outline in outlines:
        if not outline.mask.any():
            continue
        scale = outline.mpp / mpp
        step = max(1, round(_FINEST / scale))
        cover = ndimage.gaussian_filter(_average_blocks(outline.mask, step), _SMOOTHING, mode="nearest")
        if min(cover.shape) < 2:  # no area that could be traced
            continue
        generator: Any = contour_generator(  # what it returns depends on its arguments
            z=cover, name="serial", fill_type=FillType.OuterCode
        )
        origin = np.array(corner[::-1], np.float64)

        def place(
            points: Float[np.ndarray, "n 2"], scale: float = step * scale, origin: np.ndarray = origin
        ) -> Float[np.ndarray, "n 2"]:
            return np.asarray(origin + (points + 0.5) * scale)

        if outline.hatch:
            points, codes = generator.filled(0.5, 2.0)
            areas = [(place(each), code) for each, code in zip(points, codes, strict=True)]
            lettering.hatch_areas(areas, outline.colour, outline.hatch)
        lines = [place(line) for line in generator.lines(0.5)]
        if outline.mask.all():  # its border is the slide's
            height, width = (size * scale for size in outline.mask.shape)
            frame = np.array([(0, 0), (width, 0), (width, height), (0, height), (0, 0)])
            lines = [origin + frame]
        lettering.draw_lines(lines, "white", _CASING, alpha=0.85)
        lettering.draw_lines(lines, outline.colour, _LINE)


def draw_key(
    lettering: Lettering, outlines: Sequence[Outline], x: float, y: float, width: float, size: float
) -> None:
    """Draw a line of small squares with the names of what is outlined, as many as fit in ``width`` pixels.

    The names' baseline is at ``y``; ``size`` is that of their letters.
    """
    end = x + width
    for outline in outlines:
        if not outline.mask.any():
            continue
        after = x + size + 8 + measure_text(outline.name, size) + 22
        if after > end:
            return
        draw_swatch(lettering, outline, (round(y - 0.85 * size), round(x)), round(size))
        lettering.write_text(x + size + 8, y, outline.name, size, FAINT)
        x = after


def draw_swatch(lettering: Lettering, outline: Outline, corner: tuple[int, int], side: int) -> None:
    """Draw a square of ``side`` pixels in an outline's colour and pattern, at ``corner`` (y, x)."""
    square = np.pad(np.ones((side - 2, side - 2), bool), 1)
    draw_outlines(lettering, [outline._replace(mask=square, mpp=1.0)], corner, 1.0)


def _average_blocks(mask: Bool[np.ndarray, "h w"], step: int) -> Float[np.ndarray, "y x"]:
    """Average blocks of ``step`` × ``step`` pixels; the last ones repeat the mask's edge."""
    padded = np.pad(mask, [(0, -size % step) for size in mask.shape], mode="edge")
    height, width = (size // step for size in padded.shape)
    return np.asarray(padded.reshape(height, step, width, step).mean(axis=(1, 3), dtype=np.float32))
