"""``fseg pretrain``."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fseg_jax.cli.options import (
    MICRONS,
    PATH,
    SHARE,
    combine,
    dtype_option,
    mpp_override_option,
    output_option,
    overwrite_option,
    seed_option,
    series_option,
)
from fseg_jax.cli.parameters import Number, WholeNumber
from fseg_jax.cli.progress import Display, show_progress
from fseg_jax.errors import InputError
from fseg_jax.process import keep_freed_memory

if TYPE_CHECKING:
    from fseg_jax.encoders.encoder import Encoder
    from fseg_jax.pretraining.fields import Field, Geometry
    from fseg_jax.pretraining.pretrain import StepReport


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="IMAGES...")
@output_option("FILE", "Encoder to write, a .safetensors file.")
@click.option(
    "--start",
    metavar="ENCODER",
    show_default="random weights",
    help="Encoder to go on from: he-small, or a file that fseg pretrain wrote.",
)
@click.option("--name", metavar="NAME", show_default="the file's name", help="Name of the encoder.")
@click.option("--licence", default="", metavar="TEXT", help="Licence of the encoder, for its card.")
@mpp_override_option("Resolution of the images in µm per pixel, where nothing else says it.")
@series_option
@click.option(
    "--mpp",
    "resolutions",
    type=MICRONS,
    nargs=2,
    default=(0.5, 1.5),
    show_default=True,
    metavar="FINEST COARSEST",
    help="Range of resolutions of the views, in µm per pixel.",
)
@click.option(
    "--crop",
    type=WholeNumber(32),
    default=96,
    show_default=True,
    metavar="PIXELS",
    help="Side of a view in pixels.",
)
@click.option(
    "--fields-per-slide",
    type=WholeNumber(1),
    default=50,
    show_default=True,
    help="Number of fields of 512 pixels drawn from a slide.",
)
@click.option(
    "--steps", type=WholeNumber(1), default=2000, show_default=True, help="Number of training steps."
)
@click.option(
    "--pairs", type=WholeNumber(2), default=128, show_default=True, help="Number of pairs of views in a step."
)
@click.option(
    "--chunk",
    type=WholeNumber(1),
    show_default="all",
    help="Number of views that go through the network at once; fewer save memory.",
)
@click.option(
    "--regions",
    type=WholeNumber(1),
    default=4,
    show_default=True,
    help="Number of regions compared in a pair of views.",
)
@click.option(
    "--dense",
    type=SHARE,
    default=0.5,
    show_default=True,
    metavar="FRACTION",
    help="Weight of the regions in the loss.",
)
@click.option(
    "--temperature",
    type=Number(0, 1000, above=True),
    default=0.2,
    show_default=True,
    help="Temperature of the contrastive loss.",
)
@click.option(
    "--learning-rate",
    type=Number(0, 1000, above=True),
    default=1e-3,
    show_default=True,
    help="Largest learning rate.",
)
@click.option(
    "--weight-decay", type=Number(0, 1000), default=1e-4, show_default=True, help="Weight decay of AdamW."
)
@dtype_option
@click.option(
    "--stains",
    type=Number(0, 1e6),
    default=0.0,
    show_default=True,
    help="Scale of the classical encoder's channels, put beside the network's; 0 leaves them out.",
)
@click.option(
    "--score",
    type=PATH,
    metavar="DATASET",
    help="Images with masks, as fseg evaluate takes them: score the encoder on them by k-NN.",
)
@click.option(
    "--every", type=WholeNumber(1), default=100, show_default=True, help="Number of steps between scores."
)
@combine(seed_option, overwrite_option)
def pretrain(
    sources: tuple[str, ...],
    output: Path,
    start: str | None,
    name: str | None,
    licence: str,
    mpp_override: float | None,
    series: int | None,
    resolutions: tuple[float, float],
    crop: int,
    fields_per_slide: int,
    regions: int,
    stains: float,
    score: Path | None,
    every: int,
    seed: int,
    overwrite: bool,
    steps: int,
    pairs: int,
    chunk: int | None,
    dense: float,
    temperature: float,
    learning_rate: float,
    weight_decay: float,
    dtype: str,
) -> None:
    """Train an encoder on your own slides, without labels: SimCLR, with regions contrasted too.

    IMAGES are manifests, folders, globs. Interrupted, the same command goes on where it stopped; with
    --overwrite another run's checkpoint is replaced too. Then: fseg segment --encoder FILE.
    """
    from fseg_jax.encoders.trained import load_parts
    from fseg_jax.pretraining.fields import Geometry
    from fseg_jax.pretraining.pretrain import check_output, pretrain
    from fseg_jax.pretraining.simclr import TrainingSettings

    keep_freed_memory()
    check_output(output, overwrite)
    parts = None if start is None else load_parts(start)
    finest, coarsest = resolutions
    if not 0 < finest <= coarsest:
        raise InputError(f"--mpp {finest:g} {coarsest:g}: give the finer one first, both above 0")
    if temperature <= 0 or learning_rate <= 0:
        raise InputError("--temperature and --learning-rate must be above 0")
    geometry = Geometry(crop, finest, coarsest, regions)
    settings = TrainingSettings(
        steps=steps,
        pairs=pairs,
        temperature=temperature,
        dense=dense,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        chunk=chunk,
        dtype=dtype,
        seed=seed,
    )
    fields = _list_fields(sources, geometry, mpp_override, series, fields_per_slide, seed)
    sites = {field.site for field in fields}
    with show_progress() as display:
        display.log(f"{len(fields)} fields of {len(sites)} site(s)")
        pretrain(
            fields,
            output,
            name=name or output.stem,
            licence=licence,
            settings=settings,
            geometry=geometry,
            start=parts,
            stains=stains,
            score=_make_score(score) if score else None,
            every=every,
            overwrite=overwrite,
            report=_report_steps(display, steps, every),
        )
    click.echo(output)


def _list_fields(
    sources: tuple[str, ...],
    geometry: "Geometry",
    mpp_override: float | None,
    series: int | None,
    most: int,
    seed: int,
) -> "list[Field]":
    from fseg_jax.cohort.manifest import load_manifest
    from fseg_jax.pretraining.slide_fields import draw_fields
    from fseg_jax.slides.reader import open_slide

    fields: list[Field] = []
    for source in sources:
        for row in load_manifest(source):
            chosen = series if row.series is None else row.series
            with open_slide(row.path, row.mpp or mpp_override, series=chosen) as slide:
                fields += draw_fields(slide, row.site or source, geometry, most, seed)
    return fields


def _make_score(dataset: Path) -> "Callable[[Encoder], float]":
    """Return the function that scores an encoder on a dataset's test split."""
    from fseg_jax.evaluation.data.encoded_dataset import encode_dataset
    from fseg_jax.evaluation.data.layouts import open_dataset
    from fseg_jax.evaluation.protocols.knn import score_by_neighbours

    images = open_dataset(dataset)

    def score(encoder: "Encoder") -> float:
        scale = images.mpp / encoder.card.mpp if images.mpp else 1.0
        with tempfile.TemporaryDirectory() as folder:
            encoded = encode_dataset(images, encoder, Path(folder), scale=scale)
            return score_by_neighbours(encoded, len(images.categories))

    return score


def _report_steps(display: Display, steps: int, every: int) -> "Callable[[StepReport], None]":
    """Return what shows a step: its loss, learning rate, speed and score; in a log each score, at least."""

    def report(at: "StepReport") -> None:
        score = "" if at.score is None else f" · score {at.score:.3f}"
        text = (
            f"loss {at.loss:.3f} · rate {at.learning_rate:.1e} · {at.images_per_second:.0f} images/s{score}"
        )
        if at.step % every == 0 or at.step in (1, steps):
            display.log(f"step {at.step}/{steps} · {text}")
        display.update("step", at.step, steps, text)

    return report
