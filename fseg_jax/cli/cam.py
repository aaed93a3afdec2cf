"""``fseg cam``: masks from image labels, step by step, and the paper's runs."""

from pathlib import Path
from typing import Any

import click

from fseg_jax.cli.options import (
    RATE,
    SHARE,
    Whole,
    output_option,
    overwrite_option,
    seed_option,
    together,
)
from fseg_jax.cli.terminal import Named, Several, bars
from fseg_jax.errors import InputError

labels_options = together(
    click.option(
        "--labels",
        type=click.Path(path_type=Path),
        metavar="CSV",
        help="Image and label; otherwise subfolders are labels, but for one called unlabelled.",
    ),
    click.option("--positive", metavar="CLASS", help="The class to be found (the last by the alphabet)."),
)
training_options = together(
    click.option("--network", default="b1", show_default=True, help="b0 to b7, or small, for CPUs."),
    click.option("--size", type=Whole(32), default=224, show_default=True, help="Side of images, pixels."),
    click.option("--epochs", type=Whole(1), default=25, show_default=True),
    click.option(
        "--training-batch",
        "batch",
        type=Whole(2),
        default=16,
        show_default=True,
        help="A step's images.",
    ),
    click.option("--learning-rate", type=RATE, default=1e-3, show_default=True, help="Adam's."),
    click.option("--augment", is_flag=True, help="Turn and mirror images at random."),
    click.option("--start", type=click.Choice(["random", "imagenet"]), default="random", show_default=True),
)
features_option = click.option(
    "--features",
    default="lire",
    show_default=True,
    metavar="NAME",
    help="What images are clustered by: LIRE's four, lire-even (on one scale), or an encoder's, averaged.",
)
method_option = click.option(
    "--method",
    type=click.Choice(["grad-cam", "grad-cam++", "smooth", "concepts"]),
    default="grad-cam",
    show_default=True,
    help="Whose maps; concepts: F-SEG's, scored by the gradient.",
)


@click.group(cls=Named)
def cam() -> None:
    """Masks from a few image labels: spread labels, train a classifier, threshold its Grad-CAM."""


@cam.command()
@click.argument("folder", type=click.Path(path_type=Path))
@together(output_option, labels_options)
@click.option("--k", type=Whole(1), default=200, show_default=True, metavar="K", help="Clusters.")
@click.option("--wanted", type=Whole(1), default=1000, show_default=True, help="Labelled images to stop at.")
@click.option(
    "--purity",
    type=SHARE,
    default=1.0,
    show_default=True,
    help="Share of a cluster's labelled images that must agree.",
)
@click.option("--held-out", type=Whole(0), default=60, show_default=True, help="Labelled images set aside.")
@together(features_option, seed_option, overwrite_option)
def propagate(
    folder: Path,
    output: Path,
    labels: Path | None,
    positive: str | None,
    overwrite: bool,
    **options: Any,
) -> None:
    """Spread the labels of a few images in FOLDER over those that look like them."""
    from fseg_jax.cam.labels import read_labels
    from fseg_jax.cam.propagate import PropagationSettings, propagate_folder

    images = read_labels(folder, labels, positive)
    with bars(1) as progress:
        record = propagate_folder(
            images,
            output,
            PropagationSettings(**options),
            overwrite=overwrite,
            report=progress(folder.name),
        ).record
    for name in record["classes"]:
        click.echo(f"{name}: {record['given'][name]} labelled, {record['labelled'][name]} after spreading")
    click.echo(f"{record['unlabelled']} stay unlabelled; {record['rounds']} rounds, {record['ended']}")
    click.echo(output / "labels.csv")


@cam.command()
@click.argument("folder", type=click.Path(path_type=Path))
@together(output_option, labels_options, training_options)
@click.option(
    "--images",
    "most",
    type=Whole(2),
    default=1000,
    show_default=True,
    help="Images to train on, at most.",
)
@click.option(
    "--held-out",
    type=Whole(0),
    default=60,
    show_default=True,
    help="Images to evaluate on, unless the labels set some aside.",
)
@together(seed_option, overwrite_option)
def train(
    folder: Path,
    output: Path,
    labels: Path | None,
    positive: str | None,
    most: int,
    held_out: int,
    overwrite: bool,
    **options: Any,
) -> None:
    """Train a classifier on FOLDER's labelled images; run again, it goes on where it was."""
    from fseg_jax.cam.classifier import Settings
    from fseg_jax.cam.classifier_file import WEIGHTS
    from fseg_jax.cam.labels import read_labels
    from fseg_jax.cam.train import train_folder

    settings = Settings(**options)
    settings.check()
    images = read_labels(folder, labels, positive)
    with bars(1) as progress:
        record = train_folder(
            images,
            output,
            settings,
            most=most,
            held_out=held_out,
            overwrite=overwrite,
            report=progress(folder.name),
        )
    if record["held_out_accuracy"] is not None:
        click.echo(
            f"accuracy {record['held_out_accuracy']:.3f}, balanced over the classes "
            f"{record['held_out_balanced_accuracy']:.3f}, on {sum(record['held_out'].values())} images held "
            f"out, after epoch {record['epoch_kept']}"
        )
    click.echo(output / WEIGHTS)


