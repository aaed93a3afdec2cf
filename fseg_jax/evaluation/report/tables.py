"""F-SEG's table: results.csv for programs, results.md for people, and evaluation.json, the record."""

import json
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fseg_jax.encoders.encoder import EncoderCard
from fseg_jax.evaluation.data.datasets import Dataset, Split
from fseg_jax.evaluation.report.markdown import format_markdown_table
from fseg_jax.evaluation.results import EvaluationRow, RowMode
from fseg_jax.evaluation.settings import EvaluationSettings
from fseg_jax.files.atomic import replace_atomically
from fseg_jax.numerics.metrics import Interval
from fseg_jax.outputs.csv_table import format_csv
from fseg_jax.versions import find_versions

_SPLITS: tuple[Split, ...] = ("train", "test")
ABSENT = "absent"  # where a category has no pixel
MODE_NAMES: dict[RowMode, str] = {
    "fixed": "F-SEG, H fixed",
    "assign": "F-SEG, W and H",
    "nearest": "no factorization",
    "concepts": "F-SEG concepts",
}


def write_tables(out: Path, dataset: Dataset, rows: list[EvaluationRow]) -> None:
    """Write results.csv, a line a row and every number, and results.md, the same for people."""
    lines = [_csv_line(dataset, row) for row in rows]
    _save(out / "results.csv", format_csv(list(lines[0]), lines))
    _save(out / "results.md", _markdown(dataset, rows))


def write_record(
    out: Path,
    dataset: Dataset,
    cards: list[EncoderCard],
    settings: EvaluationSettings,
    rows: list[EvaluationRow],
    *,
    seconds: float,
) -> None:
    """Write evaluation.json: data, settings, versions and scores. It is written last: then all is there."""
    import jax

    record: dict[str, Any] = {
        "format": "fseg-jax-evaluation",
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "dataset": {
            "name": dataset.name,
            "categories": list(dataset.categories),
            "mpp": dataset.mpp,
            "splits": {split: _describe_split(dataset, split) for split in _SPLITS},
            "test_cases": sorted({item.case for item in dataset.items if item.split == "test"}),
        },
        "encoders": [vars(card) for card in cards],
        "setting": asdict(settings),
        "versions": {"python": platform.python_version()}
        | find_versions(("fseg-jax", "jax", "numpy", "optax")),
        "device": jax.devices()[0].device_kind,
        "rows": [_row_to_json(row) for row in rows],
    }
    _save(out / "evaluation.json", json.dumps(record, indent=1) + "\n")


def _describe_split(dataset: Dataset, split: Split) -> dict[str, Any]:
    items = [item for item in dataset.items if item.split == split]
    pixels = dict(zip(dataset.categories, dataset.count_pixels(split).tolist(), strict=True))
    return {"images": len(items), "cases": len({item.case for item in items}), "pixels": pixels}


def _row_to_json(row: EvaluationRow) -> dict[str, Any]:
    return {
        "encoder": row.encoder,
        "mode": row.mode,
        "centres": row.centers,
        "k": row.k,
        "protocol": row.protocol,
        "learnt_on": row.learnt_on,
        "threshold": row.threshold,
        "chosen": row.chosen,
        "starts": row.starts,
        "f1": row.f1,
        "confusion": row.confusion,
    }


# ------------------------------------------------------------------------------------------ results.csv


