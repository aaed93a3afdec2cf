"""Step 2: train the classifier on a folder's labelled images.

Writes ``classifier.safetensors`` (the best epoch), ``history.csv``, the network of every fifth epoch under
``checkpoints/``, and ``training.json``.
"""

import csv
import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Int

from fseg_jax.cam import classifier_training
from fseg_jax.cam.classifier import ClassifierSettings, LabelledImages
from fseg_jax.cam.classifier_file import (
    WEIGHTS,
    fingerprint_training,
    read_state,
    write_classifier,
    write_state,
)
from fseg_jax.cam.image_folder import resize_images
from fseg_jax.cam.image_labels import LabelledFolder, hold_out
from fseg_jax.cam.propagate_labels import HELD_OUT
from fseg_jax.cam.step_outputs import (
    StepRecord,
    check_record_is_new,
    make_folder,
    split_record,
    take_provenance,
    write_json,
)
from fseg_jax.errors import InputError
from fseg_jax.methods import cam
from fseg_jax.outputs.csv_table import write_csv
from fseg_jax.pipeline.publish import together
from fseg_jax.process import Progress

RECORD = "training.json"
HISTORY = "history.csv"
CHECKPOINT_EVERY = 5  # epochs
UNFINISHED = ".training"  # the folder of a training that is not done, and of the state that it goes on from
STATE = "state.safetensors"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingRecord(StepRecord):
    """The record of a training, ``training.json``.

    Attributes:
        folder: Folder of the images.
        settings: How the classifier was trained.
        classes: Names of the classes.
        trained_on: Number of images trained on, by class.
        held_out: Number of images evaluated on, by class.
        unreadable: Images that could not be read.
        epoch_kept: The epoch whose weights are kept.
        held_out_accuracy: Accuracy of that epoch on the held-out images, if there are any.
        held_out_balanced_accuracy: Mean recall over the classes on the same images.
        held_out_accuracy_of_the_last_epoch: Accuracy of the last epoch on the same images.
    """

    folder: str
    settings: ClassifierSettings
    classes: tuple[str, ...]
    trained_on: dict[str, int]
    held_out: dict[str, int]
    unreadable: tuple[str, ...]
    epoch_kept: int
    held_out_accuracy: float | None
    held_out_balanced_accuracy: float | None
    held_out_accuracy_of_the_last_epoch: float | None

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Read a record back from the content of its file."""
        provenance, facts = split_record(content)
        facts["settings"] = ClassifierSettings(**facts["settings"])
        for name in ("classes", "unreadable"):
            facts[name] = tuple(facts[name])
        return cls(provenance, **facts)


def train_folder(
    images: LabelledFolder,
    out: Path,
    settings: ClassifierSettings,
    *,
    most: int = cam.WANTED,
    held_out: int = HELD_OUT,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TrainingRecord:
    """Train a classifier on a folder's labelled images, and write it with its history and record to ``out``.

    At most ``most`` images are trained on, drawn evenly over the classes by the seed; ``held_out`` images are
    evaluated on, unless the labels hold some out. An interrupted training goes on where it was. What was in
    ``out`` before stays until the training is done.

    Raises:
        InputError: Where fewer than two classes have images to train on, where no image can be read, and for
            a record that would be lost.
    """
    check_record_is_new(out, RECORD, overwrite)
    started = time.time()
    images = images.select(images.labels >= 0)
    if not images.files:
        raise InputError(f"{images.folder}: no image is labelled, so there is nothing to learn")
    present = sorted({images.classes[label] for label in images.labels[~images.held_out]})
    if len(present) == 1:
        raise InputError(f"all images are of the class {present[0]!r}: a classifier needs two at least")
    resized = resize_images(images.files, settings.size, progress)
    images = images.without([path for path, _ in resized.unreadable])
    evaluated = images.held_out | hold_out(images, held_out, settings.seed)
    trained = _draw_evenly(images.labels, ~evaluated, most, settings.seed)
    data = LabelledImages(resized.images[trained], images.labels[trained])
    held_out_data = LabelledImages(resized.images[evaluated], images.labels[evaluated])
    trainer = classifier_training.make_trainer(settings, len(images.classes))
    trained_on = images.count(trained)
    if not all(trained_on.values()):
        raise InputError("a class has no image left to train on: label more, or hold fewer out")

    unfinished = Path(out) / UNFINISHED
    history = _train(trainer, data, held_out_data, images.classes, unfinished, overwrite, progress)
    best = next(row for row in reversed(history) if row["kept"])
    with together(RECORD, Path(out)) as folder:
        shutil.copytree(unfinished, folder, ignore=shutil.ignore_patterns(STATE, ".*"), dirs_exist_ok=True)
        record = TrainingRecord(
            take_provenance(started),
            folder=str(images.folder),
            settings=settings,
            classes=images.classes,
            trained_on=trained_on,
            held_out=images.count(evaluated),
            unreadable=tuple(str(path) for path, _ in resized.unreadable),
            epoch_kept=int(best["epoch"]),
            held_out_accuracy=_parse(best["held_out_accuracy"]),
            held_out_balanced_accuracy=_parse(best["held_out_balanced"]),
            held_out_accuracy_of_the_last_epoch=_parse(history[-1]["held_out_accuracy"]),
        )
        write_json(folder / RECORD, record.to_json())
    shutil.rmtree(unfinished, ignore_errors=True)
    return record


def _train(
    trainer: classifier_training.Trainer,
    data: LabelledImages,
    held_out: LabelledImages,
    classes: tuple[str, ...],
    folder: Path,
    overwrite: bool,
    progress: Progress | None,
) -> list[dict[str, str]]:
    """Train in a folder, from the state in it or from the beginning, and return the history's rows."""
    fingerprint = fingerprint_training(trainer, *data, *held_out)
    try:
        begin = read_state(folder / STATE, trainer, fingerprint)
    except InputError:
        if not overwrite:
            raise
        begin = None
    if begin is None:
        shutil.rmtree(folder, ignore_errors=True)
    checkpoints = make_folder(folder / "checkpoints")
    history = _read_history(folder / HISTORY, begin.epoch) if begin else []
    if begin:
        _LOG.info("goes on after epoch %d", begin.epoch)
    for epoch in classifier_training.train_epochs(trainer, data, held_out, begin):
        history.append(_history_row(epoch))
        files = [folder / WEIGHTS] if epoch.keep else []
        if epoch.number % CHECKPOINT_EVERY == 0:
            files.append(checkpoints / f"epoch-{epoch.number:03d}.safetensors")
        for path in files:
            write_classifier(path, trainer, epoch.state, classes, epoch.held_out)
        write_csv(folder / HISTORY, list(history[0]), history)
        write_state(folder / STATE, epoch.state, fingerprint)
        score = epoch.held_out
        _LOG.info(
            "epoch %d: loss %.3f, accuracy %.3f%s",
            epoch.number,
            epoch.loss,
            epoch.accuracy,
            f", held out {score.accuracy:.3f}, balanced {score.balanced:.3f}" if score else "",
        )
        if progress:
            progress("epochs", epoch.number, trainer.settings.epochs)
    return history


