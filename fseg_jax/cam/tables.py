"""What the CAM paper's runs came to: its Tables 1 and 2 with ours beside them, other ways to a mask, and the
record.
"""

import json
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import jax

from fseg_jax.cam.masks import MEASURES, MaskScores, markdown
from fseg_jax.cam.runs import Reproduction, RunResult, Split
from fseg_jax.files.atomic import replacing
from fseg_jax.versions import versions_of

# The paper's Table 1: accuracy, Jaccard, Dice, F1, recall, precision.
PAPER_SCORES = {
    "1": (0.6762, 0.1115, 0.1812, 0.1812, 0.3971, 0.1465),
    "2": (0.6009, 0.0991, 0.1696, 0.1696, 0.4105, 0.1316),
    "3": (0.6018, 0.1075, 0.1816, 0.1816, 0.4497, 0.1391),
    "4": (0.6402, 0.1175, 0.1861, 0.1861, 0.3728, 0.1505),
    "5": (0.5214, 0.1388, 0.2211, 0.2211, 0.6337, 0.1572),
}
# And its Table 2: average, minimum and maximum seconds an image, and the frames per second of each.
PAPER_SPEED = {
    "1": (0.11, 0.09, 0.12, 9.34, 10.72, 8.05),
    "2": (0.11, 0.10, 0.13, 8.98, 9.97, 7.75),
    "3": (0.11, 0.10, 0.13, 8.95, 10.10, 7.94),
    "4": (0.09, 0.09, 0.09, 11.00, 11.19, 10.54),
    "5": (0.09, 0.09, 0.09, 10.97, 11.14, 10.71),
}


