"""Evaluate SIC: run its experiment of few clicks on mosaics of real tiles, and write the table in results/.

    FSEG_DATA=/path/to/data python -m benchmarks.evaluate_sic [--encoder NAME,...]

``make_mosaics.py`` describes the slides. The encoders ``classical`` and ``he-small`` need no download; others
take their weights from the cache, the hub, or ``--weights NAME=FILE``. Embeddings stay in the folder
``--work`` if it is given, and are not computed again when another encoder is added.

``he-small`` was trained, without labels, on two thirds of EBHI-Seg's cases. A mosaic is of one case: a second
table is of the held-out cases alone.
"""

import csv
import shutil
import tempfile
from pathlib import Path

import click
import numpy as np

from benchmarks.examples import find_examples
from benchmarks.make_mosaics import write_mosaics
from fseg_jax.cli.evaluate import load_encoders
from fseg_jax.cli.options import weights_option
from fseg_jax.cli.parameters import ListCommand
from fseg_jax.cli.progress import show_progress
from fseg_jax.evaluation.data.layouts import open_dataset
from fseg_jax.evaluation.report.markdown import format_markdown_table
from fseg_jax.evaluation.run import evaluate_sic

RESULTS = Path(__file__).parent / "results"
RESULT_NAMES = {
    "results.csv": "sic_mosaics.csv",
    "results.md": "sic_mosaics.md",
    "evaluation.json": "sic_mosaics.json",
    "figure_sic.png": "sic_mosaics.png",
    "figure_sic.svg": "sic_mosaics.svg",
}


def format_held_out(ebhi: Path, slides: Path) -> str:
    """Format the table of held-out cases, from the experiment's CSV file of runs on slides."""
    items = open_dataset(ebhi).items
    cases = {f"mosaic-{item.case}" for item in items if item.split == "test"}
    with slides.open(encoding="utf-8", newline="") as file:
        runs = [run for run in csv.DictReader(file) if run["slide"] in cases]
    lines, names = [], sorted({run["slide"] for run in runs})
    for encoder, clicks in dict.fromkeys((run["encoder"], run["clicks"]) for run in runs):
        selection = [run for run in runs if (run["encoder"], run["clicks"]) == (encoder, clicks)]
        f1, single = (
            np.array([[float(run[column]) for run in selection if run["slide"] == name] for name in names])
            for column in ("f1", "f1_one_pass")
        )
        cells = [f1.max(1), f1.mean(1), single.mean(1)]
        lines.append([encoder, clicks, *(f"{v.mean():.3f} ± {v.std(ddof=1):.3f}" for v in cells)])
    head = ["encoder", "seeds a class", "SIC, best of the runs", "SIC, mean", "one pass, mean"]
    text = [
        "",
        "## Held out",
        "",
        "`he-small` was trained, without labels, on the tiles of two thirds of EBHI-Seg's cases. A slide is "
        f"one case; on the {len(names)} slides of the other cases alone:",
        "",
        *format_markdown_table(head, lines),
    ]
    return "\n".join(text) + "\n"


@click.command(cls=ListCommand)
@click.option("--encoder", "encoders", multiple=True, default=["classical", "he-small"], metavar="NAME,...")
@weights_option
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), help="Where mosaics are kept.")
def main(encoders: tuple[str, ...], weights: tuple[str, ...], work: Path | None) -> None:
    """Make the mosaics, run the experiment, and write benchmarks/results/sic_mosaics.*."""
    loaded_encoders = load_encoders(encoders, weights, "float32")
    with tempfile.TemporaryDirectory() as temporary:
        folder = work or Path(temporary)
        slides = folder / "ebhi-seg-mosaics"
        if not slides.exists():
            part = folder / "ebhi-seg-mosaics.part"
            shutil.rmtree(part, ignore_errors=True)
            for path in write_mosaics(find_examples() / "ebhi", part):
                click.echo(path.name)
            part.rename(slides)
        with show_progress() as display:
            evaluate_sic(slides, loaded_encoders, out=folder / "out", overwrite=True, progress=display.begin)
        for name, result_name in RESULT_NAMES.items():
            shutil.copyfile(folder / "out" / name, RESULTS / result_name)
        with (RESULTS / RESULT_NAMES["results.md"]).open("a", encoding="utf-8") as file:
            file.write(format_held_out(find_examples() / "ebhi", folder / "out" / "slides.csv"))
    click.echo(RESULTS / "sic_mosaics.md")


if __name__ == "__main__":
    main()
