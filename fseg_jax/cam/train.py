"""Training the classifier on a folder's labelled images: ``classifier.safetensors``, ``history.csv``, early
checkpoints, ``training.json``.
"""

import csv
import logging
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from fseg_jax.cam import classifier as training
from fseg_jax.cam.classifier_file import (
    WEIGHTS,
    fingerprint,
    read_state,
    write_classifier,
    write_state,
)
from fseg_jax.cam.images import resized
from fseg_jax.cam.labels import Labelled, write_table
from fseg_jax.cam.propagate import HELD_OUT, hold_out
from fseg_jax.cam.record import fresh, make_folder, write_record
from fseg_jax.errors import InputError
from fseg_jax.methods import cam
from fseg_jax.pipeline.record import together
from fseg_jax.process import Progress

KEEP_EVERY = 5  # epochs
BEGUN = ".training"  # a folder for what a training has so far, and of it what it goes on from
STATE = "state.safetensors"
_LOG = logging.getLogger(__name__)


def train_folder(
    images: Labelled,
    out: Path,
    settings: training.Settings,
    *,
    most: int = cam.WANTED,
    held_out: int = HELD_OUT,
    overwrite: bool = False,
    report: Progress | None = None,
) -> dict[str, Any]:
    """Train a classifier on a folder's labelled images: writes ``classifier.safetensors``, ``history.csv``,
    the network every fifth epoch under ``checkpoints/``, and the record, which it returns.

    At most ``most`` images are trained on, drawn evenly over the classes by the seed. A training that was
    interrupted goes on where it was, and until it is done, what was there before stays.
    """
    name = fresh(out, "training.json", overwrite).name
    started = time.time()
    labelled = images.labels >= 0
    if not labelled.any():
        raise InputError(f"{images.folder}: no image is labelled, so there is nothing to learn")
    images = images._replace(
        files=tuple(f for f, known in zip(images.files, labelled, strict=True) if known),
        labels=images.labels[labelled],
        held_out=images.held_out[labelled],
    )
    present = sorted({images.classes[label] for label in images.labels[~images.held_out]})
    if len(present) < 2:
        raise InputError(f"all images are of the class {present[0]!r}: a classifier needs two at least")
    read = resized(images.files, settings.size, report)
    images = images.without(read.unreadable)
    kept_out = images.held_out | hold_out(images, held_out, settings.seed)
    chosen = _most(images.labels, ~kept_out, most, settings.seed)
    data = training.LabelledImages(read.images[chosen], images.labels[chosen])
    held = training.LabelledImages(read.images[kept_out], images.labels[kept_out])
    trainer = training.trainer(settings, len(images.classes))
    counts = {
        what: {c: int((labels == i).sum()) for i, c in enumerate(images.classes)}
        for what, labels in (("trained_on", data.labels), ("held_out", held.labels))
    }
    if not all(counts["trained_on"].values()):
        raise InputError("a class has no image left to train on: label more, or hold fewer out")

    begun = Path(out) / BEGUN
    of_this = fingerprint(trainer, *data, *held)
    history_path, state_path = begun / "history.csv", begun / STATE
    try:
        before = read_state(state_path, trainer, of_this)
    except InputError:
        if not overwrite:
            raise
        before = None
    if before is None:
        shutil.rmtree(begun, ignore_errors=True)
    checkpoints = make_folder(begun / "checkpoints")
    history = _history(history_path, before.epoch) if before else []
    if before:
        _LOG.info("goes on after epoch %d", before.epoch)
    for state, epoch, keep in training.train(trainer, data, held, before):
        score = epoch.held_out
        history.append(
            {
                "epoch": str(epoch.number),
                "loss": f"{epoch.loss:.6f}",
                "accuracy": f"{epoch.accuracy:.4f}",
                "held_out_loss": f"{score.loss:.6f}" if score else "",
                "held_out_accuracy": f"{score.accuracy:.4f}" if score else "",
                "held_out_balanced": f"{score.balanced:.4f}" if score else "",
                "kept": "yes" if keep else "",
            }
        )
        said = {
            "held_out_accuracy": score.accuracy if score else None,
            "held_out_balanced_accuracy": score.balanced if score else None,
        }
        if keep:
            write_classifier(begun / WEIGHTS, trainer, state, images.classes, **said)
        if epoch.number % KEEP_EVERY == 0:
            early = f"epoch-{epoch.number:03d}.safetensors"
            write_classifier(checkpoints / early, trainer, state, images.classes, **said)
        write_table(history_path, history, list(history[0]))
        write_state(state_path, state, of_this)
        _LOG.info(
            "epoch %d: loss %.3f, accuracy %.3f%s",
            epoch.number,
            epoch.loss,
            epoch.accuracy,
            f", held out {score.accuracy:.3f}, balanced {score.balanced:.3f}" if score else "",
        )
        if report:
            report("epochs", epoch.number, settings.epochs)
    kept = next(row for row in reversed(history) if row["kept"])
    with together(name, Path(out)) as folder:
        shutil.copytree(begun, folder, ignore=shutil.ignore_patterns(STATE, ".*"), dirs_exist_ok=True)
        record = write_record(
            folder / name,
            {
                "folder": str(images.folder),
                "settings": asdict(settings),
                "classes": list(images.classes),
                **counts,
                "unreadable": [str(path) for path, _ in read.unreadable],
                "epoch_kept": int(str(kept["epoch"])),
                "held_out_accuracy": _float(kept["held_out_accuracy"]),
                "held_out_balanced_accuracy": _float(kept["held_out_balanced"]),
                "held_out_accuracy_of_the_last_epoch": _float(history[-1]["held_out_accuracy"]),
            },
            started,
        )
    shutil.rmtree(begun, ignore_errors=True)
    return record


def _most(
    labels: Int[np.ndarray, " n"], may: Bool[np.ndarray, " n"], most: int, seed: int
) -> Int[np.ndarray, " m"]:
    """Which images are trained on: all, or as many of each class as there can be, drawn by the seed."""
    if may.sum() <= most:
        return np.flatnonzero(may)
    rng = np.random.default_rng(seed)
    by_class = [rng.permutation(np.flatnonzero(may & (labels == c))) for c in np.unique(labels[may])]
    taken: list[int] = []
    for left, mine in zip(range(len(by_class), 0, -1), sorted(by_class, key=len), strict=True):
        taken += mine[: (most - len(taken)) // left].tolist()
    return np.sort(np.array(taken))


def _history(path: Path, epochs: int) -> list[dict[str, object]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [dict(row) for row in csv.DictReader(file)][:epochs]
    except OSError:
        return []


def _float(text: object) -> float | None:
    return float(str(text)) if text else None