def tables(
    dataset: str,
    parts: Split,
    results: list[RunResult],
    baselines: dict[str, MaskScores],
    setting: Reproduction,
) -> str:
    """The paper's Tables 1 and 2 with ours beside them, what the runs were made of, and other methods."""
    text = [
        f"# Medico 2021 (Storås 2021) on {dataset}\n",
        f"{len(parts.test)} images are scored that no step has seen; {len(parts.validation)} others chose "
        f"the epoch and, where it says so, the thresholds. Network {setting.classifier.network}, "
        f"{setting.classifier.size} pixels, {setting.classifier.epochs} epochs, {setting.classifier.start} "
        f"start, seed {setting.classifier.seed}; {jax.devices()[0].device_kind}. The paper's figures are of "
        "the challenge's own test images, so only the order of size can be compared.\n",
    ]
    if any(r.source != r.run.source for r in results):
        text.append(
            "Runs 2 to 5 of the paper learn from whole images, with and without polyps. None without was "
            "given (`--negatives`), so they learnt from the dataset's tiles here, as run 1 does.\n"
        )
    text.append("## Table 1: polyp segmentation, means over images\n")
    lines = []
    for r in results:
        if r.run.name in PAPER_SCORES:
            lines.append([f"#{r.run.name} paper", *(f"{v:.4f}" for v in PAPER_SCORES[r.run.name])])
        lines.append([f"#{r.run.name} ours", *(f"{v:.4f}" for v in r.rows[0].scores.mean)])
    lines += [[name, *(f"{v:.4f}" for v in s.mean)] for name, s in baselines.items()]
    text.append(markdown(["Run", *(m.capitalize() for m in MEASURES)], lines))
    text.append(
        "## Table 2: seconds and frames per second, an image\n\nFrom the decoded image to its mask, one at a "
        "time, compilation excluded. As in the paper, Mi-fps is of the shortest time.\n"
    )
    lines = []
    for r in results:
        if r.run.name in PAPER_SPEED:
            lines.append([f"#{r.run.name} paper", *(f"{v:.2f}" for v in PAPER_SPEED[r.run.name])])
        ours = [*(f"{seconds:.3f}" for seconds in r.speed), *(f"{1 / seconds:.2f}" for seconds in r.speed)]
        lines.append([f"#{r.run.name} ours", *ours])
    text.append(markdown(["Run", "Av-time", "Mi-time", "Ma-time", "Av-fps", "Mi-fps", "Ma-fps"], lines))
    text.append("## Other ways to a mask, on the same images\n")
    lines = []
    for r in results:
        for row in r.rows:
            upper = "" if row.thresholds.upper is None else f" to {row.thresholds.upper:g}"
            lines.append(
                [
                    f"#{r.run.name} {row.method}{', one piece' if row.whole else ''}",
                    f"{row.thresholds.lower:g}{upper}",
                    "chosen" if row.chosen else "the run's",
                    *(f"{row.scores.mean[i]:.4f}" for i in (1, 2, 4, 5)),
                    "{:.3f} to {:.3f}".format(*row.scores.intervals[2]),
                    f"{row.scores.pooled[1]:.4f}",
                ]
            )
    for name, s in baselines.items():
        lines.append(
            [
                name,
                "",
                "",
                *(f"{s.mean[i]:.4f}" for i in (1, 2, 4, 5)),
                "{:.3f} to {:.3f}".format(*s.intervals[2]),
                f"{s.pooled[1]:.4f}",
            ]
        )
    text.append(
        markdown(
            [
                "Run",
                "above",
                "thresholds",
                "Jaccard",
                "Dice",
                "Recall",
                "Precision",
                "Dice, 95 %",
                "pooled Jaccard",
            ],
            lines,
        )
    )
    text.append("## What the classifiers were made of\n")
    lines = []
    for r in results:
        given, labelled = (sum(r.propagation[key].values()) for key in ("given", "labelled"))
        counts = r.training["held_out"]
        commonest = max(counts.values()) / max(1, sum(counts.values()))
        lines.append(
            [
                f"#{r.run.name}",
                r.source,
                str(r.run.k),
                str(given),
                str(labelled),
                str(r.propagation["rounds"]),
                "" if r.spread_right is None else f"{r.spread_right:.3f}",
                *(
                    "" if (a := r.training[f"held_out_{what}"]) is None else f"{a:.3f}"
                    for what in ("accuracy", "balanced_accuracy")
                ),
                f"{commonest:.3f}",
                str(sum(counts.values())),
                str(r.training["epoch_kept"]),
            ]
        )
    text.append(
        markdown(
            [
                "Run",
                "source",
                "k",
                "labelled",
                "after spreading",
                "rounds",
                "of the joined right",
                "held-out accuracy",
                "balanced",
                "share of the commoner class",
                "held out",
                "epoch kept",
            ],
            lines,
        )
    )
    return "\n".join(text)


def write(
    out: Path,
    dataset: Path,
    parts: Split,
    results: list[RunResult],
    baselines: dict[str, MaskScores],
    setting: Reproduction,
    seconds: float,
) -> None:
    with replacing(out / "results.md") as part:
        part.write_text(tables(dataset.absolute().name, parts, results, baselines, setting), encoding="utf-8")
    record = {
        "format": "fseg-jax-cam",
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "versions": {"python": platform.python_version()}
        | versions_of(("fseg-jax", "jax", "flax", "optax", "numpy")),
        "device": jax.devices()[0].device_kind,
        "setting": asdict(setting),
        "split": {what: [pair.name for pair in pairs] for what, pairs in parts._asdict().items()},
        "baselines": {name: s._asdict() for name, s in baselines.items()},
        "runs": [
            {
                "run": asdict(r.run),
                "source": r.source,
                "rows": [
                    row._asdict() | {"thresholds": row.thresholds._asdict(), "scores": row.scores._asdict()}
                    for row in r.rows
                ],
                "speed": r.speed._asdict(),
                "propagation": r.propagation,
                "spread_right": r.spread_right,
                "training": r.training,
            }
            for r in results
        ],
        "measures": MEASURES,
    }
    with replacing(out / "results.json") as part:
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
