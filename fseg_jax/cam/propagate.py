"""Labels of a few images spread over a folder: ``labels.csv``, ``rounds.csv``, ``propagation.json``."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from fseg_jax.cam.images import resized
from fseg_jax.cam.labels import Labelled, write_table
from fseg_jax.cam.record import fresh, write_record
from fseg_jax.errors import InputError
from fseg_jax.files.kinds import did_you_mean
from fseg_jax.methods import cam
from fseg_jax.pipeline.record import together
from fseg_jax.process import Progress

FEATURES = "lire"
EVENLY = "lire-even"
FEATURE_SIDE = 256  # pixels, of the images that LIRE's features are taken of
HELD_OUT = 60  # images, §2
_BATCH = 16


@dataclass(frozen=True)
class PropagationSettings:
    """How labels spread: ``methods.cam.propagate`` says what each does.

    ``features`` is "lire" (as in the paper), "lire-even" (each of the four on one scale) or the name of an
    encoder, whose features are averaged over the image; ``held_out`` labelled images are set aside for the
    classifier's evaluation, and spread nothing.
    """

    k: int = 200
    wanted: int = cam.WANTED
    purity: float = 1.0
    features: str = FEATURES
    held_out: int = HELD_OUT
    seed: int = 0


class Spread(NamedTuple):
    """The images with the labels that they have now, those set aside among them, and the record."""

    images: Labelled
    record: dict[str, Any]


def propagate_folder(
    images: Labelled,
    out: Path,
    settings: PropagationSettings,
    *,
    overwrite: bool = False,
    report: Progress | None = None,
) -> Spread:
    """Spread labels over a folder: writes ``labels.csv`` (each image's label and where it is from),
    ``rounds.csv`` and the record.
    """
    name = fresh(out, "propagation.json", overwrite).name
    started = time.time()
    if not images.classes:
        raise InputError(
            f"{images.folder}: no image is labelled: put some into a subfolder a class, or give --labels"
        )
    X, images = _features(images, settings.features, report)
    held_out = images.held_out | hold_out(images, settings.held_out, settings.seed)
    spreads = ~held_out
    found = cam.propagate(
        X[spreads],
        images.labels[spreads],
        settings.k,
        wanted=settings.wanted,
        purity=settings.purity,
        seed=settings.seed,
    )
    labels, joined = images.labels.copy(), np.where(held_out, 0, -1)
    clusters = np.full(len(labels), -1)
    labels[spreads], joined[spreads], clusters[spreads] = found.labels, found.rounds_joined, found.clusters
    rows: list[dict[str, object]] = []
    for path, label, from_round, cluster, kept in zip(
        images.files, labels.tolist(), joined.tolist(), clusters.tolist(), held_out.tolist(), strict=True
    ):
        source = {-1: "", 0: "given"}.get(from_round, f"round {from_round}")
        rows.append(
            {
                "image": images.name(path),
                "label": images.classes[label] if label >= 0 else "",
                "source": source,
                "cluster": "" if cluster < 0 else cluster,
                "held_out": "yes" if kept else "",
            }
        )
    rounds = [
        {"round": i, **r._asdict(), "label": images.classes[r.label], "purity": f"{r.purity:.4f}"}
        for i, r in enumerate(found.rounds, 1)
    ]
    count = {c: int(((labels == i) & ~held_out).sum()) for i, c in enumerate(images.classes)}
    given = {c: int(((images.labels == i) & ~held_out).sum()) for i, c in enumerate(images.classes)}
    with together(name, Path(out)) as folder:
        write_table(folder / "labels.csv", rows, list(rows[0]))
        write_table(folder / "rounds.csv", rounds, ("round", *cam.Round._fields))
        record = write_record(
            folder / name,
            {
                "folder": str(images.folder),
                "settings": asdict(settings),
                "classes": list(images.classes),
                "given": given,
                "labelled": count,
                "unlabelled": int((labels < 0).sum()),
                "held_out": int(held_out.sum()),
                "rounds": len(rounds),
                "ended": found.ended,
            },
            started,
        )
    return Spread(images._replace(labels=labels, held_out=images.held_out | held_out), record)


def hold_out(images: Labelled, wanted: int, seed: int) -> Bool[np.ndarray, " n"]:
    """Draw labelled images to evaluate on, as evenly over the classes as they come; a class gives a quarter
    of its images at most. None where some are set aside already.
    """
    chosen = np.zeros(len(images.labels), bool)
    if images.held_out.any():
        return chosen
    rng = np.random.default_rng(seed)
    classes = [c for c in range(len(images.classes)) if (images.labels == c).any()]
    for left, c in zip(range(len(classes), 0, -1), classes, strict=True):
        mine = np.flatnonzero(images.labels == c)
        take = min((wanted - int(chosen.sum())) // left, len(mine) // 4)
        chosen[rng.permutation(mine)[:take]] = True
    return chosen


def _features(
    images: Labelled, name: str, report: Progress | None
) -> tuple[Float[np.ndarray, "n c"], Labelled]:
    """What images are clustered by, and those that can be read."""
    if name in (FEATURES, EVENLY):
        from fseg_jax.cam.global_features import evenly_scaled, global_features

        side, describe = FEATURE_SIDE, lambda batch: global_features(batch)
    else:
        from fseg_jax.encoders.catalog.published import CATALOG
        from fseg_jax.encoders.load import load_encoder

        near = did_you_mean(name, (FEATURES, EVENLY))
        if near and name.lower() not in CATALOG and not Path(name).exists():
            raise InputError(f"--features {name}: {near}it is lire, lire-even, or an encoder's name")
        encoder = load_encoder(name)
        side, describe = encoder.card.tile, lambda batch: encoder(batch).mean((1, 2))

    read = resized(images.files, side, report)
    images, X = images.without(read.unreadable), []
    for begin in range(0, len(read.images), _BATCH):
        part = read.images[begin : begin + _BATCH]
        X.append(np.asarray(describe(jnp.asarray(_padded(part, _BATCH))))[: len(part)])
        if report:
            report("describe images", begin + len(part), len(read.images))
    found = np.concatenate(X)
    return evenly_scaled(found) if name == EVENLY else found, images


def _padded(images: np.ndarray, batch: int) -> np.ndarray:
    return np.concatenate([images, np.zeros((batch - len(images), *images.shape[1:]), images.dtype)])
