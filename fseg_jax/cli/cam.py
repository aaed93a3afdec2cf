"""``fseg cam``: masks from image labels, step by step, and the paper's runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from fseg_jax.cli.options import (
    PATH,
    RATE,
    SHARE,
    combine,
    output_option,
    overwrite_option,
    seed_option,
)
from fseg_jax.cli.parameters import ListCommand, WholeNumber
from fseg_jax.cli.progress import show_progress
from fseg_jax.cli.terminal import CommandGroup, say
from fseg_jax.errors import InputError

labels_options = combine(
    click.option(
        "--labels",
        type=PATH,
        metavar="CSV",
        show_default="the names of subfolders; unlabelled is none",
        help="Table with the columns image and label.",
    ),
    click.option(
        "--positive",
        metavar="CLASS",
        show_default="the last by the alphabet",
        help="Class that masks are to show.",
    ),
)
training_options = combine(
    click.option(
        "--network",
        default="b1",
        show_default=True,
        metavar="NAME",
        help="EfficientNet to train: b0 to b7, lite0 to lite4, or small, for CPUs.",
    ),
    click.option(
        "--size",
        type=WholeNumber(32),
        default=224,
        show_default=True,
        metavar="PIXELS",
        help="Side that images are resized to, in pixels.",
    ),
    click.option(
        "--epochs", type=WholeNumber(1), default=25, show_default=True, help="Number of training epochs."
    ),
    click.option(
        "--training-batch",
        "batch",
        type=WholeNumber(2),
        default=16,
        show_default=True,
        help="Number of images in a training step.",
    ),
    click.option(
        "--learning-rate", type=RATE, default=1e-3, show_default=True, help="Learning rate of Adam."
    ),
    click.option("--augment", is_flag=True, help="Turn and mirror images at random."),
    click.option(
        "--start",
        type=click.Choice(["random", "imagenet"]),
        default="random",
        show_default=True,
        help="Weights to start from; imagenet for b0, b1, lite0, lite1 and lite2.",
    ),
)
features_option = click.option(
    "--features",
    default="lire",
    show_default=True,
    metavar="NAME",
    help="Features to cluster images by: lire, lire-even (all on one scale), or an encoder's, averaged.",
)
held_out_option = click.option(
    "--held-out",
    type=WholeNumber(0),
    default=60,
    show_default=True,
    help="Number of labelled images set aside to evaluate the classifier.",
)
method_option = click.option(
    "--method",
    type=click.Choice(["grad-cam", "grad-cam++", "smooth", "concepts"]),
    default="grad-cam",
    show_default=True,
    help="Method of the heat map; concepts are F-SEG's, scored by the gradient.",
)


@click.group(cls=CommandGroup)
def cam() -> None:
    """Masks from a few image labels: spread labels, train a classifier, threshold its Grad-CAM."""


@cam.command()
@click.argument("folder", type=PATH)
@combine(output_option(), labels_options)
@click.option(
    "--k", type=WholeNumber(1), default=200, show_default=True, metavar="K", help="Number of clusters."
)
@click.option(
    "--wanted",
    type=WholeNumber(1),
    default=1000,
    show_default=True,
    help="Number of labelled images at which to stop.",
)
@click.option(
    "--purity",
    type=SHARE,
    default=1.0,
    show_default=True,
    metavar="FRACTION",
    help="Fraction of a cluster's labelled images that must agree.",
)
@combine(held_out_option, features_option, seed_option, overwrite_option)
def propagate(
    folder: Path,
    output: Path,
    labels: Path | None,
    positive: str | None,
    overwrite: bool,
    **options: Any,
) -> None:
    """Spread the labels of a few images in FOLDER over those that look like them."""
    from fseg_jax.cam.image_labels import read_labels
    from fseg_jax.cam.propagate_labels import PropagationSettings, propagate_folder

    images = read_labels(folder, labels, positive)
    with show_progress() as display:
        record = propagate_folder(
            images,
            output,
            PropagationSettings(**options),
            overwrite=overwrite,
            progress=display.begin(folder.name),
        ).record
    for name in record.classes:
        say(f"{name}: {record.given[name]} labelled, {record.labelled[name]} after spreading")
    say(f"{record.unlabelled} stay unlabelled; {record.rounds} rounds, {record.ended}")
    click.echo(output / "labels.csv")


@cam.command()
@click.argument("folder", type=PATH)
@combine(output_option(), labels_options, training_options)
@click.option(
    "--images",
    "most",
    type=WholeNumber(2),
    default=1000,
    show_default=True,
    help="Largest number of images to train on.",
)
@combine(held_out_option, seed_option, overwrite_option)
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
    from fseg_jax.cam.classifier import ClassifierSettings
    from fseg_jax.cam.classifier_file import WEIGHTS
    from fseg_jax.cam.image_labels import read_labels
    from fseg_jax.cam.train_classifier import train_folder

    settings = ClassifierSettings(**options)
    settings.check()
    images = read_labels(folder, labels, positive)
    with show_progress() as display:
        record = train_folder(
            images,
            output,
            settings,
            most=most,
            held_out=held_out,
            overwrite=overwrite,
            progress=display.begin(folder.name),
        )
    if record.held_out_accuracy is not None:
        count = sum(record.held_out.values())
        last = record.held_out_accuracy_of_the_last_epoch or 0.0
        say(
            f"{round(record.held_out_accuracy * count)} of {count} images held out are right, "
            f"{record.held_out_balanced_accuracy:.0%} as the mean over the classes; they chose epoch "
            f"{record.epoch_kept}, so this is a little too good (the last epoch: {round(last * count)})"
        )
    click.echo(output / WEIGHTS)


@cam.command()
@click.argument("images", type=PATH)
@output_option()
@click.option(
    "--classifier",
    type=PATH,
    required=True,
    metavar="FILE",
    help="Classifier that fseg cam train wrote: the file, or its folder.",
)
@method_option
@click.option(
    "--layer",
    metavar="BLOCK",
    show_default="14 of b1, or its place in others",
    help="Block to take the heat map from: a number, stem or top; the paper uses 13, 14, 20 and 22 of b1.",
)
@click.option(
    "--lower", type=SHARE, default=0.4, show_default=True, help="Value that heat must exceed in a mask."
)
@click.option(
    "--upper",
    type=SHARE,
    show_default="0.7, or none if --lower is given",
    help="Value that heat must stay below in a mask.",
)
@click.option(
    "--choose",
    type=PATH,
    metavar="FOLDER",
    help="Choose both values on images/ and masks/ in this folder.",
)
@click.option(
    "--tiles",
    type=WholeNumber(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Cut an image into N × N tiles first.",
)
@click.option(
    "--whole", is_flag=True, help="Compute one heat map of an image at the size of its tiles together."
)
@click.option(
    "--reject", is_flag=True, help="Leave a mask empty where the class has a probability below one half."
)
@click.option("--largest", type=WholeNumber(1), metavar="N", help="Keep only the N largest pieces of a mask.")
@click.option("--fill-holes", is_flag=True, help="Fill the holes of masks.")
@click.option(
    "--class", "of_class", metavar="CLASS", show_default="the classifier's last", help="Class to segment."
)
@combine(seed_option, overwrite_option)
@click.pass_context
def segment(
    context: click.Context,
    /,
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
    from fseg_jax.cam.classifier import find_equivalent_layer
    from fseg_jax.cam.classifier_file import load_classifier
    from fseg_jax.cam.heat_mapper import HeatMapper, MaskSettings, choose_thresholds
    from fseg_jax.cam.image_folder import find_images
    from fseg_jax.cam.image_pairs import find_pairs, name_file
    from fseg_jax.cam.segment_images import segment_files

    has_lower = context.get_parameter_source("lower") is not click.core.ParameterSource.DEFAULT
    if choose and (has_lower or upper is not None):
        raise InputError("--choose and --lower or --upper contradict each other: give one of them")
    if not has_lower and upper is None:
        upper = 0.7
    files = find_images(images)
    loaded = load_classifier(classifier)
    if layer is None:
        layer = find_equivalent_layer(MaskSettings.layer, loaded.network.config)
    elif layer.isdigit():
        layer = f"blocks.{layer}"
    settings = MaskSettings(layer=layer, lower=lower, upper=upper, **options)
    if choose:
        mapper = HeatMapper(loaded, settings)
        band, dice = choose_thresholds(mapper, (pair.read() for pair in find_pairs(choose)))
        settings = replace(settings, lower=band.lower, upper=band.upper)
        say(
            f"thresholds {settings.lower:g} and {settings.upper or 1:g}: Dice {dice:.3f}, the best there is "
            f"on {choose}; on other images expect less"
        )
    names = [name_file(images, path) for path in files]
    with show_progress() as display:
        record = segment_files(
            files, names, loaded, output, settings, overwrite=overwrite, progress=display.begin(images.name)
        )
    click.echo(output / "masks.csv")
    return 2 if record.unreadable else 0


@cam.command()
@click.argument("masks", type=PATH)
@click.argument("truth", type=PATH)
@click.option("-o", "--output", type=PATH, metavar="FILE", help="Also write the table to this file.")
@combine(seed_option)
def evaluate(masks: Path, truth: Path, output: Path | None, seed: int) -> None:
    """Score a folder of MASKS against one of true masks, beside two baselines that ignore the images."""
    from fseg_jax.cam.score_masks import format_scores, score_folder
    from fseg_jax.files.atomic import replace_atomically

    table = format_scores(score_folder(masks, truth, seed))
    click.echo(table, nl=False)
    if output:
        with replace_atomically(output) as part:
            part.write_text(table, encoding="utf-8")


@cam.command(cls=ListCommand)
@click.argument("dataset", type=PATH)
@output_option()
@click.option(
    "--run",
    "runs",
    multiple=True,
    default=["1", "2", "3", "4", "5"],
    show_default=True,
    metavar="RUN,...",
    help="Runs of the paper to repeat, or Python files that set RUN.",
)
@click.option("--negatives", type=PATH, metavar="FOLDER", help="Folder of images that show no polyp.")
@click.option("--unlabelled", type=PATH, metavar="FOLDER", help="Folder of images that may show anything.")
@click.option(
    "--validation",
    type=WholeNumber(1),
    default=15,
    show_default=True,
    help="Number of images to choose the epoch and the thresholds on.",
)
@combine(training_options, features_option, seed_option, overwrite_option)
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
    from fseg_jax.cam.classifier import ClassifierSettings
    from fseg_jax.cam.reproduce import TABLES, reproduce
    from fseg_jax.cam.runs import ReproductionSettings, load_run

    loaded = [load_run(which) for which in dict.fromkeys(runs)]
    settings = ReproductionSettings(
        classifier=ClassifierSettings(seed=seed, **options),
        validation=validation,
        features=features,
        seed=seed,
    )
    with show_progress() as display:
        reproduce(
            dataset,
            output,
            loaded,
            settings,
            negatives=negatives,
            unlabelled=unlabelled,
            overwrite=overwrite,
            progress=display.begin(dataset.name),
        )
    click.echo((output / TABLES).read_text(encoding="utf-8"), nl=False)
