"""``fseg evaluate`` and ``fseg evaluate sic``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fseg_jax.cli.options import (
    MICRONS,
    PATH,
    batching_options,
    cluster_counts_option,
    combine,
    concepts_option,
    dtype_option,
    encoders_option,
    frame_option,
    mpp_override_option,
    no_tissue_option,
    output_option,
    overwrite_option,
    patch_options,
    seed_option,
    series_option,
    stain_normalization_option,
    tile_option,
    weights_option,
)
from fseg_jax.cli.parameters import ListCommand, Number, WholeNumber
from fseg_jax.cli.progress import show_progress
from fseg_jax.errors import InputError

if TYPE_CHECKING:
    from fseg_jax.encoders.encoder import Encoder


class _FsegByDefault(click.Group):
    """A group whose command ``fseg`` need not be named: ``fseg evaluate DATASET``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["fseg", *args]
        return super().parse_args(ctx, args)


_OWN_DATASET = """\b
A folder of your own holds images/, masks/ (the same names; PNG or TIFF) and
dataset.yaml, of which only the categories are needed:
\b
  name: my slides
  categories:
    - {name: tumour, value: 1}     # several: [2, 3]; or colour: [220, 20, 60]
    - {name: stroma, value: 2}
  ignore: [0]                      # values, or colours
  case: '^(TCGA-..-....)'          # the case, as a regex of the file's name
  test: '^TCGA-(OL|LL)'            # the test split; or else a third of the cases
  mpp: 0.5                         # um per pixel, where it is known
"""


@click.group(
    cls=_FsegByDefault,
    options_metavar="",
    subcommand_metavar="[sic] DATASET ...",
    epilog=_OWN_DATASET,
)
def evaluate() -> None:
    """Score encoders on images with masks, as the papers do: tables and figures.

    `fseg evaluate DATASET ...` is F-SEG's experiment, `fseg evaluate sic DATASET ...` is SIC's. Their
    options: `fseg evaluate fseg --help`, `fseg evaluate sic --help`. A folder called sic is ./sic.
    """


def load_encoders(
    names: tuple[str, ...], weights: tuple[str, ...], dtype: str, *, last: bool = False
) -> "list[Encoder]":
    """Load the encoders to compare, each once.

    Args:
        names: Their names, or files.
        weights: Files of their weights, FILE or NAME=FILE.
        dtype: Precision of their products.
        last: Whether to read them at their last layer, instead of F-SEG's.

    Raises:
        InputError: An encoder cannot be loaded, or a file is not clearly that of one of them.
    """
    from fseg_jax.encoders.load import load_encoder

    encoders = list(dict.fromkeys(names))
    files: dict[str, Path] = {}
    for option in weights:
        name, equals, file = option.partition("=")
        if not equals or name not in encoders:
            if len(encoders) > 1:
                raise InputError(f"--weights {option}: say whose, {' or '.join(encoders)}: NAME=FILE")
            name, file = encoders[0], option
        if name in files:
            raise InputError(f"--weights {option}: {name} has {files[name]} already")
        files[name] = Path(file)
    return [load_encoder(name, weights=files.get(name), dtype=dtype, last=last) for name in encoders]


