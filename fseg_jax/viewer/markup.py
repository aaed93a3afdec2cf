"""What the page says in words and small pictures, as HTML. Every name is somebody's, and is escaped.

What is clicked has in ``data-send`` the message that ``page.js`` sends, or in ``data-to`` where it goes, as
JSON: the page's policy lets no script stand in its elements.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from html import escape

import numpy as np

from fseg_jax.outputs.colours import palette
from fseg_jax.outputs.labels import LabelPyramid
from fseg_jax.viewer.annotation import Annotation
from fseg_jax.viewer.seeding import Result, Seeding

_LINE = (120, 26)  # pixels of the scores' line
_CLOSE_UP = 220  # pixels that a patch fills when its picture is clicked


def hexed(colour: Iterable[int]) -> str:
    return "#" + "".join(f"{int(v):02x}" for v in colour)


def title(name: str, encoder: str, width: int, height: int) -> str:
    said = escape(f"{encoder} · {width} × {height} px")
    return f"<div class='name'><h1>{escape(name)}</h1> &nbsp;<small>{said}</small></div>"


def status(text: str, problem: str, hint: str) -> str:
    kind = "status bad" if problem else "status"
    text, problem = _sayable(text), _sayable(problem)
    return f"<div class='{kind}' title='{escape(problem or hint)}'>{escape(problem or text)}</div>"


def clusters(labels: LabelPyramid, shares: np.ndarray, hidden: set[int]) -> str:
    """A switch for each cluster of a label pyramid."""
    rows = []
    for j, (name, colour, share) in enumerate(zip(labels.names, labels.colours, shares, strict=True), 1):
        off = " off" if j in hidden else ""
        rows.append(
            f"<div class='cluster{off}'{_sends('cluster', j)}>"
            f"<i style='background:{hexed(colour)}'></i>"
            f"<span>{escape(name)}</span><span>{share:.1%}</span></div>"
        )
    both = " · ".join(f"<a{_sends(what)}>{what}</a>" for what in ("all", "none"))
    return f"<div class='clusters'>{''.join(rows)}</div><div class='all'>show {both}</div>"


def classes(now: Annotation, result: Result | None, active: int, unseen: set[int]) -> str:
    """A row for each class: its key, colour (which shows and hides it), name, seeds, share of the result."""
    shares = result.shares if result is not None and len(result.shares) == len(now.classes) else None
    colours = palette(len(now.classes))
    rows = []
    for j, (name, count) in enumerate(zip(now.classes, now.counts(), strict=True)):
        share = "–" if shares is None else f"{shares[j]:.1%}"
        on = (" on" if j == active else "") + (" off" if j in unseen else "")
        rows.append(
            f"<div class='row{on}'{_sends('class', j)}><kbd>{j + 1}</kbd>"
            f"<i style='background:{hexed(colours[j])}' title='show or hide it in the result'"
            f"{_sends('see', j)}></i><span>{escape(name)}</span>"
            f"<span>{_count(count)}</span><span>{share}</span></div>"
        )
    return "".join(rows)


def score(result: Result | None, seeds: int, scores: Sequence[float]) -> str:
    if result is None:
        return (
            "<div class='score'><b class='none'>F1</b><small>of the seeds, when some are placed</small></div>"
        )
    said = f"<b>{result.score:.2f}</b><small>F1 of {_count(seeds)}</small>"
    return f"<div class='score'>{said}{_line(scores)}</div>"


def strips(seeding: Seeding, url: Callable[[int], str], active: int, count: int) -> str:
    """Pictures, by their ``url``, of the patches most certainly of a class, and of the least certain."""
    shown = (
        (f"Most certain: {seeding.now.classes[active]}", seeding.certain(active, count)),
        ("Least certain", seeding.uncertain(count)),
    )
    out = []
    for said, chosen in shown:
        images = "".join(_image(seeding, url(i), i) for i in chosen)
        images = images or "<p>place seeds to see patches here</p>"
        out.append(f"<div class='strip'><h3>{escape(said)}</h3><div>{images}</div></div>")
    return f"<div class='strips'>{''.join(out)}</div>"


def _image(seeding: Seeding, url: str, i: int) -> str:
    assert seeding.result is not None
    y, x = seeding.embedded.centers[i] * seeding.mpp
    j = int(seeding.result.labels[i])
    said = f"{seeding.result.annotation.classes[j]}, {seeding.result.soft[i, j]:.0%}: show it"
    scale = seeding.side * seeding.mpp / _CLOSE_UP
    return (
        f"<img src='{url}' title='{escape(said)}' "
        f"style='border-color:{hexed(palette(9)[j])}' data-to='[{x:.2f},{y:.2f},{scale:.4f}]'>"
    )


def _sends(*message: str | int) -> str:
    return f" data-send='{escape(json.dumps(message))}'"


def _sayable(text: str) -> str:
    """The text without what is none, as paths may hold, and browsers are not told."""
    return text.encode("utf-8", "replace").decode()


def _count(seeds: int) -> str:
    return f"{seeds} seed{'' if seeds == 1 else 's'}"


def _line(scores: Sequence[float]) -> str:
    """The scores so far, as a line from 0 to 1."""
    if len(scores) < 2:
        return ""
    width, height = _LINE
    across = np.linspace(2, width - 2, len(scores))
    points = " ".join(
        f"{x:.1f},{2 + (height - 4) * (1 - s):.1f}" for x, s in zip(across, scores, strict=True)
    )
    return (
        f"<svg width='{width}' height='{height}'><polyline points='{points}' fill='none' stroke='#1c1e24' "
        f"stroke-width='1.6' stroke-linejoin='round'/></svg>"
    )
