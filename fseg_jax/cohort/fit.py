"""Fit the codebooks of a cohort (F-SEG §3.2, §3.3) and write a card that shows what their clusters are."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float

from fseg_jax.codebook import Codebook, Provenance, save_all
from fseg_jax.cohort.manifest import ManifestSlide
from fseg_jax.cohort.sample_folder import (
    SampleSettings,
    has_sample,
    is_normalized,
    read_settings,
    tile_side,
    write_failures,
)
from fseg_jax.cohort.sample_rows import SampleRows
from fseg_jax.cohort.sampling import SampleProgress, sample_cohort
from fseg_jax.encoders.encoder import Encoder
from fseg_jax.encoders.fingerprint import take_fingerprint
from fseg_jax.errors import InputError
from fseg_jax.files.exchange import exchange_outputs
from fseg_jax.files.partial_folders import open_partial_folder, recover_outputs
from fseg_jax.files.paths import is_folder, is_there
from fseg_jax.numerics.kmeans import streaming
from fseg_jax.numerics.site_index import measure_site_index
from fseg_jax.outputs.codebook_card import Card, KCard, find_warnings, join_facts, write_card
from fseg_jax.pipeline.pure_tokens import TOKENS_PER_CENTER

_log = logging.getLogger(__name__)

BYTES_IN_MEMORY = 1 << 30  # rows up to this size are read once; larger ones at every step of k-means
FEW_TILES = 10  # for a cluster, on average
SETTINGS_ON_CARD = (
    "encoder",
    "layer",
    "mpp",
    "tile",
    "tiles",
    "on",
    "min_tissue",
    "stain_normalization",
    "dtype",
)
TILES_ON_CARD = 8  # of each cluster


@dataclass(frozen=True)
class FitSettings:
    """How to sample a cohort, and how to cluster the samples.

    Attributes:
        sampling: How to sample.
        k: Numbers of clusters, all fitted on the same samples.
        algorithm: Lloyd's, or mini-batches (``streaming.fit``).
        spherical: Whether to cluster by cosine distance.
        mixtures: Centres of the tokens at the border of tissue, which name no cluster.
        restarts: Number of random starts on a part of the samples; the best one goes on.
        seed: Random seed of k-means. Which tiles are sampled does not depend on it.
    """

    sampling: SampleSettings = field(default_factory=SampleSettings)
    k: tuple[int, ...] = (16, 32, 64, 128, 256)
    algorithm: streaming.Algorithm = "lloyd"
    spherical: bool = False
    mixtures: int = 4
    restarts: int = 2
    seed: int = 0


class FitOutcome(NamedTuple):
    """What came of a fit."""

    books: dict[int, Codebook]  # by k
    slides: int  # that they were fitted on
    failures: dict[str, str]  # slides that could not be sampled, and why
    card: Path  # folder


def card_folder(path: Path) -> Path:
    """Return the folder of a codebook's card: ``tcga.card`` for ``tcga.safetensors``."""
    return path.with_suffix(".card")


