"""What pathologists look at: the slide beside its segmentation, with legend and scale bar; areas as CSV."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from fseg_jax.outputs.colours import format_hex
from fseg_jax.outputs.lettering import Lettering, fit_text, measure_text
from fseg_jax.outputs.style import FAINT, RULE, use_style

_LONGEST = 2400
_MOST_ENLARGED = 8
_MARGIN, _GAP = 36, 28
_ROW, _SWATCH = 30, 20
_TITLE, _TEXT = 32, 18
_FRAME = (218, 220, 226)
_MOST_COLUMNS = 2
_LONGEST_NAME = 26
_FEWEST_LINES = 10
# People compare from left to right: the panels lie above each other only where they grow by this much.
_STACKING_PAYS = 1.3
# Where borders are so dense that they would hide what they enclose, they fade.
_BORDER, _BORDER_COVER = 0.75, 0.14
_BORDER_INK = (28, 30, 36)
_CAPTION = _TEXT + 14
_FOOT = 3 * _ROW


def write_overlay(
    path: str | os.PathLike[str],
    image: np.ndarray,
    labels: np.ndarray,
    *,
    names: Sequence[str],
    colours: np.ndarray,
    areas_mm2: Sequence[float],
    mpp: float,
    title: str,
    alpha: float = 0.55,
) -> None:
    """Draw the slide beside its segmentation, with the clusters' names and areas and a scale bar, as a PNG.

    ``image`` is uint8 (h, w, 3) with pixels of ``mpp`` µm; ``labels`` unsigned, of the same field at any
    resolution, 0 for background; ``names``, ``colours`` uint8 (k, 3) and ``areas_mm2`` (k,) are the clusters'
    1…k; ``alpha`` is how strongly they cover the slide. The picture's longer side has 900 to 2400 pixels.
    Raises InputError where the file cannot be written.
    """
    with use_style():
        legend = _Legend.of(names, colours, np.asarray(areas_mm2, float))
        layout = _Layout.of(image.shape[:2], legend)
        height, width = layout.panel
        finer = image.shape[1] > width
        slide = np.asarray(
            Image.fromarray(image).resize(
                (width, height), Image.Resampling.LANCZOS if finer else Image.Resampling.BICUBIC
            )
        )
        segmentation = tint(slide, _nearest(labels, layout.panel), colours, alpha)
        canvas = np.full((*layout.canvas, 3), 255, np.uint8)
        for (y, x), panel in zip(layout.corners, (slide, segmentation), strict=True):
            canvas[y - 1 : y + height + 1, x - 1 : x + width + 1] = _FRAME
            canvas[y : y + height, x : x + width] = panel
        lettering = Lettering(canvas)
        title = fit_text(title, _TITLE, layout.canvas[1] - 2 * _MARGIN)
        lettering.write_text(_MARGIN, _MARGIN + 24, title, _TITLE)
        for (y, x), caption in zip(layout.corners, ("Slide", "Segmentation"), strict=True):
            lettering.write_text(x, y - 11, caption, _TEXT, FAINT)
            lettering.draw_scale_bar(x, y, width, height, mpp * image.shape[1] / width, _TEXT)
        _draw_legend(lettering, legend, layout)
        lettering.save(Path(path))


def tint(image: np.ndarray, labels: np.ndarray, colours: np.ndarray, alpha: float) -> np.ndarray:
    """Lay the clusters' colours over an image whose texture stays readable, with lines between clusters.

    uint8 (h, w, 3), unsigned (h, w) and uint8 (k, 3) to uint8 (h, w, 3); background stays as it is.
    """
    covered = (labels > 0)[..., None]
    # Stain would shift the clusters' colours away from the legend's, so most of it goes; light and dark stay.
    pixels = image.astype(np.float32)
    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    base = 255 - 0.7 * (255 - (0.25 * pixels + 0.75 * grey[..., None]))
    table = np.concatenate([np.zeros((1, 3)), colours]).astype(np.float32)
    mixed = np.where(covered, (1 - alpha) * base + alpha * table[labels], pixels)
    edge = np.zeros(labels.shape, bool)
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    strength = np.float32(_BORDER * min(1.0, _BORDER_COVER / max(float(edge.mean()), 1e-9)))
    mixed[edge] = (1 - strength) * mixed[edge] + strength * np.array(_BORDER_INK, np.float32)
    return mixed.round().astype(np.uint8)


class _Row(NamedTuple):
    colour: str
    name: str
    area: float
    shown_area: str
    share: str


class _Legend(NamedTuple):
    """What the legend says: a row for each cluster on the slide, in order, and how many are not on it."""

    rows: list[_Row]
    absent: int
    decimals: int
    share_width: int
    column: int

    @classmethod
    def of(cls, names: Sequence[str], colours: np.ndarray, areas: np.ndarray) -> "_Legend":
        total = float(areas.sum())
        decimals = 2 if areas.max(initial=0) >= 10 else 3
        rows = []
        for name, colour, area in zip(names, colours, areas.tolist(), strict=True):
            if area > 0:
                shown = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
                number = _number(area, decimals)
                rows.append(
                    _Row(format_hex(colour), shown, area, number, _number(100 * area / total, 1) + " %")
                )
        widest = max(
            [measure_text(row.name, _TEXT) for row in rows]
            + [measure_text("999 not on this slide", _TEXT) - _SWATCH]
        )
        area_width = round(max(measure_text("<0.000", _TEXT), measure_text(_number(total, decimals), _TEXT)))
        share_width = round(measure_text("100.0 %", _TEXT))
        column = round(_SWATCH + 12 + widest + 14) + area_width + 18 + share_width
        return cls(rows, len(names) - len(rows), decimals, share_width, column)


class _Layout(NamedTuple):
    """Where things go: (height, width) of canvas and panel, (y, x) corners, columns × lines of legend."""

    canvas: tuple[int, int]
    panel: tuple[int, int]
    corners: tuple[tuple[int, int], tuple[int, int]]
    legend: tuple[int, int]
    columns: int
    lines: int

    @classmethod
    def of(cls, shape: tuple[int, ...], legend: _Legend) -> "_Layout":
        """The panels side by side, or stacked where that shows much more; the legend at their right."""
        beside, stacked = (cls._arranged(shape, legend, down) for down in (1, 2))
        return stacked if stacked.panel[0] > _STACKING_PAYS * beside.panel[0] else beside

    @classmethod
    def _arranged(cls, shape: tuple[int, ...], legend: _Legend, down: int) -> "_Layout":
        h, w = shape
        across = 3 - down
        top = _MARGIN + _TITLE + 12 + _CAPTION
        for columns in range(1, _MOST_COLUMNS + 1):
            side = columns * legend.column + (columns - 1) * _MARGIN
            beside = 2 * _MARGIN + (across - 1) * _GAP + _MARGIN + side
            between = (down - 1) * (_GAP + _CAPTION)
            scale = min(
                (_LONGEST - beside) / (across * w),
                (_LONGEST - top - between - _MARGIN) / (down * h),
                _MOST_ENLARGED,
            )
            panel = (max(1, int(h * scale)), max(1, int(w * scale)))
            tall = down * panel[0] + between
            lines = max(_FEWEST_LINES, (tall - _FOOT) // _ROW)
            if columns * lines >= len(legend.rows):
                lines = -(-len(legend.rows) // columns)
                break
        canvas = (top + max(tall, lines * _ROW + _FOOT) + _MARGIN, beside + across * panel[1])
        second = (top, _MARGIN + panel[1] + _GAP) if down == 1 else (top + panel[0] + between, _MARGIN)
        return cls(canvas, panel, ((top, _MARGIN), second), (top, canvas[1] - _MARGIN - side), columns, lines)


def _draw_legend(lettering: Lettering, legend: _Legend, layout: _Layout) -> None:
    shown, more = legend.rows, 0
    if len(shown) > layout.columns * layout.lines:
        shown = sorted(shown, key=lambda row: -row.area)
        more = len(shown) - (layout.columns * layout.lines - 1)
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
        for row in shown[: len(shown) - more][column * layout.lines : (column + 1) * layout.lines]:
            lettering.fill_box(x, y + 5, _SWATCH, _SWATCH, row.colour, rounding=5)
            lettering.write_text(x + _SWATCH + 12, y + 22, row.name, _TEXT)
            lettering.write_text(area_right, y + 22, row.shown_area, _TEXT, align="right")
            lettering.write_text(share_right, y + 22, row.share, _TEXT, FAINT, "right")
            y += _ROW
    if more:
        area = _number(sum(row.area for row in shown[-more:]), legend.decimals)
        lettering.write_text(x + _SWATCH + 12, y + 22, f"and {more} more", _TEXT, FAINT)
        lettering.write_text(area_right, y + 22, area, _TEXT, FAINT, "right")
        y += _ROW
    lettering.fill_box(x, y + 6, legend.column, 2, RULE)
    tissue = _number(sum(row.area for row in shown), legend.decimals)
    lettering.write_text(x, y + 32, "Tissue", _TEXT)
    lettering.write_text(area_right, y + 32, tissue, _TEXT, align="right")
    if legend.absent:
        lettering.write_text(x, y + 32 + _ROW, f"{legend.absent} not on this slide", _TEXT, FAINT)


def _number(value: float, decimals: int) -> str:
    least = 10.0**-decimals
    return f"<{least:.{decimals}f}" if 0 < value < least / 2 else f"{value:.{decimals}f}"


def _nearest(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    y, x = ((np.arange(n) + 0.5) * size / n for n, size in zip(shape, labels.shape, strict=True))
    return labels[y.astype(int)[:, None], x.astype(int)[None]]
