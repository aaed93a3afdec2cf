"""Step 1: spread the labels of a few images over a folder.

Writes ``labels.csv`` (each image's label and where it comes from), ``rounds.csv`` and ``propagation.json``.
``methods.cam.propagate`` is the algorithm.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from fseg_jax.cam.image_features import LIRE, describe_images
from fseg_jax.cam.image_labels import LabelledFolder, hold_out
from fseg_jax.cam.step_outputs import (
    StepRecord,
    check_record_is_new,
    split_record,
    take_provenance,
    write_json,
)
from fseg_jax.errors import InputError
from fseg_jax.methods import cam
from fseg_jax.outputs.csv_table import write_csv
from fseg_jax.pipeline.publish import together
from fseg_jax.process import Progress

RECORD = "propagation.json"
HELD_OUT = 60  # images that are set aside for the classifier's evaluation, §2


@dataclass(frozen=True)
class PropagationSettings:
    """How labels spread.

    Attributes:
        k: Number of clusters.
        wanted: Number of labelled images to stop at.
        purity: Share of a cluster's labelled images that must agree.
        features: Features to cluster by: "lire" (as in the paper), "lire-even", or an encoder's name.
        held_out: Number of labelled images to set aside for evaluation; they spread nothing.
        seed: Random seed.
    """

    k: int = 200
    wanted: int = cam.WANTED
    purity: float = 1.0
    features: str = LIRE
    held_out: int = HELD_OUT
    seed: int = 0


@dataclass(frozen=True)
class PropagationRecord(StepRecord):
    """The record of a propagation, ``propagation.json``.

    Attributes:
        folder: Folder of the images.
        settings: How labels spread.
        classes: Names of the classes.
        given: Number of labelled images before, by class, without those held out.
        labelled: The same after spreading.
        unlabelled: Number of images that stay without a label.
        held_out: Number of labelled images set aside.
        rounds: Number of clusters that spread their label.
        ended: Why spreading ended.
    """

    folder: str
    settings: PropagationSettings
    classes: tuple[str, ...]
    given: dict[str, int]
    labelled: dict[str, int]
    unlabelled: int
    held_out: int
    rounds: int
    ended: str

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Read a record back from the content of its file."""
        provenance, facts = split_record(content)
        facts["settings"] = PropagationSettings(**facts["settings"])
        facts["classes"] = tuple(facts["classes"])
        return cls(provenance, **facts)


class PropagatedFolder(NamedTuple):
    """The images with their labels after spreading, those held out among them, and the record."""

    images: LabelledFolder
    record: PropagationRecord


def propagate_folder(
    images: LabelledFolder,
    out: Path,
    settings: PropagationSettings,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PropagatedFolder:
    """Spread labels over a folder's images, and write the tables and the record to ``out``.

    Raises ``InputError`` where no image is labelled or can be read, for settings that do not fit the images,
    and for a record that would be lost.
    """
    check_record_is_new(out, RECORD, overwrite)
    started = time.time()
    if not images.classes:
        raise InputError(
            f"{images.folder}: no image is labelled: put some into a subfolder a class, or give --labels"
        )
    X, images = describe_images(images, settings.features, progress)
    held_out = images.held_out | hold_out(images, settings.held_out, settings.seed)
    propagation = cam.propagate(
        X[~held_out],
        images.labels[~held_out],
        settings.k,
        wanted=settings.wanted,
        purity=settings.purity,
        seed=settings.seed,
    )
    labels = images.labels.copy()
    labels[~held_out] = propagation.labels
    propagated = replace(images, labels=labels, held_out=held_out)
    with together(RECORD, Path(out)) as folder:
        rows = _label_rows(propagated, propagation)
        write_csv(folder / "labels.csv", list(rows[0]), rows)
        write_csv(folder / "rounds.csv", ("round", *cam.Round._fields), _round_rows(images, propagation))
        record = PropagationRecord(
            take_provenance(started),
            folder=str(images.folder),
            settings=settings,
            classes=images.classes,
            given=images.count(~held_out),
            labelled=propagated.count(~held_out),
            unlabelled=int((labels < 0).sum()),
            held_out=int(held_out.sum()),
            rounds=len(propagation.rounds),
            ended=propagation.ended,
        )
        write_json(folder / RECORD, record.to_json())
    return PropagatedFolder(propagated, record)


def _label_rows(images: LabelledFolder, propagation: cam.Propagation) -> list[dict[str, object]]:
    """List each image with its label, the label's source and its cluster."""
    rounds_joined, clusters = np.where(images.held_out, 0, -1), np.full(len(images.files), -1)
    rounds_joined[~images.held_out] = propagation.rounds_joined
    clusters[~images.held_out] = propagation.clusters
    rows: list[dict[str, object]] = []
    for path, label, round_joined, cluster, held_out in zip(
        images.files,
        images.labels.tolist(),
        rounds_joined.tolist(),
        clusters.tolist(),
        images.held_out.tolist(),
        strict=True,
    ):
        rows.append(
            {
                "image": images.name(path),
                "label": images.classes[label] if label >= 0 else "",
                "source": {-1: "", 0: "given"}.get(round_joined, f"round {round_joined}"),
                "cluster": "" if cluster < 0 else cluster,
                "held_out": "yes" if held_out else "",
            }
        )
    return rows


def _round_rows(images: LabelledFolder, propagation: cam.Propagation) -> list[dict[str, object]]:
    """List the rounds, numbered from 1, with their classes' names."""
    return [
        {"round": i, **r._asdict(), "label": images.classes[r.label], "purity": f"{r.purity:.4f}"}
        for i, r in enumerate(propagation.rounds, 1)
    ]
