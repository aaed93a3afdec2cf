"""The paper's Figures 4 and 5 (F-SEG §4) for any dataset: grouped bars of F1, as PNG and SVG.

Colours are Okabe and Ito's, which colour-blind readers tell apart; hatching repeats what brightness says.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fseg_jax.evaluation.data.datasets import Dataset
from fseg_jax.evaluation.report.tables import MODE_NAMES
from fseg_jax.evaluation.results import CenterSource, EvaluationRow, RowMode
from fseg_jax.outputs.style import OKABE_ITO, list_legend_once, save_figure, use_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MODE_COLOURS: dict[RowMode, str] = {"fixed": OKABE_ITO[0], "assign": OKABE_ITO[1], "nearest": "#999999"}
_SOURCES: tuple[CenterSource, ...] = ("tiles", "tokens")
_ERROR_BARS: dict[str, Any] = {"ecolor": "#333333", "elinewidth": 0.8, "capsize": 1.6, "capthick": 0.8}


def write_matching(out: Path, dataset: Dataset, rows: list[EvaluationRow]) -> None:
    """Draw F1 by matching (§3.5.2): a row of panels an encoder, plain beside balanced, bars grouped by k.

    Writes figure_matching.png and .svg; nothing where no row is of matching learnt on the training split.
    """
    rows = [row for row in rows if row.protocol.endswith("matching") and row.learnt_on == "train"]
    if not rows:
        return
    from matplotlib.figure import Figure

    encoders = list(dict.fromkeys(row.encoder for row in rows))
    protocols = list(dict.fromkeys(row.protocol for row in rows))
    ks = sorted({row.k for row in rows})
    with use_style():
        size = (max(3.6, 0.35 + 0.62 * len(ks)) * len(protocols), 0.75 + 1.85 * len(encoders))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(encoders), len(protocols), sharex=True, sharey=True, squeeze=False)
        for line, encoder in enumerate(encoders):
            for column, protocol in enumerate(protocols):
                axis = axes[line, column]
                in_panel = [row for row in rows if (row.encoder, row.protocol) == (encoder, protocol)]
                _draw_matching_panel(axis, in_panel, ks, [mode for mode in _MODE_COLOURS if _has(rows, mode)])
                title = f"{'Balanced' if protocol.startswith('balanced') else 'Plain'} matching"
                axis.set_title(f"{title}, {encoder}" if len(encoders) > 1 else title)
                if column == 0:
                    axis.set_ylabel("Macro F1")
                if line == len(encoders) - 1:
                    axis.set_xlabel("Clusters k")
        figure.legend(*list_legend_once(axes[0, 0]), loc="outside lower center", ncols=3, columnspacing=1.6)
        figure.suptitle(f"{dataset.name}: matching", x=0.01, ha="left", fontsize=10)
        _save(figure, out, "figure_matching")


def write_probing(out: Path, dataset: Dataset, rows: list[EvaluationRow]) -> None:
    """Draw F1 by linear probing (§3.5.1): over the thresholds tried, and by category at the chosen one.

    Writes figure_probing.png and .svg; nothing where no row is of probing.
    """
    rows = [row for row in rows if row.protocol.endswith("probing")]
    if not rows:
        return
    from matplotlib.figure import Figure

    series = list(dict.fromkeys((row.encoder, row.protocol) for row in rows))
    encoders = list(dict.fromkeys(row.encoder for row in rows))
    thresholds = sorted({row.threshold for row in rows if row.threshold is not None})
    groups = ["all (macro)", *dataset.categories]
    with use_style():
        wide = 0.55 + 0.2 * len(series)
        figure = Figure(figsize=(1.0 + wide * (len(thresholds) + len(groups)), 2.9), layout="constrained")
        ratios = [len(thresholds), len(groups)]
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=ratios)
        for j, (encoder, protocol) in enumerate(series):
            in_series = [row for row in rows if (row.encoder, row.protocol) == (encoder, protocol)]
            colour = OKABE_ITO[encoders.index(encoder) % len(OKABE_ITO)]
            look = _probing_look(encoder, protocol, colour)
            row_of = {row.threshold: row for row in in_series}
            _draw_bars(left, [row_of.get(threshold) for threshold in thresholds], j, len(series), **look)
            chosen = next(row for row in in_series if row.chosen)
            categories = [scores.f1 if scores else None for scores in chosen.scores.categories]
            _draw_bars(right, [chosen, *categories], j, len(series), **look)
            x = thresholds.index(chosen.threshold or 0) + _bar_shift(j, len(series))
            left.plot(x, 0.03, "v", color="black", ms=4)
        left.set_xticks(range(len(thresholds)), [f"{threshold:g}" for threshold in thresholds])
        left.set_xlabel("Threshold (▾ best on the training split)")
        left.set_ylabel("F1")
        left.set_title("Macro F1 by threshold")
        right.set_xticks(range(len(groups)), groups)
        right.set_title("F1 by category, chosen threshold")
        left.set_ylim(0, 1)
        for axis in (left, right):
            axis.tick_params(axis="x", length=0)
        figure.legend(*list_legend_once(left), loc="outside lower center", ncols=min(len(series), 4))
        figure.suptitle(
            f"{dataset.name}: linear probing of {rows[0].k} concepts a tile", x=0.01, ha="left", fontsize=10
        )
        _save(figure, out, "figure_probing")


def _has(rows: list[EvaluationRow], mode: RowMode) -> bool:
    return any(row.mode == mode for row in rows)


def _draw_matching_panel(
    axis: "Axes", rows: list[EvaluationRow], ks: list[int], modes: list[RowMode]
) -> None:
    """Draw the bars of one encoder and matching: for each k one for each mode and source of centres."""
    kinds = [(mode, source) for mode in modes for source in _SOURCES]
    for j, (mode, source) in enumerate(kinds):
        row_of = {row.k: row for row in rows if (row.mode, row.centers) == (mode, source)}
        look = _matching_look(mode, source)
        _draw_bars(axis, [row_of.get(k) for k in ks], j, len(kinds), **look)
    axis.set_xticks(range(len(ks)), [str(k) for k in ks])
    axis.tick_params(axis="x", length=0)
    axis.set_ylim(0, 1)


def _matching_look(mode: RowMode, source: CenterSource) -> dict[str, Any]:
    tokens = source == "tokens"
    return {
        "color": _MODE_COLOURS[mode],
        "alpha": 0.55 if tokens else 1.0,
        "hatch": "////" if tokens else None,
        "label": f"{MODE_NAMES[mode]}; centres of {source}",
    }


def _probing_look(encoder: str, protocol: str, colour: str) -> dict[str, Any]:
    balanced = protocol.startswith("balanced")
    return {
        "color": colour,
        "alpha": 0.55 if balanced else 1.0,
        "hatch": "////" if balanced else None,
        "label": f"{encoder}, {'balanced classes' if balanced else 'no class weights'}",
    }


def _bar_shift(j: int, bars: int) -> float:
    """Return how far bar ``j`` of a group lies from the group's middle."""
    return (j - (bars - 1) / 2) * 0.84 / bars


def _draw_bars(
    axis: "Axes", values: Sequence[EvaluationRow | float | None], j: int, bars: int, **look: Any
) -> None:
    """Draw one bar in each group, with its interval where it has one; "absent" where there is no value."""
    for group, value in enumerate(values):
        x = group + _bar_shift(j, bars)
        if value is None:
            axis.text(x, 0.01, "absent", rotation=90, ha="center", va="bottom", fontsize=6, color="#666666")
            continue
        if isinstance(value, float):
            height, interval = value, None
        else:
            height, interval = value.f1, value.f1_interval
        around = None
        if interval:
            around = np.maximum([[height - interval.low], [interval.high - height]], 0)
        axis.bar(
            x,
            height,
            0.78 / bars,
            yerr=around,
            error_kw=_ERROR_BARS,
            edgecolor="white",
            linewidth=0.4,
            **look,
        )


def _save(figure: "Figure", out: Path, name: str) -> None:
    for suffix in (".png", ".svg"):
        save_figure(figure, out / f"{name}{suffix}")
