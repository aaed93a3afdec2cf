"""The table of an evaluation: results.csv for programs, results.md for people, evaluation.json the record."""

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fseg_jax.encoders.encoder import EncoderCard
from fseg_jax.evaluation.data.datasets import Dataset
from fseg_jax.files.atomic import replace_atomically
from fseg_jax.numerics.metrics import Interval
from fseg_jax.outputs.csv_table import csv_text
from fseg_jax.versions import find_versions

if TYPE_CHECKING:
    from fseg_jax.evaluation.protocols.experiment import Row, Setting

ABSENT = "absent"
MODE_NAMES = {
    "fixed": "F-SEG, H fixed",
    "assign": "F-SEG, W and H",
    "nearest": "no factorization",
    "concepts": "F-SEG concepts",
}


def write(out: Path, dataset: Dataset, rows: "list[Row]") -> None:
    """Write results.csv, a line a row and every number, and results.md, the same for people."""
    lines = [_line(dataset, row) for row in rows]
    _save(out / "results.csv", csv_text(list(lines[0]), lines))
    _save(out / "results.md", _markdown(dataset, rows))


def write_record(
    out: Path,
    dataset: Dataset,
    cards: list[EncoderCard],
    setting: "Setting",
    rows: "list[Row]",
    *,
    seconds: float,
) -> None:
    """Write evaluation.json: what was run, on what, with which versions; last, as the completion record."""
    import jax

    splits = {}
    for split in ("train", "test"):
        items = [item for item in dataset.items if item.split == split]
        pixels = dict(zip(dataset.categories, dataset.held(split).tolist(), strict=True))
        splits[split] = {"images": len(items), "cases": len({i.case for i in items}), "pixels": pixels}
    record: dict[str, Any] = {
        "format": "fseg-jax-evaluation",
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "dataset": {
            "name": dataset.name,
            "categories": list(dataset.categories),
            "mpp": dataset.mpp,
            "splits": splits,
            "test_cases": sorted({item.case for item in dataset.items if item.split == "test"}),
        },
        "encoders": [vars(card) for card in cards],
        "setting": setting._asdict(),
        "versions": {"python": platform.python_version()}
        | find_versions(("fseg-jax", "jax", "numpy", "optax")),
        "device": jax.devices()[0].device_kind,
        "rows": [{key: getattr(row, key) for key in _KEYS} | {"confusion": row.confusion} for row in rows],
    }
    _save(out / "evaluation.json", json.dumps(record, indent=1) + "\n")


_KEYS = ("encoder", "mode", "centres", "k", "protocol", "learnt_on", "threshold", "chosen", "starts", "f1")


def _line(dataset: Dataset, row: "Row") -> dict[str, str]:
    line = {
        "encoder": row.encoder,
        "mode": row.mode,
        "centres": row.centres,
        "k": str(row.k),
        "protocol": row.protocol,
        "learnt_on": row.learnt_on,
        "threshold": "" if row.threshold is None else f"{row.threshold:g}",
        "chosen": "yes" if row.chosen else "no",
        "starts": str(row.starts),
        "f1": _number(row.f1),
        **_bounds("f1", row.f1_interval),
        "f1_spread": _number(row.f1_spread),
        "f1_train": _number(row.f1_train),
        "f1_per_image": _number(row.image_f1),
        "iou": _number(row.iou),
        **_bounds("iou", row.iou_interval),
        "precision": _number(row.scores.precision),
        "recall": _number(row.scores.recall),
        "accuracy": _number(row.scores.accuracy),
        "ari": _number(row.ari),
        **_bounds("ari", row.ari_interval),
        "mutual_information": _number(row.mutual_information),
        "gain_over_nearest": _number(row.gain),
        **_bounds("gain", row.gain_interval),
        "f1_above_colour_only": _number(row.above_colour),
        **_bounds("f1_above_colour_only", row.above_colour_interval),
        "unseen_clusters": _number(row.unseen_clusters),
        "unseen_pixels": _number(row.unseen_pixels),
    }
    pairs = row.pairs or [None] * len(dataset.categories)
    for name, own, count in zip(dataset.categories, row.scores.categories, pairs, strict=True):
        for what in ("f1", "iou", "precision", "recall"):
            line[f"{what} {name}"] = ABSENT if own is None else _number(getattr(own, what))
        line[f"pairs {name}"] = "" if count is None else str(count)
    return line


