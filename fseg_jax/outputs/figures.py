"""What pathologists look at: the slide beside its segmentation, with legend and scale bar; areas as CSV."""

import os
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fseg_jax.files.atomic import replacing
from fseg_jax.outputs.csv_table import csv_text

_LONGEST = 2400
_MOST_ENLARGED = 8
_MARGIN, _GAP = 36, 28
_ROW, _SWATCH = 30, 20
_TITLE, _TEXT = 36, 20
_INK, _FAINT, _RULE = (28, 30, 36), (105, 110, 120), (218, 220, 226)
_MOST_COLUMNS = 2
_LONGEST_NAME = 26
_FEWEST_LINES = 10
# People compare from left to right: the panels lie above each other only where they grow by this much.
_STACKING_PAYS = 1.3
# Where borders are so dense that they would hide what they enclose, they fade.
_BORDER, _BORDER_COVER = 0.75, 0.14
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
    canvas = Image.new("RGB", layout.canvas[::-1], "white")
    draw = ImageDraw.Draw(canvas)
    _write(draw, (_MARGIN, _MARGIN + 24), _fitted(title, _TITLE, layout.canvas[1] - 2 * _MARGIN), size=_TITLE)
    panels = (slide, segmentation)
    for (y, x), caption, pixels in zip(layout.corners, ("Slide", "Segmentation"), panels, strict=True):
        _write(draw, (x, y - 11), caption, _FAINT)
        canvas.paste(Image.fromarray(pixels), (x, y))
        _draw_scale_bar(canvas, (y, x), layout.panel, mpp * image.shape[1] / width)
        draw.rectangle((x - 1, y - 1, x + width, y + height), outline=_RULE)
    _draw_legend(draw, legend, layout)
    with replacing(path) as part:
        canvas.save(part, format="PNG")


_AREAS = ("cluster", "name", "colour", "pixels", "area_mm2", "share")


def write_areas(
    path: str | os.PathLike[str], names: Sequence[str], pixels: np.ndarray, mpp: float, *, colours: np.ndarray
) -> None:
    """Write how much tissue each cluster covers as CSV: cluster, name, colour, pixels, area_mm2, share.

    ``pixels`` is int (k + 1,), per label from background on, of ``mpp`` µm; ``share`` is of all that is not
    background. Raises InputError where the file cannot be written.
    """
    tissue = max(1, int(pixels[1:].sum()))
    rows = [
        {
            "cluster": label,
            "name": name,
            "colour": "#" + "".join(f"{int(v):02x}" for v in colour),
            "pixels": count,
            "area_mm2": f"{count * mpp**2 * 1e-6:.6f}",
            "share": f"{count / tissue:.6f}",
        }
        for label, (name, colour) in enumerate(zip(names, colours, strict=True), 1)
        for count in [int(pixels[label])]
    ]
    with replacing(path) as part:
        part.write_text(csv_text(_AREAS, rows), encoding="utf-8")


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
    mixed = np.where(edge[..., None], (1 - strength) * mixed + strength * np.array(_INK, np.float32), mixed)
    return mixed.round().astype(np.uint8)


class _Row(NamedTuple):
    colour: tuple[int, ...]
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
                    _Row(tuple(map(int, colour)), shown, area, number, _number(100 * area / total, 1) + " %")
                )
        widest = max([_length(row.name) for row in rows] + [_length("999 not on this slide") - _SWATCH])
        area_width = round(max(_length("<0.000"), _length(_number(total, decimals))))
        share_width = round(_length("100.0 %"))
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


def _draw_legend(draw: ImageDraw.ImageDraw, legend: _Legend, layout: _Layout) -> None:
    shown, more = legend.rows, 0
    if len(shown) > layout.columns * layout.lines:
        shown = sorted(shown, key=lambda row: -row.area)
        more = len(shown) - (layout.columns * layout.lines - 1)
    top, left = layout.legend
    for column in range(layout.columns):
        x = left + column * (legend.column + _MARGIN)
        share_right = x + legend.column
        area_right = share_right - legend.share_width - 18
        _write(draw, (x, top - 11), "Cluster", _FAINT)
        _write(draw, (area_right, top - 11), "mm²", _FAINT, align="right")
        _write(draw, (share_right, top - 11), "share", _FAINT, align="right")
        draw.line((x, top, share_right, top), _RULE, 2)
        y = top + 8
        for row in shown[: len(shown) - more][column * layout.lines : (column + 1) * layout.lines]:
            draw.rounded_rectangle((x, y + 5, x + _SWATCH, y + 5 + _SWATCH), 5, row.colour)
            _write(draw, (x + _SWATCH + 12, y + 22), row.name)
            _write(draw, (area_right, y + 22), row.shown_area, align="right")
            _write(draw, (share_right, y + 22), row.share, _FAINT, align="right")
            y += _ROW
    if more:
        area = _number(sum(row.area for row in shown[-more:]), legend.decimals)
        _write(draw, (x + _SWATCH + 12, y + 22), f"and {more} more", _FAINT)
        _write(draw, (area_right, y + 22), area, _FAINT, align="right")
        y += _ROW
    draw.line((x, y + 6, share_right, y + 6), _RULE, 2)
    _write(draw, (x, y + 32), "Tissue")
    _write(
        draw, (area_right, y + 32), _number(sum(row.area for row in shown), legend.decimals), align="right"
    )
    if legend.absent:
        _write(draw, (x, y + 32 + _ROW), f"{legend.absent} not on this slide", _FAINT)