def check_codebook_path(path: Path, overwrite: bool) -> None:
    """Raise ``InputError`` if a codebook cannot be written there, or one is there and may not be replaced."""
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: a codebook's name ends in .safetensors")
    recover_outputs(path.name, path.parent)
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
    """Fit codebooks on slides, and write them and their card.

    In a ``jax.distributed`` job every process calls this alike, on one shared ``folder``. They share the
    slides and the clustering, and the first of them writes.

    Args:
        slides: The cohort. A slide that fails is left out, and is in ``folder/failures.csv``.
        path: Codebook to write; its card goes to a folder beside it.
        encoder: Encoder of the tiles.
        folder: Folder of samples; slides that are in it are not opened.
        settings: How to sample and to cluster.
        source: Where the slides are from, for the codebook's provenance.
        overwrite: Whether an existing codebook is replaced.
        sample_progress: Told before each slide.
        kmeans_progress: Told after each pass of k-means.

    Raises:
        InputError: Anything else is wrong; no codebook is written then.
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
    failures = _gather_failures(failures)
    failures = {name: failures[name] for name in lines if name in failures}
    sampled = [name for name in lines if name not in failures and has_sample(folder, name)]
    if unseen := lines.keys() - {*sampled, *failures}:
        raise InputError(
            f"{folder}: holds nothing of {min(unseen)}, which another process has sampled; give --features "
            "on a disk that all hosts share"
        )
    is_first = jax.process_index() == 0
    if is_first:
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
            f"choose fewer clusters or more tiles{', or --on tokens' if unit == 'tiles' else ''}"
        )
    if unit == "tiles" and n < FEW_TILES * max(settings.k):
        _log.warning(
            "%d tiles are few for k = %d: --on tokens clusters the tokens in them, which are many more",
            n,
            max(settings.k),
        )
    _log.info("%d %s of %d slides, %d channels", n, unit, len(sampled), channels)
    fits_memory = 2 * n * channels <= BYTES_IN_MEMORY
    results = streaming.fit(
        rows[slice(0, n)] if fits_memory else rows,
        settings.k,
        key=jax.random.key(settings.seed),
        algorithm=settings.algorithm,
        spherical=settings.spherical,
        restarts=settings.restarts,
        on_pass=kmeans_progress,
    )
    mixtures, border = _fit_mixtures(rows, settings)
    unconverged = [k for k, result in results.items() if not result.converged]
    if unconverged and settings.algorithm == "lloyd":  # mini-batches stop after a few passes
        _log.warning("k-means has not converged for k = %s", ", ".join(map(str, unconverged)))
    results = {k: _sort_by_size(result) for k, result in results.items()}
    card = encoder.card
    provenance = Provenance(
        encoder=card.name,
        weights_hash=card.weights_hash,
        layer=card.layer,
        mpp=settings.sampling.mpp,
        tiles=sum(len(sample.boxes) for sample in rows.samples),
        seed=settings.seed,
        source=f"{source or 'a cohort'}: {n} {unit} of {len(sampled)} slides"
        + (f", mixtures of {border} tokens" if mixtures is not None else "")
        + (", spherical" if settings.spherical else ""),
        fingerprint="" if card.weights_hash else take_fingerprint(encoder),
        stain_normalization=is_normalized(settings.sampling, card),
    )
    books = {k: Codebook(result.centers, provenance, mixtures) for k, result in results.items()}
    if is_first:
        sites = [lines[sample.slide_id].site for sample in rows.samples]
        sample_facts = read_settings(folder)
        token_side = card.stride / tile_side(settings.sampling, card)
        codebook_card = Card(
            title=path.stem,
            unit=unit,
            rows=n,
            slides=len(sampled),
            failed=len(failures),
            settings={
                **{name: sample_facts[name] for name in SETTINGS_ON_CARD},
                "algorithm": settings.algorithm,
                "spherical": settings.spherical,
                "mixtures": 0 if mixtures is None else len(mixtures),
                "restarts": settings.restarts,
                "seed": settings.seed,
                "source": provenance.source,
            },
            of_k=[
                _describe_clusters(k, results[k], books[k], rows, sites, token_side) for k in sorted(results)
            ],
        )
        write_books(path, books, codebook_card)
    if processes > 1:
        multihost_utils.sync_global_devices("fseg-fit-written")
    return FitOutcome(books, len(sampled), failures, card_folder(path))


def _fit_mixtures(sampled: SampleRows, settings: FitSettings) -> tuple[Float[np.ndarray, "m c"] | None, int]:
    """Fit centres of the tokens at the border of tissue, and count these; None where they are too few."""
    names = [sample.slide_id for sample in sampled.samples if sample.border_rows]
    if not settings.mixtures or not names:
        return None, 0
    rows = SampleRows(sampled.folder, names, border=True)
    n, channels = rows.shape
    if n < TOKENS_PER_CENTER * settings.mixtures:
        return None, n
    result = streaming.fit(
        rows[slice(0, n)] if 2 * n * channels <= BYTES_IN_MEMORY else rows,
        [settings.mixtures],
        key=jax.random.key(settings.seed),
        algorithm=settings.algorithm,
        spherical=settings.spherical,
        restarts=settings.restarts,
    )[settings.mixtures]
    if not result.converged and settings.algorithm == "lloyd":
        _log.warning("k-means of the tokens at the border has not converged")
    return result.centers, n


def write_books(path: Path, books: dict[int, Codebook], card: Card) -> None:
    """Write codebooks and their card, both in place of those that are there, or neither."""
    with open_partial_folder(path.name, path.parent, wait=True) as folder:
        write_card(folder / card_folder(path).name, card)
        save_all(folder / path.name, books)
        exchange_outputs(folder, [path.name, card_folder(path).name])


def _gather_failures(failures: dict[str, str]) -> dict[str, str]:
    """Gather the failures of all processes of the job; each process waits here for the others."""
    if jax.process_count() == 1:
        return failures
    encoded = np.frombuffer(json.dumps(failures).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(len(encoded)))
    padded = np.pad(encoded, (0, int(lengths.max()) - len(encoded)))
    gathered = np.asarray(multihost_utils.process_allgather(padded))
    by_process = (json.loads(row[:length].tobytes()) for row, length in zip(gathered, lengths, strict=True))
    return {name: reason for process in by_process for name, reason in process.items()}


def _sort_by_size(result: streaming.StreamResult) -> streaming.StreamResult:
    """Renumber clusters from the largest down, which is how their legend reads."""
    order = np.argsort(-np.bincount(result.labels, minlength=len(result.centers)), kind="stable")
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order))
    return result._replace(centers=result.centers[order], labels=rank[result.labels])


def _describe_clusters(
    k: int,
    result: streaming.StreamResult,
    book: Codebook,
    rows: SampleRows,
    sites: Sequence[str],
    token_side: float,
) -> KCard:
    order = np.lexsort((result.distances, result.labels))
    counts = np.bincount(result.labels, minlength=k)
    starts = np.cumsum([0, *counts])[:-1]
    nearest = [
        order[start : start + min(TILES_ON_CARD, count)] for start, count in zip(starts, counts, strict=True)
    ]
    pictures = iter(rows.read_thumbnails(np.concatenate(nearest), token_side))
    slides = rows.find_slides(np.arange(len(result.labels)))
    of_slides = np.zeros((len(rows.samples), k), np.int64)
    np.add.at(of_slides, (slides, result.labels), 1)
    return KCard(
        k=k,
        inertia=result.inertia,
        iterations=result.iterations,
        counts=counts,
        nearest=[[next(pictures) for _ in tiles] for tiles in nearest],
        names=[[rows.samples[i].slide_id for i in rows.find_slides(tiles)] for tiles in nearest],
        warnings=find_warnings(
            book.centers,
            result.labels,
            slides,
            [sample.slide_id for sample in rows.samples],
            sites,
            join_facts([sample.facts for sample in rows.samples]),
        ),
        site=measure_site_index(of_slides, sites),
    )
