"""Judge encoders trained as ``he-small`` on an organ that their training never saw.

    FSEG_DATA=... python -m benchmarks.he_small_manifest no-colon.csv 1 colon
    fseg pretrain no-colon.csv -o no-colon.safetensors --steps 700 --stains 0.85
    FSEG_DATA=... python -m benchmarks.left_out_organs colon=no-colon.safetensors breast=no-breast.safetensors

Beside them stand ``classical``, ImageNet's EfficientNet-Lite0, and ``he-small``, which saw the organ. Colon
is judged on EBHI-Seg's held-out cases, breast on BCSS, as in ``evaluate_he_small``. Results go to
``benchmarks/results/left_out_organs.*``.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax

from benchmarks.evaluate_he_small import RESULTS, STARTS, evaluate_pooled, prepare_datasets
from benchmarks.examples import find_examples
from fseg_jax.encoders.load import load_encoder
from fseg_jax.encoders.trained import load_trained
from fseg_jax.evaluation.report.markdown import format_markdown_table
from fseg_jax.evaluation.report.tables import format_with_interval
from fseg_jax.numerics.metrics import Interval
from fseg_jax.pipeline.record import made_with

JUDGED_ON = {"colon": "ebhi", "breast": "bcss"}
BESIDE = ("classical", "efficientnet-lite0", "he-small")
TEXT = (
    "An encoder trained as `he-small` was, but for one organ that it never saw, judged on that organ, beside "
    "`classical`, ImageNet's EfficientNet-Lite0, and `he-small`, which saw colon and some breast, and was "
    f"trained longer. F-SEG with fixed H, plain matching, {STARTS} starts of k-means; brackets: 95 % "
    "bootstrap intervals, those of differences of the same resampled cases."
)


def main(*trained: str) -> None:
    """Evaluate each ORGAN=FILE, and write the table; other organs keep the rows that they have."""
    data, results = find_examples(), RESULTS / "left_out_organs.json"
    kept = json.loads(results.read_text()) if results.exists() else {"rows": [], "steps": {}}
    organs = {given.partition("=")[0] for given in trained}
    lines = [_restore(line) for line in kept["rows"] if line["organ"] not in organs]
    steps = dict(kept["steps"])
    with tempfile.TemporaryDirectory() as temporary:
        for given in trained:
            organ, file = given.split("=")
            folder = Path(temporary) / organ
            encoders = [load_trained(Path(file)), *(load_encoder(name) for name in BESIDE)]
            title, datasets = prepare_datasets(JUDGED_ON[organ], data, folder)
            found = evaluate_pooled(
                datasets, encoders, folder / "out", stain_normalization=JUDGED_ON[organ] != "bcss"
            )
            lines += [{"organ": organ, "judged on": title, **line} for line in found]
            steps[organ] = json.loads(Path(file).with_suffix(".json").read_text())["settings"]["steps"]
    page = format_page(lines, steps)
    (RESULTS / "left_out_organs.md").write_text(page)
    record = {**made_with().to_json(), "device": jax.devices()[0].device_kind, "steps": steps, "rows": lines}
    results.write_text(json.dumps(record, indent=1) + "\n")
    print(page)


def _restore(line: dict[str, Any]) -> dict[str, Any]:
    """Restore the intervals of a row that was kept as JSON."""
    leads = {key: (each[0], Interval(*each[1])) for key, each in line.items() if key.startswith("above ")}
    return {**line, "interval": Interval(*line["interval"]), **leads}


def format_page(lines: list[dict[str, Any]], steps: dict[str, int]) -> str:
    """Format the rows of plain matching as a page."""
    head = [
        "left out",
        "judged on",
        "k",
        "segmentation",
        "centres of",
        "encoder",
        "macro F1",
        "the left-out one above it",
    ]
    cells = []
    for line in lines:
        if line["protocol"].startswith("balanced"):
            continue
        own = next(
            each
            for each in lines
            if all(each[key] == line[key] for key in ("organ", "k", "segmentation", "centres of", "protocol"))
            and any(key.startswith("above ") for key in each)
        )
        lead = own.get(f"above {line['encoder']}")
        name = f"trained without {line['organ']}" if line is own else line["encoder"]
        cells.append(
            [
                line["organ"],
                line["judged on"],
                str(line["k"]),
                line["segmentation"],
                line["centres of"],
                name,
                format_with_interval(line["f1"], line["interval"]),
                format_with_interval(lead[0], lead[1], "+.3f") if lead else "",
            ]
        )
    trained = ", ".join(f"without {organ}: {count} steps" for organ, count in steps.items())
    table = format_markdown_table(head, cells)
    return "\n".join(["# Organs that training never saw", "", f"{TEXT} Training {trained}.", "", *table, ""])


if __name__ == "__main__":
    main(*sys.argv[1:])
