"""A codebook's card: what its clusters look like, how large they are, and which of them to distrust.

A folder with ``index.html`` (opens from a file, in any browser), ``inertia.png``, a contact sheet ``k64.png``
for each k, and ``card.json``, the same in numbers.
"""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fseg_jax.errors import OutputError
from fseg_jax.outputs.colours import format_hex, make_palette
from fseg_jax.outputs.lettering import Lettering
from fseg_jax.outputs.style import FAINT, OKABE_ITO, save_figure, use_style

# A cluster is called collapsed below this share of an even one, or this near to another (of the median
# distance between centres and their nearest ones).
COLLAPSED_SIZE, COLLAPSED_DISTANCE = 0.02, 0.05
# A cluster is called one site's or one slide's from this share on, where that of all rows is half as much at
# most, and where it has rows enough to say so.
OWNED, EXPECTED, FEWEST = 0.9, 0.5, 5
_TILE, _GAP, _MARGIN, _LABEL = 96, 4, 20, 150
_WARN = "#b23c14"
_TALLEST = 40  # clusters in a column of a contact sheet


class Warning(NamedTuple):
    """``kind`` is ``collapsed``, ``site`` or ``slide``; ``cluster`` counts from 1."""

    cluster: int
    kind: str
    text: str


class KCard(NamedTuple):
    """One k: ``nearest`` are pictures, uint8 (96, 96, 3), and ``names`` the slides they are of, nearest
    first.
    """

    k: int
    inertia: float
    iterations: int
    counts: np.ndarray
    nearest: list[list[np.ndarray]]
    names: list[list[str]]
    warnings: list[Warning]


class Card(NamedTuple):
    """A codebook file: ``unit`` is ``tiles`` or ``tokens``."""

    title: str
    unit: str
    rows: int
    slides: int
    failed: int
    settings: dict[str, Any]
    of_k: list[KCard]


def find_warnings(
    centers: np.ndarray,
    labels: np.ndarray,
    slides: np.ndarray,
    slide_ids: Sequence[str],
    sites: Sequence[str],
) -> list[Warning]:
    """What to distrust: clusters collapsed, and clusters that are one site or one slide.

    ``labels`` int (n,) from 0, ``slides`` int (n,) says which of ``slide_ids`` each row is of, and ``sites``
    (as many as slide ids) where that slide is from, empty if unknown.
    """
    k, n = len(centers), len(labels)
    counts = np.bincount(labels, minlength=k)
    found = []
    if k > 1:
        squares = (centers.astype(np.float64) ** 2).sum(1)
        products = centers.astype(np.float64) @ centers.T.astype(np.float64)
        apart = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * products, 0))
        np.fill_diagonal(apart, np.inf)
        nearest = apart.argmin(1)
        close = apart.min(1) <= COLLAPSED_DISTANCE * np.median(apart.min(1))
        for j in range(k):
            if counts[j] < max(2, COLLAPSED_SIZE * n / k):
                found.append(Warning(j + 1, "collapsed", f"has {counts[j]} of {n}"))
            elif close[j]:
                found.append(Warning(j + 1, "collapsed", f"coincides with cluster {nearest[j] + 1}"))
    known = np.array(sites, dtype=object)
    for kind, names, of_row in (
        ("site", known, known[slides]),
        ("slide", np.array(slide_ids, dtype=object), np.array(slide_ids, dtype=object)[slides]),
    ):
        values = sorted({name for name in names if name})
        if len(values) < 2:
            continue
        index = {name: i for i, name in enumerate(values)}
        column = np.array([index.get(name, len(values)) for name in of_row])
        table = np.zeros((k, len(values) + 1), np.int64)
        np.add.at(table, (labels, column), 1)
        overall = table.sum(0) / n
        most = table[:, :-1].argmax(1)
        for j in np.flatnonzero(counts >= FEWEST).tolist():
            share = table[j, most[j]] / counts[j]
            if share >= OWNED and overall[most[j]] <= EXPECTED * share:
                who = values[most[j]]
                text = f"{share:.0%} from the {kind} {who}, which has {overall[most[j]]:.0%} of all"
                found.append(Warning(j + 1, kind, text))
    return sorted(found)


def write_card(folder: Path, card: Card) -> None:
    """Write a codebook's card, a folder that is not there yet. Raises ``OutputError`` where it cannot be."""
    try:
        folder.mkdir(parents=True)
        _write_curve(folder / "inertia.png", card)
        for of_k in card.of_k:
            _write_contact_sheet(folder / f"k{of_k.k}.png", of_k, card.unit)
        (folder / "card.json").write_text(_numbers(card), encoding="utf-8")
        (folder / "index.html").write_text(_page(card), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error})") from error