def _markdown(dataset: Dataset, rows: "list[Row]") -> str:
    cases = {split: len({i.case for i in dataset.items if i.split == split}) for split in ("train", "test")}
    images = {split: sum(i.split == split for i in dataset.items) for split in ("train", "test")}
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
    for split in ("train", "test"):
        held = dataset.held(split)
        shares = [f"{100 * p / held.sum():.1f} %" if p else ABSENT for p in held.tolist()]
        text.append(f"| share of {split} pixels | " + " | ".join(shares) + " |")
    matched = [row for row in rows if row.protocol.endswith("matching")]
    probed = [row for row in rows if row.protocol.endswith("probing")]
    names = [f"F1 {name}" for name in dataset.categories]
    if matched:
        text += ["", "## What the factorization buys", "", *_verdict(matched), "", "## Matching (§3.5.2)", ""]
        head = [
            "encoder",
            "k",
            "segmentation",
            "centres of",
            "matching",
            "learnt on",
            "F1",
            "±",
            "IoU",
            "ARI",
        ]
        text += markdown_table(
            [*head, "MI", "F1 above no factorization", "F1 above colour only", *names],
            [_matched_cells(r) for r in matched],
        )
    if probed:
        text += [
            "",
            "## Linear probing (§3.5.1)",
            "",
            "A concept is a training pair where more than the threshold of its pixels are of one category. "
            "The threshold that is best on the training split is marked; only it is drawn.",
            "",
        ]
        head = ["encoder", "concepts a tile", "class weights", "threshold", "pairs", "F1", "IoU", "ARI", "MI"]
        text += markdown_table(
            [*head, "F1 above colour only", *names], [_probed_cells(dataset, r) for r in probed]
        )
    return "\n".join(text) + "\n"


def _verdict(rows: "list[Row]") -> list[str]:
    """In which rows F-SEG is better than the nearest centre: said whatever the answer is."""
    told, lines = [], []
    ks = sorted({row.k for row in rows})
    for mode in ("fixed", "assign"):
        own = [row for row in rows if row.mode == mode and row.gain is not None]
        if not own:
            continue
        better, worse = (sum(_sign(row) == word for row in own) for word in ("better", "worse"))
        told.append(
            f"- **{MODE_NAMES[mode]}** has the higher F1 in {sum((row.gain or 0) > 0 for row in own)} of "
            f"{len(own)} rows; with the 95 % interval of the difference beyond 0 it is better in {better}, "
            f"worse in {worse}."
        )
        for group in dict.fromkeys((r.encoder, r.centres, r.protocol, r.learnt_on) for r in own):
            encoder, centres, protocol, learnt_on = group
            at = {r.k: r for r in own if (r.encoder, r.centres, r.protocol, r.learnt_on) == group}
            kind = "balanced" if protocol.startswith("balanced") else "plain"
            cells = [f"{at[k].gain:+.3f} {_sign(at[k])}".strip() for k in ks]
            lines.append([encoder, MODE_NAMES[mode], centres, kind, learnt_on, *cells])
    head = ["encoder", "segmentation", "centres of", "matching", "learnt on", *(f"k = {k}" for k in ks)]
    return [
        "Against the same centres without factorization, each token to its nearest by cosine:",
        "",
        *told,
        "",
        "F1 above that of no factorization; *better* and *worse* where the 95 % interval leaves out 0:",
        "",
        *markdown_table(head, lines),
    ]


def _sign(row: "Row") -> str:
    if row.gain_interval and row.gain_interval.low > 0:
        return "better"
    return "worse" if row.gain_interval and row.gain_interval.high < 0 else ""


def _matched_cells(row: "Row") -> list[str]:
    return [
        row.encoder,
        str(row.k),
        MODE_NAMES[row.mode],
        row.centres,
        "balanced" if row.protocol.startswith("balanced") else "plain",
        row.learnt_on,
        with_interval(row.f1, row.f1_interval),
        "" if row.f1_spread is None else f"{row.f1_spread:.3f}",
        with_interval(row.iou, row.iou_interval),
        with_interval(row.ari, row.ari_interval),
        f"{row.mutual_information:.3f}",
        "" if row.gain is None else with_interval(row.gain, row.gain_interval, "+.3f"),
        _above_colour(row),
        *_each_f1(row),
    ]


def _probed_cells(dataset: Dataset, row: "Row") -> list[str]:
    pairs = zip(dataset.categories, row.pairs or (), strict=True)
    return [
        row.encoder,
        str(row.k),
        "balanced" if row.protocol.startswith("balanced") else "none",
        f"{row.threshold:g}" + (" (chosen)" if row.chosen else ""),
        ", ".join(f"{name} {count}" for name, count in pairs),
        with_interval(row.f1, row.f1_interval),
        with_interval(row.iou, row.iou_interval),
        with_interval(row.ari, row.ari_interval),
        f"{row.mutual_information:.3f}",
        _above_colour(row),
        *_each_f1(row),
    ]


def _above_colour(row: "Row") -> str:
    return (
        "" if row.above_colour is None else with_interval(row.above_colour, row.above_colour_interval, "+.3f")
    )


def _each_f1(row: "Row") -> list[str]:
    return [ABSENT if own is None else f"{own.f1:.3f}" for own in row.scores.categories]


def markdown_table(head: list[str], lines: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines)]


def with_interval(value: float, interval: Interval | None, form: str = ".3f") -> str:
    """A value, and in brackets where its bootstrap lies: ``0.706 [0.681, 0.733]``."""
    return f"{value:{form}}" + (f" [{interval.low:{form}}, {interval.high:{form}}]" if interval else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"


def _bounds(name: str, interval: Interval | None) -> dict[str, str]:
    low, high = interval or (None, None)
    return {f"{name}_low": _number(low), f"{name}_high": _number(high)}


def _save(path: Path, text: str) -> None:
    with replace_atomically(path) as part:
        part.write_text(text, encoding="utf-8")
