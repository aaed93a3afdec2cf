"""The overlay picture: a slide beside its segmentation, with a legend and scale bars."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt, UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fseg_jax.outputs.labels import resample_nearest
from fseg_jax.outputs.legend import TEXT, Legend
from fseg_jax.outputs.lettering import Lettering, fit_text, measure_text
from fseg_jax.outputs.outlines import draw_key, draw_outlines
from fseg_jax.outputs.picture import CHUNK, Picture, decode_picture, encode_picture, find_chunk, read_picture
from fseg_jax.outputs.style import FAINT, use_style

# Pixels of the picture.
_MAX_SIDE = 2400
_MARGIN, _GAP = 36, 28  # around the picture; between the panels
_TITLE = 32  # height of letters
_CAPTION = TEXT + 14  # height of a panel's caption

_MAX_ENLARGEMENT = 8
_MAX_COLUMNS = 8  # of the legend
_FRAME = (218, 220, 226)
# Panels are easier to compare side by side: they are stacked only if they get larger by this factor.
_MIN_GAIN = 1.3
_GOOD = 0.95  # of the size of the largest panels: as good
_BORDER_COLOUR = (28, 30, 36)
# Opacity of the lines between clusters, and the share of pixels on lines above which it is reduced.
_BORDER_OPACITY, _MAX_BORDER_SHARE = 0.75, 0.14


def write_overlay(
    path: str | os.PathLike[str],
    picture: Picture,
    *,
    names: Sequence[str],
    colours: UInt8[np.ndarray, "k 3"],
    alpha: float = 0.55,
) -> None:
    """Draw a slide beside its segmentation, with the clusters' names, areas and places, and scale bars.

    The picture's longer side has 900 to 2400 pixels. The file carries ``picture`` with it, from which
    ``redraw_overlay`` draws it again in other names and colours.

    Args:
        path: The file, a PNG.
        picture: What is drawn.
        names: Names of the k clusters.
        colours: Colours of the clusters.
        alpha: Opacity of the colours.

    Raises:
        OutputError: The file cannot be written.
    """
    data = encode_picture(picture)
    # What is drawn is what the file carries, so that it is the same when it is drawn again.
    _draw(Path(path), decode_picture(data), data, names, colours, alpha)


def redraw_overlay(
    png: bytes, path: Path, *, names: Sequence[str], colours: UInt8[np.ndarray, "k 3"], alpha: float = 0.55
) -> None:
    """Draw a picture of ``write_overlay`` again in other names and colours.

    Args:
        png: The content of its file.
        path: The new file.
        names: Names of the k clusters.
        colours: Colours of the clusters.
        alpha: Opacity of the colours.

    Raises:
        ValueError: The file does not carry what it was drawn from, or that is damaged.
        OutputError: The new file cannot be written.
    """
    _draw(path, read_picture(png), find_chunk(png) or b"", names, colours, alpha)


def _draw(
    path: Path,
    picture: Picture,
    data: bytes,
    names: Sequence[str],
    colours: UInt8[np.ndarray, "k 3"],
    alpha: float,
) -> None:
    """Draw a picture, and write it with the data that it is drawn from."""
    image = picture.image
    with use_style():
        legend = Legend.make(
            names,
            colours,
            np.asarray(picture.areas_mm2, float),
            picture.step_mm2,
            picture.border_shares,
            picture.tiles,
            picture.field,
        )
        layout = _Layout.make(image.shape[:2], legend)
        height, width = layout.panel
        resampling = Image.Resampling.LANCZOS if image.shape[1] > width else Image.Resampling.BICUBIC
        slide = np.asarray(Image.fromarray(image).resize((width, height), resampling))
        segmentation = tint(slide, resample_nearest(picture.labels, layout.panel), colours, alpha)
        canvas = np.full((*layout.canvas, 3), 255, np.uint8)
        for (y, x), panel in zip(layout.corners, (slide, segmentation), strict=True):
            canvas[y - 1 : y + height + 1, x - 1 : x + width + 1] = _FRAME
            canvas[y : y + height, x : x + width] = panel
        lettering = Lettering(canvas)
        title = fit_text(picture.title, _TITLE, layout.canvas[1] - 2 * _MARGIN)
        lettering.write_text(_MARGIN, _MARGIN + 24, title, _TITLE)
        panel_mpp = picture.mpp * image.shape[1] / width
        draw_outlines(lettering, picture.outlines, layout.corners[0], panel_mpp)
        y, x = layout.corners[0]
        indent = round(measure_text("Slide", TEXT)) + 24
        draw_key(lettering, picture.outlines, x + indent, y - 11, width - indent, TEXT)
        for (y, x), caption in zip(layout.corners, ("Slide", "Segmentation"), strict=True):
            lettering.write_text(x, y - 11, caption, TEXT, FAINT)
            lettering.draw_scale_bar(x, y, width, height, panel_mpp, TEXT)
        legend.draw(lettering, canvas, *layout.legend, layout.columns)
        carried = PngInfo()
        carried.add(CHUNK, data, after_idat=True)
        lettering.save(path, carried)


def tint(
    image: UInt8[np.ndarray, "h w 3"],
    labels: UInt[np.ndarray, "h w"],
    colours: UInt8[np.ndarray, "k 3"],
    alpha: float,
) -> UInt8[np.ndarray, "h w 3"]:
    """Lay the clusters' colours over an image, with lines between clusters; background is not changed.

    ``alpha`` is the opacity of the colours, under which the image's texture stays visible.
    """
    covered = (labels > 0)[..., None]
    # Stain would shift the clusters' colours away from the legend's, so the image is made nearly grey.
    pixels = image.astype(np.float32)
    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    base = 255 - 0.7 * (255 - (0.25 * pixels + 0.75 * grey[..., None]))
    table = np.concatenate([np.zeros((1, 3)), colours]).astype(np.float32)
    mixed = np.where(covered, (1 - alpha) * base + alpha * table[labels], pixels)
    border = np.zeros(labels.shape, bool)
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    border[1:] |= down
    border[:-1] |= down
    border[:, 1:] |= across
    border[:, :-1] |= across
    # Where borders are dense they fade, so that they do not hide the clusters.
    opacity = np.float32(_BORDER_OPACITY * min(1.0, _MAX_BORDER_SHARE / max(float(border.mean()), 1e-9)))
    mixed[border] = (1 - opacity) * mixed[border] + opacity * np.array(_BORDER_COLOUR, np.float32)
    return np.asarray(mixed.round().astype(np.uint8))


class _Layout(NamedTuple):
    """Where things are drawn, in pixels of the picture.

    Attributes:
        canvas: (height, width) of the picture.
        panel: (height, width) of a panel.
        corners: (y, x) of the two panels.
        legend: (y, x) of the legend.
        columns: Columns of the legend.
    """

    canvas: tuple[int, int]
    panel: tuple[int, int]
    corners: tuple[tuple[int, int], tuple[int, int]]
    legend: tuple[int, int]
    columns: int

    @classmethod
    def make(cls, shape: tuple[int, ...], legend: Legend) -> "_Layout":
        """Lay out the panels side by side, or stacked where they get much larger, and the legend.

        The legend is beside the panels or below them, in as many columns as leave the panels largest; of
        layouts that are about as good, the smallest picture is taken. ``shape`` is the (height, width) of the
        image.
        """
        side_by_side, stacked = (
            _choose([
                layout
                for below in (False, True)
                for columns in range(1, _MAX_COLUMNS + 1)
                if (layout := cls._arrange(shape, legend, down, columns, below))
            ])
            for down in (1, 2)
        )  # fmt: skip
        return stacked if stacked.panel[0] > _MIN_GAIN * side_by_side.panel[0] else side_by_side

    @classmethod
    def _arrange(
        cls, shape: tuple[int, ...], legend: Legend, down: int, columns: int, below: bool
    ) -> "_Layout | None":
        """Lay out two panels in ``down`` rows, as large as they and the legend fit; None: it does not fit."""
        h, w = shape
        across = 3 - down
        top = _MARGIN + _TITLE + 12 + _CAPTION
        legend_height, legend_width = legend.measure(columns)
        beside = 0 if below else _MARGIN + legend_width
        under = _MARGIN + legend_height if below else 0
        between = (down - 1) * (_GAP + _CAPTION)
        frame = 2 * _MARGIN + (across - 1) * _GAP  # all of the width but the panels and the legend
        scale = min(
            (_MAX_SIDE - frame - beside) / (across * w),
            (_MAX_SIDE - top - between - under - _MARGIN) / (down * h),
            _MAX_ENLARGEMENT,
        )
        if scale <= 0:
            return None
        panel = (max(1, int(h * scale)), max(1, int(w * scale)))
        panels_height = down * panel[0] + between
        content = max(panels_height + under, 0 if below else legend_height)
        width = max(frame + beside + across * panel[1], 2 * _MARGIN + legend_width)
        canvas = (top + content + _MARGIN, width)
        if max(canvas) > _MAX_SIDE:
            return None
        second = (top, _MARGIN + panel[1] + _GAP) if down == 1 else (top + panel[0] + between, _MARGIN)
        corner = (top + panels_height + _MARGIN, _MARGIN) if below else (top, width - _MARGIN - legend_width)
        return cls(canvas, panel, ((top, _MARGIN), second), corner, columns)


def _choose(layouts: list[_Layout]) -> _Layout:
    """Choose the smallest picture among the layouts whose panels are about as large as any."""
    largest = max(layout.panel[0] for layout in layouts)
    good = [layout for layout in layouts if layout.panel[0] >= _GOOD * largest]
    return min(good, key=lambda layout: layout.canvas[0] * layout.canvas[1])
