"""SIC's report: results.md for people, two CSVs for programs, the paper's Figure 2, and the record."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fseg_jax.encoders.encoder import EncoderCard
from fseg_jax.evaluation.report.markdown import format_markdown_table
from fseg_jax.evaluation.results import Moments, SicResult, SicRow, SicTrial
from fseg_jax.evaluation.settings import SicSettings
from fseg_jax.files.atomic import replace_atomically
from fseg_jax.outputs.csv_table import format_csv
from fseg_jax.outputs.style import OKABE_ITO, list_legend_once, save_figure, use_style
from fseg_jax.pipeline.record import made_with

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREY = "#8a8a8a"


def write_report(
    out: Path,
    dataset: str,
    result: SicResult,
    cards: Sequence[EncoderCard],
    settings: SicSettings,
    *,
    seconds: float,
) -> None:
    """Write tables, figure and, last, the record to a folder.

    Raises:
        OutputError: A file cannot be written.
    """
    _save(out / "results.csv", _csv([_row_to_json(row) for row in result.rows]))
    _save(out / "slides.csv", _csv([line for trial in result.trials for line in _run_lines(trial)]))
    _save(out / "results.md", _markdown(dataset, result, settings))
    _draw(out, dataset, result, settings.runs)
    patches = {t.slide: {"positive": t.positive, "negative": t.negative} for t in result.trials}
    record = {
        "format": "fseg-jax-evaluation-sic",
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "dataset": {"name": dataset, "patches": patches, "left_out": result.left_out},
        "encoders": [card.to_json() for card in cards],
        "setting": asdict(settings),
        **made_with().to_json(),
        "rows": [_row_to_json(row) for row in result.rows],
    }
    _save(out / "evaluation.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _save(path: Path, text: str) -> None:
    with replace_atomically(path) as part:
        part.write_text(text, encoding="utf-8")


# ------------------------------------------------------------------------------------------------ tables

_COLUMNS = ("best", "mean", "one_pass_best", "one_pass_mean", "everything_positive")


def _csv(lines: list[dict[str, Any]]) -> str:
    return format_csv(list(lines[0]), lines)


def _row_to_json(row: SicRow) -> dict[str, Any]:
    line: dict[str, Any] = {"encoder": row.encoder, "clicks": row.clicks, "slides": row.slides}
    for column in _COLUMNS:
        moments: Moments = getattr(row, column)
        line[f"f1_{column}"] = round(moments.mean, 5)
        line[f"f1_{column}_sd"] = "" if moments.sd is None else round(moments.sd, 5)
    return {**line, "cuts": round(row.cuts, 3)}


def _run_lines(trial: SicTrial) -> list[dict[str, Any]]:
    """Return a line for each run of a trial."""
    shared = {
        "encoder": trial.encoder,
        "slide": trial.slide,
        "clicks": trial.clicks,
        "negative_patches": trial.negative,
        "positive_patches": trial.positive,
        "negative_seeds": trial.seeds[0],
        "positive_seeds": trial.seeds[1],
    }
    runs = zip(trial.f1, trial.one_pass, trial.score, trial.cuts, strict=True)
    return [
        {
            **shared,
            "run": run,
            "f1": round(float(f1), 5),
            "f1_one_pass": round(float(one_pass), 5),
            "f1_of_seeds": round(float(score), 5),
            "cuts": int(cuts),
        }
        for run, (f1, one_pass, score, cuts) in enumerate(runs)
    ]


def _markdown(dataset: str, result: SicResult, settings: SicSettings) -> str:
    text = [*_introduction(dataset, result.trials, settings), *_table(result.rows, settings.runs)]
    if short := sorted({_describe_shortage(t) for t in result.trials if min(t.seeds) < t.clicks}):
        text += ["", f"Fewer patches of a class than seeds, all of them taken: {', '.join(short)}."]
    if result.left_out:
        reasons = ", ".join(f"{slide} ({reason})" for slide, reason in sorted(result.left_out.items()))
        text += ["", f"Left out, {len(result.left_out)}: {reasons}."]
    return "\n".join(text) + "\n"


def _introduction(dataset: str, trials: Sequence[SicTrial], settings: SicSettings) -> list[str]:
    runs, patches = settings.runs, settings.patches
    slides = {trial.slide: trial for trial in trials}.values()
    shares = [trial.positive_share for trial in slides]
    return [
        f"# Seeded iterative clustering on {dataset}",
        "",
        f"{len(slides)} slides, {sum(t.positive + t.negative for t in slides)} patches of {patches.patch} "
        f"pixels at {patches.mpp:g} µm; positive are those that lie in the tumour by half or more: "
        f"{min(shares):.1%} to {max(shares):.1%} of a slide, median {np.median(shares):.1%}. Seeds are drawn "
        "at random, so many of each class, the same for every encoder. F1 of the positive patches, the seeds "
        "among them, mean ± standard deviation over the slides.",
        "",
        f"*Best of {runs}* is what the paper reports: each slide's best run, chosen with the truth known. "
        f"*Mean of {runs}* is what random seeds give. *One pass* is seeded k-means without iteration.",
        "",
    ]


def _table(rows: Sequence[SicRow], runs: int) -> list[str]:
    head = ["encoder", "seeds a class", f"SIC, best of {runs}", f"SIC, mean of {runs}"]
    head += [f"one pass, best of {runs}", f"one pass, mean of {runs}", "cuts kept"]
    lines = [
        [
            row.encoder,
            str(row.clicks),
            *(_format_moments(getattr(row, column)) for column in _COLUMNS[:4]),
            f"{row.cuts:.2f}",
        ]
        for row in rows
    ]
    positive = _format_moments(rows[0].everything_positive)
    lines.append(["everything positive", "", positive, positive, "", "", ""])
    return format_markdown_table(head, lines)


def _describe_shortage(trial: SicTrial) -> str:
    return f"{trial.slide} ({min(trial.negative, trial.positive)} for {trial.clicks})"


def _format_moments(moments: Moments) -> str:
    return f"{moments.mean:.3f}" + ("" if moments.sd is None else f" ± {moments.sd:.3f}")


# ------------------------------------------------------------------------------------------------ figure


def _draw(out: Path, dataset: str, result: SicResult, runs: int) -> None:
    """Draw the paper's Figure 2, F1 by encoder and clicks, and beside it F1 by the tumour's share."""
    from matplotlib.figure import Figure

    encoders = list(dict.fromkeys(row.encoder for row in result.rows))
    clicks = sorted({row.clicks for row in result.rows})
    with use_style():
        wide = max(2.6, 0.42 * len(clicks) * len(encoders))
        figure = Figure(figsize=(3.7 + wide, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[wide, 2.7])
        width = min(0.4, 0.84 / len(encoders))
        for j, encoder in enumerate(encoders):
            colour = OKABE_ITO[j % len(OKABE_ITO)]
            for group, seeds in enumerate(clicks):
                x = group + (j - (len(encoders) - 1) / 2) * width
                row = next(r for r in result.rows if (r.encoder, r.clicks) == (encoder, seeds))
                _draw_row(left, x, width, row, _trials_of(result, encoder, seeds), colour)
            most_clicks = _trials_of(result, encoder, clicks[-1])
            shares, best = [t.positive_share for t in most_clicks], [t.f1.max() for t in most_clicks]
            right.plot(shares, best, "o", ms=4, color=colour, alpha=0.8, mec="white", mew=0.4)
        everything = result.rows[0].everything_positive.mean
        left.axhline(everything, color=_GREY, lw=1, ls="--", zorder=0.5)
        p = np.linspace(0.002, 1, 200)
        right.plot(p, 2 * p / (1 + p), color=_GREY, lw=1, ls="--", zorder=0.5)
        _explain_markers(left, runs)
        left.set_xticks(range(len(clicks)), [str(seeds) for seeds in clicks])
        left.set_xlim(-0.5, len(clicks) - 0.5)
        left.set_ylim(0, max(1.02, *(row.best.mean + (row.best.sd or 0) + 0.02 for row in result.rows)))
        left.tick_params(axis="x", length=0)
        left.set_xlabel("Seed patches of each class")
        left.set_ylabel("F1 of positive patches")
        left.set_title("By encoder and number of clicks")
        right.set_xscale("log")
        ticks = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
        right.set_xticks(ticks, [f"{tick:.0%}" for tick in ticks])
        right.minorticks_off()
        right.set_xlim(0.8 * min(trial.positive_share for trial in result.trials), 1.05)
        right.set_xlabel("Positive patches of the slide")
        right.set_title(f"By tumour size, {clicks[-1]} clicks, best of {runs}")
        figure.legend(*list_legend_once(left), loc="outside lower center", ncols=min(4, len(encoders) + 2))
        figure.suptitle(f"{dataset}: seeded iterative clustering", x=0.01, ha="left", fontsize=10)
        for suffix in (".png", ".svg"):
            save_figure(figure, out / f"figure_sic{suffix}")


def _trials_of(result: SicResult, encoder: str, clicks: int) -> list[SicTrial]:
    return [trial for trial in result.trials if (trial.encoder, trial.clicks) == (encoder, clicks)]


def _draw_row(
    axis: "Axes", x: float, width: float, row: SicRow, trials: Sequence[SicTrial], colour: str
) -> None:
    """Draw the best run of each slide, their mean and deviation, and beside it the means of all runs."""
    spread = np.linspace(-0.4, -0.1, len(trials)) if len(trials) > 1 else np.zeros(1)
    best = [trial.f1.max() for trial in trials]
    axis.plot(x + spread * width, best, ".", ms=4, color=colour, alpha=0.5, mew=0)
    axis.errorbar(
        x,
        row.best.mean,
        yerr=row.best.sd,
        fmt="o",
        ms=5,
        color=colour,
        elinewidth=1.1,
        capsize=3,
        label=row.encoder,
    )
    side = 0.3 * width
    axis.plot(x + side, row.mean.mean, "o", ms=4.5, mfc="white", mec=colour)
    axis.plot(x + side, row.one_pass_mean.mean, "x", ms=4.5, color=colour)


def _explain_markers(axis: "Axes", runs: int) -> None:
    """Add an entry to the legend for each kind of marker and for the line."""
    for marker, face, name in (
        ("o", _GREY, f"SIC, best of {runs}: mean ± sd; dots: slides"),
        ("o", "white", f"SIC, mean of {runs}"),
        ("x", _GREY, f"one pass, mean of {runs}"),
    ):
        axis.plot([], [], marker, ms=4.5, mfc=face, mec=_GREY, label=name)
    axis.plot([], [], color=_GREY, lw=1, ls="--", label="everything positive")
