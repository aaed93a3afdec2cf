"""A codebook's card: what its clusters look like, how large they are, and warnings about them.

It is a folder with the page ``index.html``, the plot ``inertia.png``, a contact sheet for each k, such as
``k64.png``, and the numbers, ``card.json``.
"""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from fseg_jax.errors import OutputError
from fseg_jax.numerics.site_index import SiteIndex
from fseg_jax.outputs.areas import count_decimals
from fseg_jax.outputs.colours import format_hex, make_palette
from fseg_jax.outputs.lettering import Lettering, fit_text
from fseg_jax.outputs.style import FAINT, OKABE_ITO, save_figure, use_style

# A cluster is collapsed if it has fewer rows than this share of an even cluster, or if the distance from its
# centre to the nearest one is less than this share of the median of such distances.
COLLAPSED_SIZE, COLLAPSED_DISTANCE = 0.02, 0.05
# A cluster is of one site or slide if at least this share of its rows is, if it has at least so many rows,
# and if the site or slide has at most half of that share among all rows.
MIN_SHARE, MIN_ROWS, MAX_RATIO = 0.9, 5, 0.5
# A cluster is mostly glass or border if more than this share of its area is; it is flat if the grey values in
# its tokens have on average a smaller standard deviation.
MOSTLY, FLAT_CONTRAST = 0.5, 4.0
_TILE, _GAP, _MARGIN, _LABEL = 96, 4, 20, 150  # pixels of a contact sheet
_LABELS = {
    "site": "one site",
    "slide": "one slide",
    "glass": "mostly glass",
    "border": "mostly border",
}
_WARNING_COLOUR = "#b23c14"
_MAX_LINES = 40  # clusters in a column of a contact sheet


class RowFacts(NamedTuple):
    """What is known of rows of features, each (rows,).

    Attributes:
        glass: The share of its area that is no tissue.
        border: The share of its tokens that lie less than 40 µm from the tissue's border, or on glass.
        contrast: The standard deviation of the grey values in a token, of 255; of an average, their mean.
    """

    glass: Float[np.ndarray, " rows"]
    border: Float[np.ndarray, " rows"]
    contrast: Float[np.ndarray, " rows"]