def _number(value: float, decimals: int) -> str:
    least = 10.0**-decimals
    return f"<{least:.{decimals}f}" if 0 < value < least / 2 else f"{value:.{decimals}f}"


def _draw_scale_bar(canvas: Image.Image, corner: tuple[int, int], panel: tuple[int, int], mpp: float) -> None:
    """A bar of a round length, at most a quarter of the panel, on a pale ground at its lower left."""
    um = round_length(panel[1] * mpp / 4)
    length = um / mpp
    text = f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"
    width, height = round(max(length, _length(text)) + 28), 52
    if width + 24 > panel[1] or height + 24 > panel[0]:
        return
    x, y = corner[1] + 12, corner[0] + panel[0] - 12 - height
    ground = Image.new("L", (width, height), 0)
    ImageDraw.Draw(ground).rounded_rectangle((0, 0, width - 1, height - 1), 8, 225)
    canvas.paste((255, 255, 255), (x, y), ground)
    draw = ImageDraw.Draw(canvas)
    _write(draw, (x + (width - _length(text)) / 2, y + 25), text)
    draw.rectangle((x + (width - length) / 2, y + 37, x + (width + length) / 2, y + 42), _INK)


def round_length(at_most: float) -> float:
    """The largest of …, 1, 2, 5, 10, 20, 50, … that is not above ``at_most`` (> 0)."""
    power = 10.0 ** np.floor(np.log10(at_most))
    return float(max(step for step in (1, 2, 5) if step * power <= at_most * (1 + 1e-9)) * power)


def _nearest(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    y, x = ((np.arange(n) + 0.5) * size / n for n, size in zip(shape, labels.shape, strict=True))
    return labels[y.astype(int)[:, None], x.astype(int)[None]]


# Pillow's own font is at hand on every machine, but draws little more than ASCII: µ and ² are put together
# from its u and its 2, accents are dropped, and what is left becomes a question mark.
@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, so pictures cannot be lettered")
    return font


_DRAWN = frozenset("…“”‘’«»°±·µ²") | {chr(code) for code in range(32, 127)}
_SPOKEN = {
    "μ": "µ",
    "–": "-",
    "—": "-",
    "−": "-",
    "×": "x",
    "ß": "ss",
    "ø": "o",
    "Ø": "O",
    "æ": "ae",
    "ł": "l",
}


def _drawable(text: str) -> str:
    text = "".join(_SPOKEN.get(c, c) for c in text)
    plain = (
        c if c in _DRAWN else "".join(d for d in unicodedata.normalize("NFKD", c) if d in _DRAWN) or "?"
        for c in text
    )
    return "".join(plain)


def _length(text: str, size: int = _TEXT) -> float:
    parts = re.split("(²)", _drawable(text).replace("µ", "u"))
    return sum(
        _font(size * 5 // 8 if part == "²" else size).getlength(part.replace("²", "2")) for part in parts
    )


@cache
def _micro(size: int) -> Image.Image:
    """µ as a mask whose baseline lies at row ``size``: a u whose first stem goes on below the line."""
    mask = Image.new("L", (size, 2 * size), 0)
    ImageDraw.Draw(mask).text((0, size), "u", 255, _font(size), anchor="ls")
    rows = np.array(mask)
    across = rows[size - size // 4]
    stem = across * (np.cumsum(np.diff(across > 0, prepend=False)) < 2)
    rows[size - size // 4 : size + size // 4] = np.maximum(rows[size - size // 4 : size + size // 4], stem)
    return Image.fromarray(rows)


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    ink: tuple[int, int, int] = _INK,
    *,
    size: int = _TEXT,
    align: str = "left",
) -> None:
    """Write one line at (x, y) of its baseline."""
    x, y = at
    if align == "right":
        x -= _length(text, size)
    for part in re.split("([µ²])", _drawable(text)):
        if part == "²":
            draw.text((x, y - 0.34 * size), "2", ink, _font(size * 5 // 8), anchor="ls")
        elif part == "µ":
            draw.bitmap((round(x), round(y) - size), _micro(size), ink)
        else:
            draw.text((x, y), part, ink, _font(size), anchor="ls")
        x += _length(part, size)


def _fitted(text: str, size: int, width: float) -> str:
    if _length(text, size) <= width:
        return text
    while text and _length(text + "…", size) > width:
        text = text[:-1]
    return text + "…"