@evaluate.command(
    "fseg",
    cls=ListCommand,
    short_help="Linear probing and cluster matching (the default).",
    epilog=_OWN_DATASET,
)
@click.argument("dataset", type=PATH)
@combine(output_option(), encoders_option, weights_option, cluster_counts_option)
@click.option(
    "--mode",
    "modes",
    type=click.Choice(["fixed", "assign"]),
    multiple=True,
    default=["fixed", "assign"],
    show_default=True,
    metavar="MODE,...",
    help="Which of the paper's two methods to score.",
)
@click.option(
    "--starts",
    type=WholeNumber(1),
    default=3,
    show_default=True,
    help="Number of k-means starts whose scores are averaged.",
)
@concepts_option("Number of concepts in a tile, in mode assign and for the linear probe.")
@click.option(
    "--threshold",
    "thresholds",
    type=Number(0.5, 1, below=True),
    multiple=True,
    default=[0.5, 0.6, 0.7, 0.8, 0.9],
    show_default=True,
    metavar="FRACTION,...",
    help="Purities that a concept must have for the linear probe to learn from it.",
)
@click.option("--same-split", is_flag=True, help="Also match on the test split itself, the paper's variant.")
@click.option(
    "--mpp",
    type=MICRONS,
    metavar="µm",
    show_default="the images'",
    help="Resolution to work at, in µm per pixel.",
)
@combine(
    mpp_override_option("Resolution of the images in µm per pixel, instead of what the dataset says."),
    tile_option,
    stain_normalization_option,
)
@click.option(
    "--panels", type=WholeNumber(0), default=6, show_default=True, help="Number of test images to draw."
)
@combine(dtype_option, seed_option, overwrite_option)
def _fseg(
    dataset: Path,
    output: Path,
    encoders: tuple[str, ...],
    weights: tuple[str, ...],
    dtype: str,
    overwrite: bool,
    **options: Any,
) -> None:
    """Score encoders as the F-SEG paper does: linear probing, cluster matching, plots.

    DATASET is a folder laid out as BCSS, WSSS4LUAD or EBHI-Seg, or images/, masks/ and a dataset.yaml.
    """
    from fseg_jax.evaluation.data.layouts import open_dataset
    from fseg_jax.evaluation.run import evaluate_fseg
    from fseg_jax.evaluation.settings import EvaluationSettings

    settings = EvaluationSettings(**options)
    images = open_dataset(dataset)
    loaded = load_encoders(encoders, weights, dtype)
    with show_progress() as display:
        evaluate_fseg(
            images, loaded, settings, out=output, overwrite=overwrite, progress=display.begin(dataset.name)
        )
    click.echo(output / "results.md")


@evaluate.command("sic", cls=ListCommand, short_help="How well a few clicks find a tumour.")
@click.argument("dataset", type=PATH)
@combine(output_option(), encoders_option, weights_option)
@click.option(
    "--clicks",
    type=WholeNumber(1),
    multiple=True,
    default=[1, 3, 5],
    show_default=True,
    metavar="N,...",
    help="Numbers of seed patches of each class.",
)
@click.option(
    "--runs",
    type=WholeNumber(1),
    default=5,
    show_default=True,
    help="Number of runs, each with other random seed patches.",
)
@combine(
    patch_options,
    no_tissue_option(),
    mpp_override_option("Resolution of the slides in µm per pixel, instead of what their files say."),
    frame_option,
    series_option,
    dtype_option,
    batching_options,
    seed_option,
    overwrite_option,
)
def _sic(
    dataset: Path,
    output: Path,
    encoders: tuple[str, ...],
    weights: tuple[str, ...],
    clicks: tuple[int, ...],
    runs: int,
    no_tissue: bool,
    dtype: str,
    seed: int,
    overwrite: bool,
    **options: Any,
) -> None:
    """Score encoders by how well 1, 3 or 5 random seed patches a class find a tumour (SIC, §3).

    DATASET is a folder laid out as DigestPath: slides NAME.jpg (.tif, .svs, ...) beside their masks
    NAME_mask.jpg (.png, ...), 255 where the tumour is. DigestPath's JPEGs do not say their resolution:
    --mpp-override 0.5.
    """
    from fseg_jax.evaluation.run import evaluate_sic
    from fseg_jax.evaluation.settings import SicSettings
    from fseg_jax.pipeline.embed import PatchSettings

    patches = PatchSettings(tissue="all" if no_tissue else "find", **options)
    settings = SicSettings(clicks, runs, seed, patches)
    loaded = load_encoders(encoders, weights, dtype, last=True)
    with show_progress() as display:
        evaluate_sic(dataset, loaded, settings, out=output, overwrite=overwrite, progress=display.begin)
    click.echo(output / "results.md")