def _csv_line(dataset: Dataset, row: EvaluationRow) -> dict[str, str]:
    line = {
        "encoder": row.encoder,
        "mode": row.mode,
        "centres": row.centers,
        "k": str(row.k),
        "protocol": row.protocol,
        "learnt_on": row.learnt_on,
        "threshold": "" if row.threshold is None else f"{row.threshold:g}",
        "chosen": "yes" if row.chosen else "no",
        "starts": str(row.starts),
        "f1": _format_number(row.f1),
        **_interval_cells("f1", row.f1_interval),
        "f1_spread": _format_number(row.f1_spread),
        "f1_train": _format_number(row.f1_train),
        "f1_per_image": _format_number(row.image_f1),
        "iou": _format_number(row.iou),
        **_interval_cells("iou", row.iou_interval),
        "precision": _format_number(row.scores.precision),
        "recall": _format_number(row.scores.recall),
        "accuracy": _format_number(row.scores.accuracy),
        "ari": _format_number(row.ari),
        **_interval_cells("ari", row.ari_interval),
        "mutual_information": _format_number(row.mutual_information),
        "gain_over_nearest": _format_number(row.gain),
        **_interval_cells("gain", row.gain_interval),
        "f1_above_colour_only": _format_number(row.above_colour),
        **_interval_cells("f1_above_colour_only", row.above_colour_interval),
        "unseen_clusters": _format_number(row.unseen_clusters),
        "unseen_pixels": _format_number(row.unseen_pixels),
    }
    pairs = row.pairs or [None] * len(dataset.categories)
    for name, scores, count in zip(dataset.categories, row.scores.categories, pairs, strict=True):
        for score in ("f1", "iou", "precision", "recall"):
            line[f"{score} {name}"] = ABSENT if scores is None else _format_number(getattr(scores, score))
        line[f"pairs {name}"] = "" if count is None else str(count)
    return line


# ------------------------------------------------------------------------------------------- results.md


def _markdown(dataset: Dataset, rows: list[EvaluationRow]) -> str:
    matched = [row for row in rows if row.protocol.endswith("matching")]
    probed = [row for row in rows if row.protocol.endswith("probing")]
    text = _introduction(dataset)
    if matched:
        text += ["", "## What the factorization buys", "", *_verdict(matched)]
        text += ["", "## Matching (§3.5.2)", "", *_matching_table(dataset, matched)]
    if probed:
        text += ["", "## Linear probing (§3.5.1)", "", *_probing_table(dataset, probed)]
    return "\n".join(text) + "\n"


def _introduction(dataset: Dataset) -> list[str]:
    """Write which images and cases there are, and what each split has of each category."""
    images = {split: sum(item.split == split for item in dataset.items) for split in _SPLITS}
    cases = {split: len({i.case for i in dataset.items if i.split == split}) for split in _SPLITS}
    text = [
        f"# {dataset.name}",
        "",
        f"Learnt on {images['train']} images of {cases['train']} cases, tested on {images['test']} of "
        f"{cases['test']}; no case is on both sides. Brackets: 95 % bootstrap interval over the test cases; "
        "±: standard deviation over k-means starts. F1 and IoU are averages over the categories that the "
        "test split has. *Colour only* is the encoder classical. Precision, recall, accuracy and every other "
        "number are in the CSV.",
        "",
        "| category | " + " | ".join(dataset.categories) + " |",
        "|---|" + "---:|" * len(dataset.categories),
    ]
    for split in _SPLITS:
        pixels = dataset.count_pixels(split)
        shares = [f"{100 * p / pixels.sum():.1f} %" if p else ABSENT for p in pixels.tolist()]
        text.append(f"| share of {split} pixels | " + " | ".join(shares) + " |")
    return text


def _matching_table(dataset: Dataset, rows: list[EvaluationRow]) -> list[str]:
    head = ["encoder", "k", "segmentation", "centres of", "matching", "learnt on", "F1", "±", "IoU", "ARI"]
    head += ["MI", "F1 above no factorization", "F1 above colour only"]
    head += [f"F1 {name}" for name in dataset.categories]
    return format_markdown_table(head, [_matched_cells(row) for row in rows])


def _probing_table(dataset: Dataset, rows: list[EvaluationRow]) -> list[str]:
    head = ["encoder", "concepts a tile", "class weights", "threshold", "pairs", "F1", "IoU", "ARI", "MI"]
    head += ["F1 above colour only", *(f"F1 {name}" for name in dataset.categories)]
    return [
        "A concept is a training pair where more than the threshold of its pixels are of one category. "
        "The threshold that is best on the training split is marked; only it is drawn.",
        "",
        *format_markdown_table(head, [_probed_cells(dataset, row) for row in rows]),
    ]