def join_facts(parts: Sequence[RowFacts]) -> RowFacts:
    """Join the facts of rows, one below the other."""
    return RowFacts(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


class ClusterWarning(NamedTuple):
    """A reason to distrust a cluster.

    Attributes:
        cluster: The cluster's number, from 1.
        kind: ``collapsed``, ``site``, ``slide``, ``glass``, ``border`` or ``flat``.
        text: The reason.
    """

    cluster: int
    kind: str
    text: str


class KCard(NamedTuple):
    """The clustering for one k.

    Attributes:
        k: Number of clusters.
        inertia: Sum of squared distances to the centres.
        iterations: Passes over the rows.
        counts: (k,), rows of each cluster.
        nearest: For each cluster the tiles nearest to its centre, uint8 (96, 96, 3), nearest first.
        names: The slides of those tiles.
        warnings: Warnings about clusters.
        site: How far clusters follow the sites of slides; None: they cannot tell.
    """

    k: int
    inertia: float
    iterations: int
    counts: np.ndarray
    nearest: list[list[np.ndarray]]
    names: list[list[str]]
    warnings: list[ClusterWarning]
    site: SiteIndex | None = None


class Card(NamedTuple):
    """The content of a card.

    Attributes:
        title: The codebook's name.
        unit: What a row is: ``tiles`` or ``tokens``.
        rows: Number of rows that were clustered.
        slides: Number of slides that they are from.
        failed: Number of slides that failed.
        settings: What the codebook was made with, by its name in the table.
        of_k: The clustering for each k.
    """

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
    facts: RowFacts,
) -> list[ClusterWarning]:
    """Find clusters to distrust.

    A cluster is collapsed, or nearly all from one site or one slide. Or more than half of its area is glass;
    or more than half lies at the border of tissue; or its rows are so flat that they are of no tissue.

    Args:
        centers: (k, channels), the centres.
        labels: (rows,), each row's cluster, from 0.
        slides: (rows,), the index of each row's slide.
        slide_ids: Names of the slides.
        sites: The site of each slide; empty: unknown.
        facts: What is known of the rows.
    """
    k, n = len(centers), len(labels)
    counts = np.bincount(labels, minlength=k)
    warnings = []
    if k > 1:
        squares = (centers.astype(np.float64) ** 2).sum(1)
        products = centers.astype(np.float64) @ centers.T.astype(np.float64)
        distances = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * products, 0))
        np.fill_diagonal(distances, np.inf)
        nearest = distances.argmin(1)
        coincides = distances.min(1) <= COLLAPSED_DISTANCE * np.median(distances.min(1))
        for j in range(k):
            if counts[j] < max(2, COLLAPSED_SIZE * n / k):
                warnings.append(ClusterWarning(j + 1, "collapsed", f"has {counts[j]} of {n}"))
            elif coincides[j]:
                warnings.append(
                    ClusterWarning(j + 1, "collapsed", f"coincides with cluster {nearest[j] + 1}")
                )
    for kind, names in (("site", np.array(sites, object)), ("slide", np.array(slide_ids, object))):
        values = sorted({name for name in names if name})
        if len(values) < 2:
            continue
        index = {name: i for i, name in enumerate(values)}
        column = np.array([index.get(name, len(values)) for name in names[slides]])  # the last: unknown
        table = np.zeros((k, len(values) + 1), np.int64)
        np.add.at(table, (labels, column), 1)
        overall = table.sum(0) / n
        most = table[:, :-1].argmax(1)
        for j in np.flatnonzero(counts >= MIN_ROWS).tolist():
            share = table[j, most[j]] / counts[j]
            if share >= MIN_SHARE and overall[most[j]] <= MAX_RATIO * share:
                name = values[most[j]]
                text = f"{share:.0%} from the {kind} {name}, which has {overall[most[j]]:.0%} of all"
                warnings.append(ClusterWarning(j + 1, kind, text))
    return sorted(warnings + _find_no_tissue(labels, counts, facts))


def _find_no_tissue(labels: np.ndarray, counts: np.ndarray, facts: RowFacts) -> list[ClusterWarning]:
    """Find clusters that are mostly glass, mostly border, or flat."""
    glass, border, contrast = (
        np.bincount(labels, fact, minlength=len(counts)) / np.maximum(counts, 1) for fact in facts
    )
    warnings = []
    for j in np.flatnonzero(counts).tolist():
        if glass[j] > MOSTLY:
            warnings.append(ClusterWarning(j + 1, "glass", f"is mostly glass: {glass[j]:.0%} of its area"))
            continue
        if border[j] > MOSTLY:
            text = f"is mostly border: {border[j]:.0%} of it lies less than 40 µm from glass"
            warnings.append(ClusterWarning(j + 1, "border", text))
        if contrast[j] < FLAT_CONTRAST:
            text = f"is flat: its grey values vary by {contrast[j]:.1f} of 255, as glass or haze do"
            warnings.append(ClusterWarning(j + 1, "flat", text))
    return warnings


def write_card(folder: Path, card: Card) -> None:
    """Write a codebook's card to a folder, which must not exist yet.

    Raises:
        OutputError: The folder exists or cannot be written.
    """
    try:
        folder.mkdir(parents=True)
        _write_curve(folder / "inertia.png", card)
        for of_k in card.of_k:
            _write_contact_sheet(folder / f"k{of_k.k}.png", of_k, card.unit)
        (folder / "card.json").write_text(_format_json(card), encoding="utf-8")
        (folder / "index.html").write_text(_format_page(card), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error})") from error


def _write_curve(path: Path, card: Card) -> None:
    """Plot the inertia per row over k: where it stops falling, more clusters explain little more."""
    from matplotlib.figure import Figure

    k = [of_k.k for of_k in card.of_k]
    with use_style():
        figure = Figure(figsize=(4.8, 2.7), layout="constrained")
        axes = figure.add_subplot()
        distances = [of_k.inertia / card.rows for of_k in card.of_k]
        axes.plot(k, distances, "o-", color=OKABE_ITO[0], clip_on=False)
        axes.set_xscale("log", base=2)
        axes.set_xticks(k, [str(value) for value in k])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("clusters, k")
        axes.set_ylabel(f"mean squared distance\nof {card.unit} to their centre")
        save_figure(figure, path)