@cam.command()
@click.argument("images", type=click.Path(path_type=Path))
@output_option
@click.option(
    "--classifier",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="What fseg cam train wrote: the file, or its folder.",
)
@method_option
@click.option(
    "--layer",
    help="Block to read, or stem, top; the paper's are b1's 13, 14, 20, 22 (14, or its place in others).",
)
@click.option(
    "--lower", type=SHARE, default=0.4, show_default=True, help="The mask is above this of the map."
)
@click.option("--upper", type=SHARE, help="And below this (0.7, unless --lower is given).")
@click.option(
    "--choose",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Choose both on images/ and masks/ in this folder.",
)
@click.option("--tiles", type=Whole(1), default=1, show_default=True, help="Cut an image into N × N first.")
@click.option("--whole", is_flag=True, help="Map it in one piece, as large as its tiles, not each tile.")
@click.option("--reject", is_flag=True, help="No mask where the classifier does not see the class.")
@click.option("--largest", type=Whole(1), metavar="N", help="Keep the N largest pieces.")
@click.option("--fill-holes", is_flag=True, help="Fill the holes of masks.")
@click.option("--class", "of_class", metavar="CLASS", help="Which class to find (the last).")
@together(seed_option, overwrite_option)
@click.pass_context
def segment(
    context: click.Context,
    images: Path,
    output: Path,
    classifier: Path,
    layer: str | None,
    choose: Path | None,
    upper: float | None,
    lower: float,
    overwrite: bool,
    **options: Any,
) -> int:
    """Segment the images of a folder: masks, pictures with heat maps, a table."""
    from fseg_jax.cam.classifier import same_place
    from fseg_jax.cam.classifier_file import load_classifier
    from fseg_jax.cam.evaluate import choose_thresholds
    from fseg_jax.cam.images import find_images
    from fseg_jax.cam.segment import MaskSettings, segment_files

    given = context.get_parameter_source("lower") is not click.core.ParameterSource.DEFAULT
    if choose and (given or upper is not None):
        raise InputError("--choose and --lower or --upper contradict each other: give one of them")
    if not given and upper is None:
        upper = 0.7
    files = find_images(images)
    loaded = load_classifier(classifier)
    if layer is None:
        layer = same_place(MaskSettings.layer, loaded.network.config)
    elif layer.isdigit():
        layer = f"blocks.{layer}"
    settings = MaskSettings(layer=layer, lower=lower, upper=upper, **options)
    if choose:
        settings, dice = choose_thresholds(loaded, settings, choose)
        click.echo(f"thresholds {settings.lower:g} and {settings.upper or 1:g}: Dice {dice:.3f} on {choose}")
    names = [path.relative_to(images).with_suffix("").as_posix() for path in files]
    with bars(1) as progress:
        record = segment_files(
            files, names, loaded, output, settings, overwrite=overwrite, report=progress(images.name)
        )
    click.echo(output / "masks.csv")
    return 2 if record["unreadable"] else 0


@cam.command()
@click.argument("masks", type=click.Path(path_type=Path))
@click.argument("truth", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the table there, too."
)
@together(seed_option)
def evaluate(masks: Path, truth: Path, output: Path | None, seed: int) -> None:
    """Score a folder of MASKS against one of true masks, beside two baselines that do not look."""
    from fseg_jax.cam.masks import evaluate_folder, scores_table
    from fseg_jax.files.atomic import replacing

    table = scores_table(evaluate_folder(masks, truth, seed))
    click.echo(table, nl=False)
    if output:
        with replacing(output) as part:
            part.write_text(table, encoding="utf-8")


@cam.command(cls=Several)
@click.argument("dataset", type=click.Path(path_type=Path))
@output_option
@click.option(
    "--run",
    "runs",
    multiple=True,
    default=["1", "2", "3", "4", "5"],
    metavar="RUN ...",
    help="Which of the paper's runs (all five), or Python files that set RUN.",
)
@click.option(
    "--negatives", type=click.Path(path_type=Path), metavar="FOLDER", help="Images that show no polyp."
)
@click.option(
    "--unlabelled", type=click.Path(path_type=Path), metavar="FOLDER", help="Images that show anything."
)
@click.option(
    "--validation",
    type=Whole(1),
    default=15,
    show_default=True,
    help="Images for choosing epoch and thresholds.",
)
@together(training_options, features_option, seed_option, overwrite_option)
def reproduce(
    dataset: Path,
    output: Path,
    runs: tuple[str, ...],
    negatives: Path | None,
    unlabelled: Path | None,
    validation: int,
    features: str,
    seed: int,
    overwrite: bool,
    **options: Any,
) -> None:
    """Repeat the paper's runs on DATASET, in Kvasir-SEG's layout, and print its tables with ours beside them.

    A quarter of the images is kept for scoring.
    """
    from fseg_jax.cam.classifier import Settings
    from fseg_jax.cam.evaluate import load_run, reproduce
    from fseg_jax.cam.runs import Reproduction

    loaded = [load_run(which) for which in dict.fromkeys(runs)]
    setting = Reproduction(
        classifier=Settings(seed=seed, **options), validation=validation, features=features, seed=seed
    )
    with bars(1) as progress:
        reproduce(
            dataset,
            output,
            loaded,
            setting,
            negatives=negatives,
            unlabelled=unlabelled,
            overwrite=overwrite,
            report=progress(dataset.name),
        )
    click.echo((output / "results.md").read_text(encoding="utf-8"), nl=False)