def _verdict(rows: list[EvaluationRow]) -> list[str]:
    """Write in which rows F-SEG is better than the nearest centre, and in which it is worse."""
    sentences, lines = [], []
    ks = sorted({row.k for row in rows})
    modes: tuple[RowMode, ...] = ("fixed", "assign")
    for mode in modes:
        of_mode = [row for row in rows if row.mode == mode and row.gain is not None]
        if not of_mode:
            continue
        higher = sum((row.gain or 0) > 0 for row in of_mode)
        better, worse = (sum(_sign(row) == word for row in of_mode) for word in ("better", "worse"))
        sentences.append(
            f"- **{MODE_NAMES[mode]}** has the higher F1 in {higher} of {len(of_mode)} rows; with the 95 % "
            f"interval of the difference beyond 0 it is better in {better}, worse in {worse}."
        )
        for group in dict.fromkeys(_group_of(row) for row in of_mode):
            encoder, centers, protocol, learnt_on = group
            row_of = {row.k: row for row in of_mode if _group_of(row) == group}
            cells = [f"{row_of[k].gain:+.3f} {_sign(row_of[k])}".strip() for k in ks]
            lines.append([encoder, MODE_NAMES[mode], centers, _weighting(protocol), learnt_on, *cells])
    head = ["encoder", "segmentation", "centres of", "matching", "learnt on", *(f"k = {k}" for k in ks)]
    return [
        "Against the same centres without factorization, each token to its nearest by cosine:",
        "",
        *sentences,
        "",
        "F1 above that of no factorization; *better* and *worse* where the 95 % interval leaves out 0:",
        "",
        *format_markdown_table(head, lines),
    ]


def _group_of(row: EvaluationRow) -> tuple[str, str, str, str]:
    """Return what a line of the verdict is of: all k together."""
    return row.encoder, row.centers, row.protocol, row.learnt_on


def _weighting(protocol: str) -> str:
    return "balanced" if protocol.startswith("balanced") else "plain"


def _sign(row: EvaluationRow) -> str:
    if row.gain_interval and row.gain_interval.low > 0:
        return "better"
    return "worse" if row.gain_interval and row.gain_interval.high < 0 else ""


def _matched_cells(row: EvaluationRow) -> list[str]:
    return [
        row.encoder,
        str(row.k),
        MODE_NAMES[row.mode],
        row.centers,
        _weighting(row.protocol),
        row.learnt_on,
        format_with_interval(row.f1, row.f1_interval),
        "" if row.f1_spread is None else f"{row.f1_spread:.3f}",
        format_with_interval(row.iou, row.iou_interval),
        format_with_interval(row.ari, row.ari_interval),
        f"{row.mutual_information:.3f}",
        _difference(row.gain, row.gain_interval),
        _difference(row.above_colour, row.above_colour_interval),
        *_each_f1(row),
    ]


def _probed_cells(dataset: Dataset, row: EvaluationRow) -> list[str]:
    pairs = zip(dataset.categories, row.pairs or (), strict=True)
    return [
        row.encoder,
        str(row.k),
        "balanced" if row.protocol.startswith("balanced") else "none",
        f"{row.threshold:g}" + (" (chosen)" if row.chosen else ""),
        ", ".join(f"{name} {count}" for name, count in pairs),
        format_with_interval(row.f1, row.f1_interval),
        format_with_interval(row.iou, row.iou_interval),
        format_with_interval(row.ari, row.ari_interval),
        f"{row.mutual_information:.3f}",
        _difference(row.above_colour, row.above_colour_interval),
        *_each_f1(row),
    ]


def _difference(value: float | None, interval: Interval | None) -> str:
    return "" if value is None else format_with_interval(value, interval, "+.3f")


def _each_f1(row: EvaluationRow) -> list[str]:
    return [ABSENT if scores is None else f"{scores.f1:.3f}" for scores in row.scores.categories]


def format_with_interval(value: float, interval: Interval | None, form: str = ".3f") -> str:
    """Format a value with its bootstrap interval in brackets.

    >>> format_with_interval(0.706, Interval(0.681, 0.733))
    '0.706 [0.681, 0.733]'
    """
    return f"{value:{form}}" + (f" [{interval.low:{form}}, {interval.high:{form}}]" if interval else "")


def _format_number(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"


def _interval_cells(name: str, interval: Interval | None) -> dict[str, str]:
    low, high = interval or (None, None)
    return {f"{name}_low": _format_number(low), f"{name}_high": _format_number(high)}


def _save(path: Path, text: str) -> None:
    with replace_atomically(path) as part:
        part.write_text(text, encoding="utf-8")
