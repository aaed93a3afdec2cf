"""Text, boxes and scale bars that matplotlib draws over a picture without resampling it."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fseg_jax.files.atomic import replace_atomically
from fseg_jax.outputs.style import INK

if TYPE_CHECKING:
    from matplotlib.backends.backend_agg import RendererAgg

_DPI = 72  # a point is a pixel
_COMPRESSION = 2  # zlib's level: files 3 to 8 % larger than at 6, written in a third to a half of the time


class Lettering:
    """A picture with text and boxes over it: x goes right and y down, and all sizes are in its pixels.

    ``pixels``, uint8 (height, width, 3), is not resampled. Use it within ``style.use_style()``.
    """

    def __init__(self, pixels: UInt8[np.ndarray, "height width 3"]) -> None:
        """Open a picture for lettering."""
        from matplotlib.figure import Figure

        height, width = pixels.shape[:2]
        self._pixels = pixels
        self._figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, frameon=False)
        self._axes = self._figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        self._axes.set_axis_off()

    def write_text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        colour: str = INK,
        align: Literal["left", "center", "right"] = "left",
    ) -> None:
        """Write one line of text with its baseline at ``y``; ``$`` is not special."""
        self._axes.text(
            x,
            y,
            replace_missing_letters(text),
            size=size,
            color=colour,
            ha=align,
            va="baseline",
            parse_math=False,
        )

    def fill_box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        colour: str,
        *,
        rounding: float = 0,
        alpha: float = 1,
    ) -> None:
        """Fill a box whose top left corner is (x, y); ``rounding`` is the radius of its corners."""
        from matplotlib.patches import FancyBboxPatch

        shape = f"round,pad=0,rounding_size={rounding}" if rounding else "square,pad=0"
        self._axes.add_patch(
            FancyBboxPatch((x, y), width, height, boxstyle=shape, facecolor=colour, alpha=alpha, linewidth=0)
        )

    def draw_lines(
        self, lines: Sequence[Float[np.ndarray, "_ 2"]], colour: str, width: float, *, alpha: float = 1
    ) -> None:
        """Draw lines through points (x, y), ``width`` pixels wide."""
        from matplotlib.collections import LineCollection

        self._axes.add_collection(
            LineCollection(
                lines, colors=colour, linewidths=width, alpha=alpha, capstyle="round", joinstyle="round"
            ),
            autolim=False,
        )

    def hatch_areas(
        self,
        areas: Sequence[tuple[Float[np.ndarray, "_ 2"], UInt8[np.ndarray, " _"]]],
        colour: str,
        pattern: str,
    ) -> None:
        """Hatch areas, given as points (x, y) and matplotlib's path codes, in one of its patterns."""
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path as Outline

        for points, codes in areas:
            patch = PathPatch(Outline(points, codes), fill=False, hatch=pattern, linewidth=0)
            patch.set_edgecolor(colour)
            self._axes.add_patch(patch)

    def draw_scale_bar(self, left: int, top: int, width: int, height: int, mpp: float, size: float) -> None:
        """Draw a scale bar on a pale ground at the lower left of a box, unless the box is too small for it.

        The bar has a round length, at most a quarter of the box's width. The box has ``mpp`` µm per pixel;
        ``size`` is the text's.
        """
        um = round_length(width * mpp / 4)
        length = um / mpp
        label = f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"
        wide, high = round(max(length, measure_text(label, size)) + 28), 52
        if wide + 24 > width or high + 24 > height:
            return
        x, y = left + 12, top + height - 12 - high
        self.fill_box(x, y, wide, high, "white", rounding=8, alpha=0.88)
        self.write_text(x + wide / 2, y + 25, label, size, align="center")
        self.fill_box(round(x + (wide - length) / 2), y + 37, round(length), 5, INK)

    def save(self, path: Path, info: PngInfo | None = None) -> None:
        """Write the picture as PNG, with chunks of information besides.

        Raises:
            OutputError: The file cannot be written.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        renderer = FigureCanvasAgg(self._figure).get_renderer()
        # The pixels are copied into the canvas: matplotlib would take a third of the time to draw them.
        canvas = np.asarray(renderer.buffer_rgba())
        canvas[..., :3], canvas[..., 3] = self._pixels, 255
        self._figure.draw(renderer)
        with replace_atomically(path) as part:
            image = Image.fromarray(canvas[..., :3])
            image.save(part, format="PNG", compress_level=_COMPRESSION, pnginfo=info)


def round_length(at_most: float) -> float:
    """Find the largest of …, 1, 2, 5, 10, 20, 50, … that is not above ``at_most`` (> 0)."""
    power = 10.0 ** np.floor(np.log10(at_most))
    return float(max(step for step in (1, 2, 5) if step * power <= at_most * (1 + 1e-9)) * power)


def measure_text(text: str, size: float) -> float:
    """Measure one line of text, in pixels."""
    from matplotlib.font_manager import FontProperties

    font = FontProperties(family="DejaVu Sans", size=size)
    return float(
        _make_renderer().get_text_width_height_descent(replace_missing_letters(text), font, False)[0]
    )


def fit_text(text: str, size: float, width: float) -> str:
    """Shorten one line of text, with an ellipsis, until it is no wider than ``width`` pixels."""
    if measure_text(text, size) <= width:
        return text
    while text and measure_text(text + "…", size) > width:
        text = text[:-1]
    return text + "…"


def replace_missing_letters(text: str) -> str:
    """Replace each letter that the font lacks, and would draw as an empty box, by a question mark."""
    return "".join(letter if ord(letter) in _list_letters() else "?" for letter in text)


@cache
def _make_renderer() -> "RendererAgg":
    """Make the renderer that measures text."""
    from matplotlib.backends.backend_agg import RendererAgg

    return RendererAgg(1, 1, _DPI)


@cache
def _list_letters() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())