def _write_contact_sheet(path: Path, of_k: KCard, unit: str) -> None:
    """Draw for each cluster a line with its colour, number, share and nearest tiles."""
    most = max(len(tiles) for tiles in of_k.nearest)
    columns = -(-of_k.k // _MAX_LINES)
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
    decimals = min(2, count_decimals(100 / total))
    kinds = {warning.cluster: warning.kind for warning in reversed(of_k.warnings)}  # the first counts
    with use_style():
        lettering = Lettering(sheet)
        title = f"k = {of_k.k}: the {unit} nearest to each centre, and its share of {total:,} {unit}"
        lettering.write_text(_MARGIN, _MARGIN + 18, fit_text(title, 20, width), 20)
        for j, (x, y) in enumerate(corners):
            colour = format_hex(make_palette(of_k.k)[j])
            lettering.fill_box(x, y + 6, 16, _TILE - 12, colour, rounding=5)
            lettering.write_text(x + 26, y + 34, f"cluster {j + 1}", 15)
            lettering.write_text(x + 26, y + 58, f"{100 * of_k.counts[j] / total:.{decimals}f} %", 15, FAINT)
            if kind := kinds.get(j + 1):
                label = _LABELS.get(kind, kind)
                lettering.write_text(x + 26, y + 81, label, 13, _WARNING_COLOUR)
        lettering.save(path)


def _format_json(card: Card) -> str:
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
                "site": None if of_k.site is None else of_k.site._asdict(),
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


def _format_page(card: Card) -> str:
    title = html.escape(card.title)
    settings = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in card.settings.items()
    )
    failed = ""
    if card.failed:
        failed = f" {card.failed:,} more failed, and {'is' if card.failed == 1 else 'are'} not in it."
    table = "".join(
        "<tr>" + "".join(f'<td class="n">{cell}</td>' for cell in _format_cells(of_k, card.rows)) + "</tr>"
        for of_k in card.of_k
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{_STYLE}</style>
<h1>{title}</h1>
<p>{card.rows:,} {card.unit} of {card.slides:,} slides.{failed}</p>
<img src="inertia.png" alt="Mean squared distance to the centre, over k" style="max-width: 38rem">
<table class="over"><tr><th>k</th><th>mean squared distance</th><th>largest cluster</th><th>smallest</th>
<th>passes</th><th>clusters to distrust</th><th>follows sites</th></tr>{table}</table>
<p class="faint">Follows sites: how much more the clusters of {card.unit} tell of their slides' sites than of
random groups of slides, from 0 to 1, and the share of random groups that they follow as far.</p>
<h2>Made with</h2><table>{settings}</table>
{"".join(_format_section(of_k, card) for of_k in card.of_k)}
</html>
"""


def _format_cells(of_k: KCard, rows: int) -> tuple[str, ...]:
    """Format the cells of one k in the table at the top of the page."""
    distrusted = len({warning.cluster for warning in of_k.warnings})
    return (
        f'<a href="#k{of_k.k}">{of_k.k}</a>',
        f"{of_k.inertia / rows:.5g}",
        f"{of_k.counts.max() / rows:.1%}",
        f"{of_k.counts.min() / rows:.2%}",
        str(of_k.iterations),
        str(distrusted or "none"),
        "not known" if of_k.site is None else f"{of_k.site.share:.2f} (chance {of_k.site.chance:.3f})",
    )


def _format_section(of_k: KCard, card: Card) -> str:
    """Format the part of the page about one k."""
    warnings = ""
    if of_k.warnings:
        items = "".join(
            f"<li><b>cluster {warning.cluster}</b> {html.escape(warning.text)}</li>"
            for warning in of_k.warnings
        )
        warnings = (
            '<div class="warn"><b>Look at these before you trust them.</b> A cluster that is one site or one '
            "slide is often its stain or its scanner; a collapsed one is a cluster too many; one of glass or "
            "of the tissue's border is no tissue, and a flat one seldom is."
            f"<ul>{items}</ul></div>"
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
