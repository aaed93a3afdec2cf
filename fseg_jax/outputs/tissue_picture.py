"""The picture of a slide's tissue: the slide with outlines of tissue and artefacts, and a legend in words."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fseg_jax.outputs.lettering import Lettering, fit_text
from fseg_jax.outputs.outlines import Outline, draw_outlines, draw_swatch
from fseg_jax.outputs.style import FAINT, RULE, use_style

# Pixels of the picture.
_SIDE, _MAX_ENLARGEMENT = 1500, 8  # of the slide's longer side, at most
_MARGIN, _TITLE, _TEXT = 36, 32, 18
_ROW, _SWATCH = 36, 26  # height of a row of the legend; side of its square
_LEGEND = 330  # width
_FRAME = (218, 220, 226)


def write_tissue_picture(
    path: Path,
    image: UInt8[np.ndarray, "h w 3"],
    outlines: Sequence[Outline],
    areas_mm2: Sequence[float],
    *,
    absent: Sequence[str],
    mpp: float,
    title: str,
) -> None:
    """Draw a slide with outlines over it, with their names and areas and a scale bar.

    Args:
        path: The file, a PNG.
        image: The whole slide.
        outlines: What is outlined.
        areas_mm2: The area of each.
        absent: Names of what was looked for and is not there.
        mpp: µm per pixel of the image.
        title: The picture's title.

    Raises:
        OutputError: The file cannot be written.
    """
    scale = min(_SIDE / max(image.shape[:2]), _MAX_ENLARGEMENT)
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    top = _MARGIN + _TITLE + 24
    x = _MARGIN + width + _MARGIN  # of the legend
    canvas_height = top + max(height, (len(outlines) + len(absent) + 2) * _ROW) + _MARGIN
    canvas = np.full((canvas_height, x + _LEGEND + _MARGIN, 3), 255, np.uint8)
    resampling = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    canvas[top - 1 : top + height + 1, _MARGIN - 1 : _MARGIN + width + 1] = _FRAME
    canvas[top : top + height, _MARGIN : _MARGIN + width] = Image.fromarray(image).resize(
        (width, height), resampling
    )
    with use_style():
        lettering = Lettering(canvas)
        title = fit_text(title, _TITLE, canvas.shape[1] - 2 * _MARGIN)
        lettering.write_text(_MARGIN, _MARGIN + 24, title, _TITLE)
        mpp = mpp * image.shape[1] / width
        draw_outlines(lettering, outlines, (top, _MARGIN), mpp)
        lettering.draw_scale_bar(_MARGIN, top, width, height, mpp, _TEXT)
        _draw_legend(lettering, outlines, areas_mm2, absent, x, top)
        lettering.save(path)


def _draw_legend(
    lettering: Lettering,
    outlines: Sequence[Outline],
    areas_mm2: Sequence[float],
    absent: Sequence[str],
    x: int,
    top: int,
) -> None:
    """Draw a row for each outline, with its colour and pattern, name and area in mm², and what is absent."""
    right = x + _LEGEND
    lettering.write_text(right, top + 14, "mm²", _TEXT, FAINT, "right")
    lettering.fill_box(x, top + 24, _LEGEND, 2, RULE)
    y = top + 24 + 12
    for outline, area in zip(outlines, areas_mm2, strict=True):
        draw_swatch(lettering, outline, (y, x), _SWATCH)
        lettering.write_text(x + _SWATCH + 14, y + 20, outline.name, _TEXT)
        text = f"{area:.2f}" if area >= 10 else f"{area:.3f}"
        lettering.write_text(right, y + 20, text, _TEXT, align="right")
        y += _ROW
    for name in absent:
        lettering.write_text(x + _SWATCH + 14, y + 20, name, _TEXT, FAINT)
        lettering.write_text(right, y + 20, "none", _TEXT, FAINT, "right")
        y += _ROW