def _write_curve(path: Path, card: Card) -> None:
    """Draw inertia a row over k: where it stops falling, more clusters say little more."""
    from matplotlib.figure import Figure

    k = [of_k.k for of_k in card.of_k]
    with use_style():
        figure = Figure(figsize=(4.8, 2.7), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(k, [of_k.inertia / card.rows for of_k in card.of_k], "o-", color=OKABE_ITO[0])
        axes.set_xscale("log", base=2)
        axes.set_xticks(k, [str(value) for value in k])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("clusters, k")
        axes.set_ylabel(f"mean squared distance\nof {card.unit} to their centre")
        save_figure(figure, path)


def _write_contact_sheet(path: Path, of_k: KCard, unit: str) -> None:
    """Draw the nearest tiles of each cluster in a line, with its colour, number and share."""
    most = max(len(tiles) for tiles in of_k.nearest)
    columns = -(-of_k.k // _TALLEST)
    lines = -(-of_k.k // columns)
    width = _LABEL + most * (_TILE + _GAP)
    height = 2 * _MARGIN + 44 + lines * (_TILE + _GAP)
    sheet = np.full((height, _MARGIN + columns * (width + _MARGIN), 3), 255, np.uint8)
    corners = [
        (_MARGIN + column * (width + _MARGIN), _MARGIN + 44 + line * (_TILE + _GAP))
        for column, line in (divmod(j, lines) for j in range(of_k.k))
    ]
    for (x, y), tiles in zip(corners, of_k.nearest, strict=True):
        for i, tile in enumerate(tiles):
            left = x + _LABEL + i * (_TILE + _GAP)
            sheet[y : y + _TILE, left : left + _TILE] = tile
    total = max(1, int(of_k.counts.sum()))
    kinds = {warning.cluster: warning.kind for warning in of_k.warnings}
    with use_style():
        lettering = Lettering(sheet)
        lettering.write_text(_MARGIN, _MARGIN + 18, f"k = {of_k.k}: the {unit} nearest to each centre", 20)
        for j, (x, y) in enumerate(corners):
            colour = format_hex(make_palette(of_k.k)[j])
            lettering.fill_box(x, y + 6, 16, _TILE - 12, colour, rounding=5)
            lettering.write_text(x + 26, y + 34, f"cluster {j + 1}", 15)
            lettering.write_text(x + 26, y + 58, f"{100 * of_k.counts[j] / total:.2f} %", 15, FAINT)
            if kind := kinds.get(j + 1):
                label = {"site": "one site", "slide": "one slide"}.get(kind, kind)
                lettering.write_text(x + 26, y + 81, label, 13, _WARN)
        lettering.save(path)


def _numbers(card: Card) -> str:
    content = {
        **card._asdict(),
        "of_k": [
            {
                "k": of_k.k,
                "inertia": of_k.inertia,
                "iterations": of_k.iterations,
                "counts": of_k.counts.tolist(),
                "nearest_slides": of_k.names,
                "warnings": [warning._asdict() for warning in of_k.warnings],
            }
            for of_k in card.of_k
        ],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1e24; max-width: 70rem; margin: 2rem auto;
  padding: 0 1rem }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2.5rem; border-top: 1px solid #dadce2; padding-top: 1rem }
table { border-collapse: collapse }
td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top }
.over th, td.n { text-align: right } td.n { font-variant-numeric: tabular-nums } .faint { color: #696e78 }
.warn { background: #fdf1e7; border-left: 4px solid #d55e00; padding: .5rem 1rem } img { max-width: 100% }
.bar { display: inline-block; height: .8em; border-radius: 3px; vertical-align: baseline }
.sizes { columns: 16rem; font-size: .9rem; line-height: 1.5 }
"""


def _page(card: Card) -> str:
    title = html.escape(card.title)
    about = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in card.settings.items()
    )
    failed = f" {card.failed} slides failed and are not in it." if card.failed else ""
    table = "".join(
        "<tr>" + "".join(f'<td class="n">{cell}</td>' for cell in _line(o, card.rows)) + "</tr>"
        for o in card.of_k
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{_STYLE}</style>
<h1>{title}</h1>
<p>{card.rows:,} {card.unit} of {card.slides:,} slides.{failed}</p>
<img src="inertia.png" alt="Mean squared distance to the centre, over k" style="max-width: 38rem">
<table class="over"><tr><th>k</th><th>mean squared distance</th><th>largest cluster</th><th>smallest</th>
<th>passes</th><th>clusters to distrust</th></tr>{table}</table>
<h2>Made with</h2><table>{about}</table>
{"".join(_section(of_k, card) for of_k in card.of_k)}
</html>
"""


def _line(of_k: KCard, rows: int) -> tuple[str, ...]:
    """One k in the table that opens the page."""
    distrusted = len({warning.cluster for warning in of_k.warnings})
    return (
        f'<a href="#k{of_k.k}">{of_k.k}</a>',
        f"{of_k.inertia / rows:.5g}",
        f"{of_k.counts.max() / rows:.1%}",
        f"{of_k.counts.min() / rows:.2%}",
        str(of_k.iterations),
        str(distrusted or "none"),
    )


def _section(of_k: KCard, card: Card) -> str:
    warnings = ""
    if of_k.warnings:
        said = "".join(f"<li><b>cluster {w.cluster}</b> {html.escape(w.text)}</li>" for w in of_k.warnings)
        warnings = (
            '<div class="warn"><b>Look at these before you trust them.</b> A cluster that is one site or one '
            "slide is often its stain or its scanner; a collapsed one is a cluster too many."
            f"<ul>{said}</ul></div>"
        )
    largest = max(1, int(of_k.counts.max()))
    sizes = "".join(
        f'<div><span class="bar" style="width: {6 * count / largest:.2f}rem; '
        f'background: rgb({", ".join(map(str, colour))})"></span> cluster {j} '
        f'<span class="faint">{count:,} · {count / card.rows:.2%}</span></div>'
        for j, (colour, count) in enumerate(
            zip(make_palette(of_k.k).tolist(), of_k.counts.tolist(), strict=True), 1
        )
    )
    return f"""<h2 id="k{of_k.k}">k = {of_k.k}</h2>{warnings}
<p><a href="k{of_k.k}.png"><img src="k{of_k.k}.png" alt="Nearest {card.unit} of each cluster"></a></p>
<details><summary>Sizes</summary><div class="sizes">{sizes}</div></details>
"""
