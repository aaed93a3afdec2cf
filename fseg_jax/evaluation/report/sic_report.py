"""What SIC's experiment writes: results.md for people, two CSVs for programs, the paper's Figure 2, the
record.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fseg_jax.encoders.encoder import EncoderCard
from fseg_jax.evaluation.report.tables import markdown_table
from fseg_jax.files.atomic import replace_atomically
from fseg_jax.outputs.csv_table import csv_text
from fseg_jax.outputs.style import OKABE_ITO, drawing, list_legend_once, save_figure
from fseg_jax.pipeline.record import made_with

if TYPE_CHECKING:
    from fseg_jax.evaluation.protocols.sic import Moments, Row, Setting, Trial

_GREY = "#8a8a8a"


def write(
    out: Path,
    dataset: str,
    rows: "Sequence[Row]",
    trials: "Sequence[Trial]",
    left_out: dict[str, str],
    cards: list[EncoderCard],
    setting: "Setting",
    seconds: float,
) -> None:
    """Write tables, figure and, last, the record to a folder. Raises InputError where it cannot be."""
    _write(out / "results.csv", _csv([_line(row) for row in rows]))
    _write(out / "slides.csv", _csv([line for trial in trials for line in _runs(trial)]))
    _write(out / "results.md", _markdown(dataset, rows, trials, left_out, setting))
    _draw(out, dataset, rows, trials, setting.runs)
    slides = {t.slide: {"positive": t.positive, "negative": t.negative} for t in trials}
    record = {
        "format": "fseg-jax-evaluation-sic",
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "dataset": {"name": dataset, "patches": slides, "left_out": left_out},
        "encoders": [card.to_json() for card in cards],
        "setting": {**setting._asdict(), "patches": asdict(setting.patches)},
        **made_with().to_json(),
        "rows": [_line(row) for row in rows],
    }
    _write(out / "evaluation.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    with replace_atomically(path) as part:
        part.write_text(text, encoding="utf-8")


# ------------------------------------------------------------------------------------------------ tables

_COLUMNS = ("best", "mean", "one_pass_best", "one_pass_mean", "everything_positive")


def _csv(lines: list[dict[str, Any]]) -> str:
    return csv_text(list(lines[0]), lines)


def _line(row: "Row") -> dict[str, Any]:
    line: dict[str, Any] = {"encoder": row.encoder, "clicks": row.clicks, "slides": row.slides}
    for column in _COLUMNS:
        moments: Moments = getattr(row, column)
        line[f"f1_{column}"] = round(moments.mean, 5)
        line[f"f1_{column}_sd"] = "" if moments.sd is None else round(moments.sd, 5)
    return {**line, "cuts": round(row.cuts, 3)}


def _runs(trial: "Trial") -> list[dict[str, Any]]:
    own = {
        "encoder": trial.encoder,
        "slide": trial.slide,
        "clicks": trial.clicks,
        "negative_patches": trial.negative,
        "positive_patches": trial.positive,
        "negative_seeds": trial.seeds[0],
        "positive_seeds": trial.seeds[1],
    }
    each = zip(trial.f1, trial.one_pass, trial.score, trial.cuts, strict=True)
    return [
        {
            **own,
            "run": run,
            "f1": round(float(f1), 5),
            "f1_one_pass": round(float(one_pass), 5),
            "f1_of_seeds": round(float(score), 5),
            "cuts": int(cuts),
        }
        for run, (f1, one_pass, score, cuts) in enumerate(each)
    ]


def _markdown(
    dataset: str,
    rows: "Sequence[Row]",
    trials: "Sequence[Trial]",
    left_out: dict[str, str],
    setting: "Setting",
) -> str:
    runs, patches = setting.runs, setting.patches
    slides = {t.slide: t for t in trials}.values()
    shares = [t.positive / (t.positive + t.negative) for t in slides]
    text = [
        f"# Seeded iterative clustering on {dataset}",
        "",
        f"{len(slides)} slides, {sum(t.positive + t.negative for t in slides)} patches of {patches.patch} "
        f"pixels at {patches.mpp:g} µm; positive are those that lie in the tumour by half or more: "
        f"{min(shares):.1%} to {max(shares):.1%} of a slide, median {np.median(shares):.1%}. Seeds are drawn "
        "at random, so many of each class, the same for every encoder. F1 of the positive patches, mean ± "
        "standard deviation over the slides.",
        "",
        f"*Best of {runs}* is what the paper reports: each slide's best run, chosen with the truth known. "
        f"*Mean of {runs}* is what random seeds give. *One pass* is seeded k-means without iteration.",
        "",
    ]
    head = ["encoder", "seeds a class", f"SIC, best of {runs}", f"SIC, mean of {runs}"]
    head += [f"one pass, best of {runs}", f"one pass, mean of {runs}", "cuts kept"]
    lines = [
        [
            row.encoder,
            str(row.clicks),
            *(_pm(getattr(row, column)) for column in _COLUMNS[:4]),
            f"{row.cuts:.2f}",
        ]
        for row in rows
    ]
    positive = _pm(rows[0].everything_positive)
    lines.append(["everything positive", "", positive, positive, "", "", ""])
    text += markdown_table(head, lines)
    short = sorted(
        {
            f"{t.slide} ({min(t.negative, t.positive)} for {t.clicks})"
            for t in trials
            if min(t.seeds) < t.clicks
        }
    )
    if short:
        text += ["", f"Fewer patches of a class than seeds, all of them taken: {', '.join(short)}."]
    if left_out:
        named = ", ".join(f"{name} ({why})" for name, why in sorted(left_out.items()))
        text += ["", f"Left out, {len(left_out)}: {named}."]
    return "\n".join(text) + "\n"


def _pm(moments: "Moments") -> str:
    return f"{moments.mean:.3f}" + ("" if moments.sd is None else f" ± {moments.sd:.3f}")


# ------------------------------------------------------------------------------------------------ figure


def _draw(out: Path, dataset: str, rows: "Sequence[Row]", trials: "Sequence[Trial]", runs: int) -> None:
    """The paper's Figure 2, F1 by encoder and number of clicks, and beside it F1 by the tumour's share."""
    from matplotlib.figure import Figure

    encoders = list(dict.fromkeys(row.encoder for row in rows))
    clicks = sorted({row.clicks for row in rows})
    with drawing():
        wide = max(2.6, 0.42 * len(clicks) * len(encoders))
        figure = Figure(figsize=(3.7 + wide, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[wide, 2.7])
        width = min(0.4, 0.84 / len(encoders))
        for j, encoder in enumerate(encoders):
            colour = OKABE_ITO[j % len(OKABE_ITO)]
            for group, each in enumerate(clicks):
                own = [t for t in trials if (t.encoder, t.clicks) == (encoder, each)]
                row = next(r for r in rows if (r.encoder, r.clicks) == (encoder, each))
                x = group + (j - (len(encoders) - 1) / 2) * width
                spread = np.linspace(-0.4, -0.1, len(own)) if len(own) > 1 else np.zeros(1)
                best = [t.f1.max() for t in own]
                left.plot(x + spread * width, best, ".", ms=4, color=colour, alpha=0.5, mew=0)
                left.errorbar(
                    x,
                    row.best.mean,
                    yerr=row.best.sd,
                    fmt="o",
                    ms=5,
                    color=colour,
                    elinewidth=1.1,
                    capsize=3,
                    label=encoder,
                )
                side = 0.3 * width
                left.plot(x + side, row.mean.mean, "o", ms=4.5, mfc="white", mec=colour)
                left.plot(x + side, row.one_pass_mean.mean, "x", ms=4.5, color=colour)
            last = [t for t in trials if (t.encoder, t.clicks) == (encoder, clicks[-1])]
            share = [t.positive / (t.positive + t.negative) for t in last]
            right.plot(
                share, [t.f1.max() for t in last], "o", ms=4, color=colour, alpha=0.8, mec="white", mew=0.4
            )
        everything = rows[0].everything_positive.mean
        left.axhline(everything, color=_GREY, lw=1, ls="--", zorder=0.5)
        p = np.linspace(0.002, 1, 200)
        right.plot(p, 2 * p / (1 + p), color=_GREY, lw=1, ls="--", zorder=0.5)
        for marker, face, name in (
            ("o", _GREY, f"SIC, best of {runs}: mean ± sd; dots: slides"),
            ("o", "white", f"SIC, mean of {runs}"),
            ("x", _GREY, f"one pass, mean of {runs}"),
        ):
            left.plot([], [], marker, ms=4.5, mfc=face, mec=_GREY, label=name)
        left.plot([], [], color=_GREY, lw=1, ls="--", label="everything positive")
        left.set_xticks(range(len(clicks)), [str(each) for each in clicks])
        left.set_xlim(-0.5, len(clicks) - 0.5)
        left.set_ylim(0, max(1.02, *(row.best.mean + (row.best.sd or 0) + 0.02 for row in rows)))
        left.tick_params(axis="x", length=0)
        left.set_xlabel("Seed patches of each class")
        left.set_ylabel("F1 of positive patches")
        left.set_title("By encoder and number of clicks")
        right.set_xscale("log")
        ticks = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
        right.set_xticks(ticks, [f"{t:.0%}" for t in ticks])
        right.minorticks_off()
        smallest = min(t.positive / (t.positive + t.negative) for t in trials)
        right.set_xlim(0.8 * smallest, 1.05)
        right.set_xlabel("Positive patches of the slide")
        right.set_title(f"By tumour size, {clicks[-1]} clicks, best of {runs}")
        figure.legend(*list_legend_once(left), loc="outside lower center", ncols=min(4, len(encoders) + 2))
        figure.suptitle(f"{dataset}: seeded iterative clustering", x=0.01, ha="left", fontsize=10)
        for suffix in (".png", ".svg"):
            save_figure(figure, out / f"figure_sic{suffix}")
