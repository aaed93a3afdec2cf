"""The overlay picture: a slide beside its segmentation, with a legend and scale bars."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt, UInt8
from PIL import Image

from fseg_jax.outputs.areas import count_decimals
from fseg_jax.outputs.colours import format_hex
from fseg_jax.outputs.labels import resample_nearest
from fseg_jax.outputs.lettering import Lettering, fit_text, measure_text
from fseg_jax.outputs.outlines import Outline, draw_key, draw_outlines
from fseg_jax.outputs.style import FAINT, RULE, use_style

# Pixels of the picture.
_MAX_SIDE = 2400
_MARGIN, _GAP = 36, 28  # around the picture; between the panels
_ROW, _SWATCH = 30, 20  # height of a row of the legend; side of its coloured square
_TITLE, _TEXT = 32, 18  # height of letters
_CAPTION = _TEXT + 14  # height of a panel's caption
_FOOT = 4 * _ROW  # height of the legend's last rows, which are not clusters

_MAX_ENLARGEMENT = 8
_MAX_COLUMNS, _MIN_LINES = 2, 10  # of the legend
_MAX_NAME = 26  # letters
_FRAME = (218, 220, 226)
# Panels are easier to compare side by side: they are stacked only if they get larger by this factor.
_MIN_GAIN = 1.3
_BORDER_COLOUR = (28, 30, 36)
# Opacity of the lines between clusters, and the share of pixels on lines above which it is reduced.
_BORDER_OPACITY, _MAX_BORDER_SHARE = 0.75, 0.14


def write_overlay(
    path: str | os.PathLike[str],
    image: UInt8[np.ndarray, "h w 3"],
    labels: UInt[np.ndarray, "label_rows label_columns"],
    *,
    names: Sequence[str],
    colours: UInt8[np.ndarray, "k 3"],
    areas_mm2: Sequence[float],
    step_mm2: float,
    mpp: float,
    title: str,
    outlines: Sequence[Outline] = (),
    alpha: float = 0.55,
) -> None:
    """Draw a slide beside its segmentation, with the clusters' names and areas and scale bars.

    The picture's longer side has 900 to 2400 pixels.

    Args:
        path: The file, a PNG.
        image: The whole slide.
        labels: Labels of the whole slide, at any resolution; 0 is background.
        names: Names of the k clusters.
        colours: Colours of the clusters.
        areas_mm2: (k,), areas of the clusters.
        step_mm2: The least area that the method tells apart, which the legend says where it shows.
        mpp: µm per pixel of the image.
        title: The picture's title.
        outlines: What is outlined over the slide: its tissue, artefacts.
        alpha: Opacity of the colours.

    Raises:
        OutputError: The file cannot be written.
    """
    with use_style():
        legend = _Legend.make(names, colours, np.asarray(areas_mm2, float), step_mm2)
        layout = _Layout.make(image.shape[:2], legend)
        height, width = layout.panel
        resampling = Image.Resampling.LANCZOS if image.shape[1] > width else Image.Resampling.BICUBIC
        slide = np.asarray(Image.fromarray(image).resize((width, height), resampling))
        segmentation = tint(slide, resample_nearest(labels, layout.panel), colours, alpha)
        canvas = np.full((*layout.canvas, 3), 255, np.uint8)
        for (y, x), panel in zip(layout.corners, (slide, segmentation), strict=True):
            canvas[y - 1 : y + height + 1, x - 1 : x + width + 1] = _FRAME
            canvas[y : y + height, x : x + width] = panel
        lettering = Lettering(canvas)
        title = fit_text(title, _TITLE, layout.canvas[1] - 2 * _MARGIN)
        lettering.write_text(_MARGIN, _MARGIN + 24, title, _TITLE)
        panel_mpp = mpp * image.shape[1] / width
        draw_outlines(lettering, outlines, layout.corners[0], panel_mpp)
        y, x = layout.corners[0]
        indent = round(measure_text("Slide", _TEXT)) + 24
        draw_key(lettering, outlines, x + indent, y - 11, width - indent, _TEXT)
        for (y, x), caption in zip(layout.corners, ("Slide", "Segmentation"), strict=True):
            lettering.write_text(x, y - 11, caption, _TEXT, FAINT)
            lettering.draw_scale_bar(x, y, width, height, panel_mpp, _TEXT)
        _draw_legend(lettering, legend, layout)
        lettering.save(Path(path))


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


class _Row(NamedTuple):
    """A cluster in the legend.

    Attributes:
        colour: Its colour, in hexadecimal digits.
        name: Its name, shortened.
        area: Its area in mm².
        area_text: Its area, as it is written.
        share_text: Its share of the tissue, as it is written.
    """

    colour: str
    name: str
    area: float
    area_text: str
    share_text: str


class _Legend(NamedTuple):
    """The content of the legend.

    Attributes:
        rows: A row for each cluster on the slide, in order.
        absent: Number of clusters that are not on the slide.
        decimals: Decimals of areas.
        step_text: The least step of areas, where that is more than their last digit.
        share_width: Pixels of the widest share.
        column: Pixels of a column of the legend.
    """

    rows: list[_Row]
    absent: int
    decimals: int
    step_text: str
    share_width: int
    column: int

    @classmethod
    def make(cls, names: Sequence[str], colours: np.ndarray, areas: np.ndarray, step_mm2: float) -> "_Legend":
        """Make the legend of k clusters with areas in mm²."""
        total = float(areas.sum())
        decimals = min(2 if areas.max(initial=0) >= 10 else 3, count_decimals(step_mm2))
        step_text = f"in steps of {step_mm2:.1g} mm²" if step_mm2 > 10.0**-decimals else ""
        rows = []
        for name, colour, area in zip(names, colours, areas.tolist(), strict=True):
            if area > 0:
                short_name = name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"
                area_text = _format_number(area, decimals)
                share_text = _format_number(100 * area / total, 1) + " %"
                rows.append(_Row(format_hex(colour), short_name, area, area_text, share_text))
        widest = max(
            [measure_text(row.name, _TEXT) for row in rows]
            + [measure_text("999 not on this slide", _TEXT) - _SWATCH]
        )
        area_width = round(
            max(measure_text("<0.000", _TEXT), measure_text(_format_number(total, decimals), _TEXT))
        )
        share_width = round(measure_text("100.0 %", _TEXT))
        column = round(_SWATCH + 12 + widest + 14) + area_width + 18 + share_width
        return cls(rows, len(names) - len(rows), decimals, step_text, share_width, column)


class _Layout(NamedTuple):
    """Where things are drawn, in pixels of the picture.

    Attributes:
        canvas: (height, width) of the picture.
        panel: (height, width) of a panel.
        corners: (y, x) of the two panels.
        legend: (y, x) of the legend.
        columns: Columns of the legend.
        lines: Rows of a column.
    """

    canvas: tuple[int, int]
    panel: tuple[int, int]
    corners: tuple[tuple[int, int], tuple[int, int]]
    legend: tuple[int, int]
    columns: int
    lines: int

    @classmethod
    def make(cls, shape: tuple[int, ...], legend: _Legend) -> "_Layout":
        """Lay out the panels side by side, or stacked where they get much larger, left of the legend.

        ``shape`` is the (height, width) of the image.
        """
        side_by_side, stacked = (cls._arrange(shape, legend, down) for down in (1, 2))
        return stacked if stacked.panel[0] > _MIN_GAIN * side_by_side.panel[0] else side_by_side

    @classmethod
    def _arrange(cls, shape: tuple[int, ...], legend: _Legend, down: int) -> "_Layout":
        """Lay out two panels in ``down`` rows, as large as they and the legend fit in the picture."""
        h, w = shape
        across = 3 - down
        top = _MARGIN + _TITLE + 12 + _CAPTION
        for columns in range(1, _MAX_COLUMNS + 1):
            legend_width = columns * legend.column + (columns - 1) * _MARGIN
            other_width = 2 * _MARGIN + (across - 1) * _GAP + _MARGIN + legend_width  # all but the panels
            between = (down - 1) * (_GAP + _CAPTION)
            scale = min(
                (_MAX_SIDE - other_width) / (across * w),
                (_MAX_SIDE - top - between - _MARGIN) / (down * h),
                _MAX_ENLARGEMENT,
            )
            panel = (max(1, int(h * scale)), max(1, int(w * scale)))
            panels_height = down * panel[0] + between
            lines = max(_MIN_LINES, (panels_height - _FOOT) // _ROW)
            if columns * lines >= len(legend.rows):
                lines = -(-len(legend.rows) // columns)
                break
        canvas = (
            top + max(panels_height, lines * _ROW + _FOOT) + _MARGIN,
            other_width + across * panel[1],
        )
        second = (top, _MARGIN + panel[1] + _GAP) if down == 1 else (top + panel[0] + between, _MARGIN)
        corner = (top, canvas[1] - _MARGIN - legend_width)
        return cls(canvas, panel, ((top, _MARGIN), second), corner, columns, lines)


def _draw_legend(lettering: Lettering, legend: _Legend, layout: _Layout) -> None:
    """Draw the legend; where it has too many rows, the smallest clusters are summed up in one."""
    rows, more = legend.rows, 0
    if len(rows) > layout.columns * layout.lines:
        rows = sorted(rows, key=lambda row: -row.area)
        more = len(rows) - (layout.columns * layout.lines - 1)
    top, left = layout.legend
    for column in range(layout.columns):
        x = left + column * (legend.column + _MARGIN)
        share_right = x + legend.column
        area_right = share_right - legend.share_width - 18
        lettering.write_text(x, top - 11, "Cluster", _TEXT, FAINT)
        lettering.write_text(area_right, top - 11, "mm²", _TEXT, FAINT, "right")
        lettering.write_text(share_right, top - 11, "share", _TEXT, FAINT, "right")
        lettering.fill_box(x, top, legend.column, 2, RULE)
        y = top + 8
        for row in rows[: len(rows) - more][column * layout.lines : (column + 1) * layout.lines]:
            lettering.fill_box(x, y + 5, _SWATCH, _SWATCH, row.colour, rounding=5)
            lettering.write_text(x + _SWATCH + 12, y + 22, row.name, _TEXT)
            lettering.write_text(area_right, y + 22, row.area_text, _TEXT, align="right")
            lettering.write_text(share_right, y + 22, row.share_text, _TEXT, FAINT, "right")
            y += _ROW
    if more:
        area = _format_number(sum(row.area for row in rows[-more:]), legend.decimals)
        lettering.write_text(x + _SWATCH + 12, y + 22, f"and {more} more", _TEXT, FAINT)
        lettering.write_text(area_right, y + 22, area, _TEXT, FAINT, "right")
        y += _ROW
    lettering.fill_box(x, y + 6, legend.column, 2, RULE)
    tissue = _format_number(sum(row.area for row in rows), legend.decimals)
    lettering.write_text(x, y + 32, "All clusters", _TEXT)
    lettering.write_text(area_right, y + 32, tissue, _TEXT, align="right")
    if rows:
        lettering.write_text(share_right, y + 32, "100 %", _TEXT, FAINT, "right")
    notes = [legend.step_text, f"{legend.absent} not on this slide" if legend.absent else ""]
    for line, note in enumerate(filter(None, notes), 1):
        lettering.write_text(x, y + 32 + line * _ROW, note, _TEXT, FAINT)


def _format_number(value: float, decimals: int) -> str:
    """Format a number with a fixed number of decimals; one that would be rounded to 0 as ``<0.01``."""
    least = 10.0**-decimals
    return f"<{least:.{decimals}f}" if 0 < value < least / 2 else f"{value:.{decimals}f}"
