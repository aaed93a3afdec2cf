"""A cohort's codebooks (F-SEG §3.2, §3.3): tiles sampled from every slide, their features clustered into each
k, and a card that says what the clusters are.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from fseg_jax.codebook import Codebook, Provenance, save_all
from fseg_jax.cohort.manifest import ManifestSlide
from fseg_jax.cohort.sample_folder import (
    SampleSettings,
    has_sample,
    read_settings,
    tile_side,
    write_failures,
)
from fseg_jax.cohort.sample_rows import SampleRows
from fseg_jax.cohort.sampling import SampleProgress, sample_cohort
from fseg_jax.encoders.encoder import Encoder
from fseg_jax.encoders.fingerprint import take_fingerprint
from fseg_jax.errors import InputError
from fseg_jax.files.claims import partial_folder, settle
from fseg_jax.files.exchange import exchange
from fseg_jax.files.paths import is_folder, is_there
from fseg_jax.numerics.kmeans import streaming
from fseg_jax.outputs.codebook_card import Card, KCard, find_warnings, write_card

_log = logging.getLogger(__name__)

IN_MEMORY = 1 << 30  # bytes of features that are read once and kept
STATED = ("encoder", "layer", "mpp", "tile", "tiles", "on", "dtype")  # of the features, on the card
NEAREST = 8  # tiles of each cluster on the card


@dataclass(frozen=True)
class FitSettings:
    """How to fit: ``features`` says on what, the rest is ``streaming.fit``'s. ``seed`` is that of
    k-means; which tiles are sampled does not depend on it.
    """

    sampling: SampleSettings = field(default_factory=SampleSettings)
    k: tuple[int, ...] = (16, 32, 64, 128, 256)
    algorithm: streaming.Algorithm = "lloyd"
    spherical: bool = False
    restarts: int = 2
    seed: int = 0


class FitOutcome(NamedTuple):
    """The codebooks by k; the slides they are of; the slides that failed, with reasons; the card's folder."""

    books: dict[int, Codebook]
    slides: int
    failures: dict[str, str]
    card: Path


def card_folder(path: Path) -> Path:
    """Where the card of a codebook goes: ``tcga.card`` for ``tcga.safetensors``."""
    return path.with_suffix(".card")


def check_codebook_path(path: Path, overwrite: bool) -> None:
    """Raise ``InputError`` if a codebook cannot be written there, or one is there and may not be replaced."""
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: a codebook's name ends in .safetensors")
    settle(path.name, path.parent)
    for existing in (path, card_folder(path)):
        if is_there(existing) and not overwrite:
            raise InputError(f"{existing} exists: choose another name, or --overwrite")
    if not is_folder(path.parent):
        raise InputError(f"{path.parent}: no such folder")
    if is_folder(path):
        raise InputError(f"{path}: is a folder")


