"""How well few clicks find the tumour in mosaics of real tiles: SIC's experiment, and the table in results/.

    FSEG_DATA=/path/to/data python -m benchmarks.evaluate_sic [--encoder NAME ...]

``make_mosaics.py`` says what the slides are. ``classical`` is the encoder that needs no download; others have
their weights from the cache or the hub, or from ``--weights NAME=FILE``. Embeddings are kept in ``--work``
where it is given, so that another encoder can be added without embedding the first ones again.
"""

import os
import shutil
import tempfile
from pathlib import Path

import click

from benchmarks.make_mosaics import write_mosaics
from fseg_jax.cli.evaluate import load_encoders, weights_option
from fseg_jax.evaluation.sic import evaluate
from fseg_jax.terminal import Several, bars

RESULTS = Path(__file__).parent / "results"
NAMES = {
    "results.csv": "sic_mosaics.csv",
    "results.md": "sic_mosaics.md",
    "evaluation.json": "sic_mosaics.json",
    "figure_sic.png": "sic_mosaics.png",
    "figure_sic.svg": "sic_mosaics.svg",
}


@click.command(cls=Several)
@click.option("--encoder", "encoders", multiple=True, default=["classical"], metavar="NAME ...")
@weights_option
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), help="Where mosaics are kept.")
def main(encoders: tuple[str, ...], weights: tuple[str, ...], work: Path | None) -> None:
    """Make the mosaics, run the experiment, and write benchmarks/results/sic_mosaics.*"""
    loaded = load_encoders(encoders, weights, "float32")
    with tempfile.TemporaryDirectory() as temporary:
        folder = work or Path(temporary)
        slides = folder / "ebhi-seg-mosaics"
        if not slides.exists():
            part = folder / "ebhi-seg-mosaics.part"
            shutil.rmtree(part, ignore_errors=True)
            for path in write_mosaics(Path(os.environ["FSEG_DATA"]) / "ebhi", part):
                click.echo(path.name)
            part.rename(slides)
        with bars(1) as progress:
            evaluate(slides, loaded, out=folder / "out", overwrite=True, progress=progress)
        for name, kept in NAMES.items():
            shutil.copyfile(folder / "out" / name, RESULTS / kept)
    click.echo(RESULTS / "sic_mosaics.md")


if __name__ == "__main__":
    main()