def _draw_evenly(
    labels: Int[np.ndarray, " n"], allowed: Bool[np.ndarray, " n"], most: int, seed: int
) -> Bool[np.ndarray, " n"]:
    """Draw at most ``most`` of the allowed images by the seed, as many of each class as there can be."""
    if allowed.sum() <= most:
        return allowed
    rng = np.random.default_rng(seed)
    by_class = [rng.permutation(np.flatnonzero(allowed & (labels == c))) for c in np.unique(labels[allowed])]
    drawn: list[int] = []
    for remaining, of_class in zip(range(len(by_class), 0, -1), sorted(by_class, key=len), strict=True):
        drawn += of_class[: (most - len(drawn)) // remaining].tolist()
    chosen = np.zeros(len(labels), bool)
    chosen[drawn] = True
    return chosen


def _history_row(epoch: classifier_training.Epoch) -> dict[str, str]:
    score = epoch.held_out
    return {
        "epoch": str(epoch.number),
        "loss": f"{epoch.loss:.6f}",
        "accuracy": f"{epoch.accuracy:.4f}",
        "held_out_loss": f"{score.loss:.6f}" if score else "",
        "held_out_accuracy": f"{score.accuracy:.4f}" if score else "",
        "held_out_balanced": f"{score.balanced:.4f}" if score else "",
        "kept": "yes" if epoch.keep else "",
    }


def _read_history(path: Path, epochs: int) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [dict(row) for row in csv.DictReader(file)][:epochs]
    except OSError:
        return []


def _parse(cell: str) -> float | None:
    return float(cell) if cell else None