def fit_cohort(
    slides: Sequence[ManifestSlide],
    path: Path,
    encoder: Encoder,
    folder: Path,
    settings: FitSettings | None = None,
    *,
    source: str = "",
    overwrite: bool = False,
    sample_progress: SampleProgress = lambda done, total, slide_id: None,
    kmeans_progress: streaming.OnPass = lambda passes, shift: None,
) -> FitOutcome:
    """Fit codebooks on slides, and write them to ``path`` and their card to a folder beside it.

    ``folder`` keeps the features: slides that are in it are not opened. In a ``jax.distributed`` job every
    process calls this alike, on one shared ``folder``: they share the slides and the clustering, and the
    first of them writes. A slide that fails is left out and told in the outcome and in
    ``folder/failures.csv``. Raises ``InputError``, with no codebook written, for anything else.
    """
    settings = settings or FitSettings()
    check_codebook_path(path, overwrite)
    processes = jax.process_count()
    failures = sample_cohort(
        slides,
        folder,
        encoder,
        settings.sampling,
        shard=(jax.process_index(), processes),
        progress=sample_progress,
    )
    lines = {slide.slide_id: slide for slide in slides}
    failures = _of_all(failures)
    failures = {name: failures[name] for name in lines if name in failures}
    sampled = [name for name in lines if name not in failures and has_sample(folder, name)]
    if unseen := lines.keys() - {*sampled, *failures}:
        raise InputError(
            f"{folder}: holds nothing of {min(unseen)}, which another process has sampled; give --features "
            "on a disk that all hosts share"
        )
    first = jax.process_index() == 0
    if first:
        write_failures(folder, failures)
    if not sampled:
        reason = next(iter(failures.values()))
        raise InputError(f"{folder}: none of {len(lines)} slides could be sampled; the first: {reason}")
    rows = SampleRows(folder, sampled)
    n, channels = rows.shape
    unit = "tokens" if settings.sampling.on == "tokens" else "tiles"
    if n < max(settings.k):
        raise InputError(
            f"--k {max(settings.k)}: {len(sampled)} slides have {n} {unit}; "
            "choose fewer clusters or more tiles"
        )
    _log.info("%d %s of %d slides, %d channels", n, unit, len(sampled), channels)
    small = 2 * n * channels <= IN_MEMORY
    results = streaming.fit(
        rows[slice(0, n)] if small else rows,
        settings.k,
        key=jax.random.key(settings.seed),
        algorithm=settings.algorithm,
        spherical=settings.spherical,
        restarts=settings.restarts,
        on_pass=kmeans_progress,
    )
    moving = [k for k, result in results.items() if not result.converged]
    if moving and settings.algorithm == "lloyd":  # mini-batches are a few passes, and do not come to rest
        _log.warning("k-means has not converged for k = %s", ", ".join(map(str, moving)))
    results = {k: _by_size(result) for k, result in results.items()}
    card = encoder.card
    origin = Provenance(
        encoder=card.name,
        weights_hash=card.weights_hash,
        layer=card.layer,
        mpp=settings.sampling.mpp,
        tiles=sum(len(record.boxes) for record in rows.samples),
        seed=settings.seed,
        source=f"{source or 'a cohort'}: {n} {unit} of {len(sampled)} slides"
        + (", spherical" if settings.spherical else ""),
        fingerprint="" if card.weights_hash else take_fingerprint(encoder),
    )
    books = {k: Codebook(result.centers, origin) for k, result in results.items()}
    if first:
        sites = [lines[record.slide_id].site for record in rows.samples]
        sample_facts = read_settings(folder)
        stride = card.stride / tile_side(settings.sampling, card)
        card_of_books = Card(
            title=path.stem,
            unit=unit,
            rows=n,
            slides=len(sampled),
            failed=len(failures),
            settings={
                **{name: sample_facts[name] for name in STATED},
                "algorithm": settings.algorithm,
                "spherical": settings.spherical,
                "restarts": settings.restarts,
                "seed": settings.seed,
                "source": origin.source,
            },
            of_k=[_of_k(k, results[k], books[k], rows, sites, stride) for k in sorted(results)],
        )
        write_books(path, books, card_of_books)
    if processes > 1:
        multihost_utils.sync_global_devices("fseg-fit-written")
    return FitOutcome(books, len(sampled), failures, card_folder(path))


def write_books(path: Path, books: dict[int, Codebook], card: Card) -> None:
    """Write codebooks and their card, both in place of those that are there, or neither."""
    with partial_folder(path.name, path.parent, wait=True) as folder:
        write_card(folder / card_folder(path).name, card)
        save_all(folder / path.name, books)
        exchange(folder, [path.name, card_folder(path).name])


def _of_all(failures: dict[str, str]) -> dict[str, str]:
    """The failures of every process of the job, once all of them come here."""
    if jax.process_count() == 1:
        return failures
    said = np.frombuffer(json.dumps(failures).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(len(said)))
    padded = np.pad(said, (0, int(lengths.max()) - len(said)))
    everyones = np.asarray(multihost_utils.process_allgather(padded))
    told = (json.loads(one[:length].tobytes()) for one, length in zip(everyones, lengths, strict=True))
    return {name: reason for one in told for name, reason in one.items()}


def _by_size(result: streaming.StreamResult) -> streaming.StreamResult:
    """Clusters numbered from the largest down, which is how their legend reads."""
    order = np.argsort(-np.bincount(result.labels, minlength=len(result.centers)), kind="stable")
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order))
    return result._replace(centers=result.centers[order], labels=place[result.labels])


def _of_k(
    k: int,
    result: streaming.StreamResult,
    book: Codebook,
    rows: SampleRows,
    sites: Sequence[str],
    stride: float,
) -> KCard:
    order = np.lexsort((result.distances, result.labels))
    counts = np.bincount(result.labels, minlength=k)
    begins = np.cumsum([0, *counts])[:-1]
    nearest = [order[b : b + min(NEAREST, c)] for b, c in zip(begins, counts, strict=True)]
    pictures = iter(rows.read_thumbnails(np.concatenate(nearest), stride))
    owners = rows.find_slides(np.arange(len(result.labels)))
    return KCard(
        k=k,
        inertia=result.inertia,
        iterations=result.iterations,
        counts=counts,
        nearest=[[next(pictures) for _ in some] for some in nearest],
        names=[[rows.samples[i].slide_id for i in rows.find_slides(some)] for some in nearest],
        warnings=find_warnings(
            book.centers, result.labels, owners, [r.slide_id for r in rows.samples], sites
        ),
    )
