"""``fseg evaluate``."""

from pathlib import Path
from typing import Any

import click

from fseg_jax.cli.options import output_option, overwrite_option, seed_option, together, verbose_option
from fseg_jax.terminal import Several, bars, log


@click.command(cls=Several)
@click.argument("dataset", type=click.Path(path_type=Path))
@output_option
@click.option(
    "--encoder", "encoders", multiple=True, default=["classical"], metavar="NAME ...", help="Which encoders."
)
@click.option(
    "--k",
    type=click.IntRange(1),
    multiple=True,
    default=[16, 32, 64, 128, 256],
    metavar="K ...",
    help="Numbers of clusters (16 32 64 128 256).",
)
@click.option(
    "--mode",
    "modes",
    type=click.Choice(["fixed", "assign"]),
    multiple=True,
    default=["fixed", "assign"],
    help="Which of the paper's two ways (both).",
)
@click.option(
    "--starts", type=click.IntRange(1), default=3, show_default=True, help="k-means starts to average."
)
@click.option("--same-split", is_flag=True, help="Also match on the test split itself, the paper's variant.")
@click.option("--mpp", type=float, metavar="µM", help="Work at this many µm per pixel.")
@click.option("--mpp-override", type=float, metavar="µM", help="The images' µm per pixel.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Precision of the encoders' products.",
)
@together(seed_option, overwrite_option, verbose_option)
def evaluate(
    dataset: Path,
    output: Path,
    encoders: tuple[str, ...],
    k: tuple[int, ...],
    modes: tuple[str, ...],
    dtype: str,
    verbose: int,
    **options: Any,
) -> None:
    """Score encoders on images with masks, as the F-SEG paper does: linear probing, cluster matching, plots.

    DATASET is a folder laid out as BCSS, WSSS4LUAD or EBHI-Seg, or images/, masks/ and a dataset.yaml.
    """
    log(verbose)
    from fseg_jax.encoders.load import load_encoder
    from fseg_jax.evaluation.datasets import open_dataset
    from fseg_jax.evaluation.experiment import evaluate

    images = open_dataset(dataset)
    loaded = [load_encoder(name, dtype=dtype) for name in dict.fromkeys(encoders)]
    with bars(1) as progress:
        evaluate(images, loaded, out=output, k=k, modes=modes, report=progress(dataset.name), **options)
    click.echo(output / "results.md")
