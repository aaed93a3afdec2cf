"""HTML of the page's texts and small pictures. Names come from users and are escaped.

The page's security policy allows no script in elements. So an element that reacts to clicks has a JSON
attribute, which ``page.js`` reads: ``data-send``, a message to the server, or ``data-to``, a viewpoint.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from html import escape

import numpy as np
from jaxtyping import Float

from fseg_jax.outputs.colours import make_palette
from fseg_jax.outputs.labels import LabelPyramid
from fseg_jax.viewer.annotation import Annotation
from fseg_jax.viewer.clustering import Result
from fseg_jax.viewer.seeding import Seeding

_CHART = (64, 26)  # pixels of the chart of scores
_PATCHES_OF_A_DECIMAL = 1000  # of which one is a tenth of a percent
_AGREEMENT = (
    "F1 of the clicks themselves, from which the result was made; none is held out. It says whether the "
    "classes can be told apart where you clicked, not how right the rest of the slide is."
)
_CLOSE_UP = 220  # screen pixels of a patch after a click on its picture


def format_colour(colour: Iterable[int]) -> str:
    """Format an RGB colour as ``#rrggbb``."""
    return "#" + "".join(f"{int(v):02x}" for v in colour)


def render_title(name: str, encoder: str, width: int, height: int) -> str:
    """Render the slide's name, encoder and size in level-0 pixels."""
    details = escape(f"{encoder} · {width} × {height} px")
    return f"<div class='name'><h1>{escape(name)}</h1> &nbsp;<small>{details}</small></div>"


def render_status(text: str, problem: str, hint: str) -> str:
    """Render a problem, or else a text with a hint as its tooltip."""
    kind = "status bad" if problem else "status"
    text, problem = _replace_surrogates(text), _replace_surrogates(problem)
    return f"<div class='{kind}' title='{escape(problem or hint)}'>{escape(problem or text)}</div>"


def render_clusters(labels: LabelPyramid, shares: Float[np.ndarray, " k"], hidden: set[int]) -> str:
    """Render a switch for each cluster of a label pyramid. ``hidden`` are labels, from 1 on."""
    rows = []
    for j, (name, colour, share) in enumerate(zip(labels.names, labels.colours, shares, strict=True), 1):
        off = " off" if j in hidden else ""
        rows.append(
            f"<div class='cluster{off}'{_format_message('cluster', j)}>"
            f"<i style='background:{format_colour(colour)}'></i>"
            f"<span>{escape(name)}</span><span title='share of the segmented tissue'>{share:.1%}</span></div>"
        )
    links = " · ".join(f"<a{_format_message(which)}>{which}</a>" for which in ("all", "none"))
    return f"<div class='clusters'>{''.join(rows)}</div><div class='all'>show {links}</div>"


def render_classes(annotation: Annotation, result: Result | None, active: int, hidden: set[int]) -> str:
    """Render a row for each class: key, colour (which shows and hides it), name, seeds, share of the mask."""
    classes = annotation.classes
    shares = result.shares if result is not None and len(result.shares) == len(classes) else None
    colours = make_palette(len(classes))
    # A share has no more digits than one patch of the result changes.
    decimals = 1 if result is not None and len(result.labels) >= _PATCHES_OF_A_DECIMAL else 0
    rows = []
    for j, (name, count) in enumerate(zip(classes, annotation.count_seeds(), strict=True)):
        share = "–" if shares is None else f"{shares[j]:.{decimals}%}"
        state = (" on" if j == active else "") + (" off" if j in hidden else "")
        rows.append(
            f"<div class='row{state}'{_format_message('class', j)}><kbd>{j + 1}</kbd>"
            f"<i style='background:{format_colour(colours[j])}' title='show or hide it in the result'"
            f"{_format_message('see', j)}></i><span>{escape(name)}</span>"
            f"<span>{_format_count(count)}</span>"
            f"<span title='share of the tissue that was embedded'>{share}</span></div>"
        )
    return "".join(rows)


def render_score(result: Result | None, seeds: int, scores: Sequence[float]) -> str:
    """Render how well the result agrees with the seeds that it was made from, and a chart of its course."""
    if result is None:
        return "<div class='score'><b class='none'>–</b><small>agreement with your clicks</small></div>"
    clicks = f"{seeds} click{'' if seeds == 1 else 's'}"
    text = f"<b>{result.score:.2f}</b><small>agreement with your {clicks}</small>"
    return f"<div class='score' title='{_AGREEMENT}'>{text}{_draw_scores(scores)}</div>"


def render_strips(seeding: Seeding, format_url: Callable[[int], str], active: int, count: int) -> str:
    """Render pictures of the patches most certainly of the active class, and of the least certain.

    Args:
        seeding: The slide's seeding.
        format_url: Formats the address of a patch's picture.
        active: Index of the class.
        count: Number of patches of each kind.
    """
    strips = (
        (f"Most certain: {seeding.annotation.classes[active]}", seeding.select_certain(active, count)),
        ("Least certain", seeding.select_uncertain(count)),
    )
    html = []
    for heading, patches in strips:
        images = "".join(_render_patch(seeding, format_url(i), i) for i in patches)
        images = images or "<p>place seeds to see patches here</p>"
        html.append(f"<div class='strip'><h3>{escape(heading)}</h3><div>{images}</div></div>")
    return f"<div class='strips'>{''.join(html)}</div>"


def _render_patch(seeding: Seeding, url: str, i: int) -> str:
    """Render a picture of patch i that shows the patch on the slide when clicked."""
    result, patches = seeding.result, seeding.patches
    assert result is not None
    y, x = patches.embedded.centers[i] * patches.mpp
    j = int(result.labels[i])
    hint = f"{result.annotation.classes[j]}, membership {result.soft[i, j]:.2f}, no probability: show it"
    scale = patches.side * patches.mpp / _CLOSE_UP
    return (
        f"<img src='{url}' title='{escape(hint)}' "
        f"style='border-color:{format_colour(make_palette(9)[j])}' data-to='[{x:.2f},{y:.2f},{scale:.4f}]'>"
    )


def _format_message(*message: str | int) -> str:
    """Format the attribute of a message to the server."""
    return f" data-send='{escape(json.dumps(message))}'"


def _replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which paths may contain and browsers reject."""
    return text.encode("utf-8", "replace").decode()


def _format_count(seeds: int) -> str:
    return f"{seeds} seed{'' if seeds == 1 else 's'}"


def _draw_scores(scores: Sequence[float]) -> str:
    """Draw scores from 0 to 1 as an SVG line."""
    if len(scores) < 2:
        return ""
    width, height = _CHART
    across = np.linspace(2, width - 2, len(scores))
    points = " ".join(
        f"{x:.1f},{2 + (height - 4) * (1 - s):.1f}" for x, s in zip(across, scores, strict=True)
    )
    return (
        f"<svg width='{width}' height='{height}'><polyline points='{points}' fill='none' stroke='#1c1e24' "
        f"stroke-width='1.6' stroke-linejoin='round'/></svg>"
    )
