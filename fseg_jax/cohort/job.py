"""What a run over a cohort is asked for, and what the result of each slide depends on, as a hash."""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from fseg_jax.codebook import Codebook
from fseg_jax.cohort.manifest import ManifestSlide
from fseg_jax.encoders.encoder import Encoder, EncoderCard
from fseg_jax.encoders.load import load_encoder
from fseg_jax.errors import InputError
from fseg_jax.files.storage import open_storage
from fseg_jax.pipeline.image import check_codebook
from fseg_jax.pipeline.plan import Settings, choose_mpp
from fseg_jax.pipeline.segment import FORMAT
from fseg_jax.pipeline.tokens import KEPT_DTYPE, KEPT_FORMAT

AGREED = "cohort.json"  # what a place is for


@dataclass(frozen=True)
class Job:
    """What all slides of a run have in common; it travels to workers on other machines.

    ``keep_features`` keeps every slide's token features beside its results. ``features`` is a place where an
    earlier run kept them: slides are then segmented from there, and neither they nor the encoder are opened.
    """

    out: str
    encoder: str
    settings: Settings
    weights: str | None = None
    dtype: str = "float32"
    codebook: Codebook | None = None
    keep_features: bool = False
    features: str | None = None


def from_features(job: Job) -> Job:
    """The same job with what its features were made with, as their place says."""
    made = _kept_with(str(job.features))
    try:
        settings, encoder = made["settings"], made["encoder"]["name"]
        given = {name: settings[name] for name in ("mpp", "tile", "halo", "tissue", "mpp_override")}
        own = replace(job.settings, **given)
        return replace(job, encoder=encoder, dtype=settings["dtype"], settings=own)
    except (LookupError, TypeError):
        raise InputError(f"{job.features}/{AGREED}: damaged; run with --keep-features again") from None


@lru_cache(maxsize=1)
def loaded_encoder(name: str, weights: str | None, dtype: str) -> Encoder:
    """The encoder, loaded once a process."""
    return load_encoder(name, weights=weights, dtype=dtype)


def card_of(job: Job) -> EncoderCard:
    """The encoder's card: as kept with its features, or its own once it is known to fit the codebook."""
    if job.features is None:
        encoder = loaded_encoder(job.encoder, job.weights, job.dtype)
        if job.codebook is not None:
            check_codebook(job.codebook, encoder)
        return encoder.card
    try:
        return EncoderCard.from_json(_kept_with(job.features)["encoder"])
    except (LookupError, TypeError):
        raise InputError(f"{job.features}/{AGREED}: damaged; run with --keep-features again") from None


@lru_cache(maxsize=1)
def _kept_with(place: str) -> dict[str, Any]:
    """What the place of kept features says of itself."""
    data = open_storage(place).read(AGREED)
    if data is None:
        raise InputError(f"{place}: no cohort is there; run one with --keep-features first")
    try:
        return json.loads(data)
    except ValueError:
        raise InputError(f"{place}/{AGREED}: damaged; run with --keep-features again") from None


def settings_of(slide: ManifestSlide, job: Job) -> Settings:
    """The settings for a slide: the run's, with what the manifest says of it."""
    own = job.settings
    mpp = own.mpp_override if slide.mpp is None else slide.mpp
    return replace(own, tissue=slide.tissue or own.tissue, mpp_override=mpp)


def settings_hash(job: Job, card: EncoderCard, settings: Settings) -> str:
    """SHA-256 of everything that a slide's result depends on, but the slide."""
    return _digest(depends_on(job, card, settings))


def features_hash(job: Job, card: EncoderCard, settings: Settings) -> str:
    """SHA-256 of everything that a slide's features depend on, but the slide."""
    what = depends_on(job, card, settings)
    names = ("encoder", "weights", "layer", "dtype", "mpp", "tile", "halo", "tissue", "mpp_override")
    own = {name: what[name] for name in names}
    return _digest({**own, "format": KEPT_FORMAT, "features": KEPT_DTYPE})


def agreed_hash(job: Job, card: EncoderCard) -> str:
    """SHA-256 of everything that the results of a whole cohort depend on."""
    return settings_hash(job, card, job.settings)


def depends_on(job: Job, card: EncoderCard, settings: Settings) -> dict[str, Any]:
    """Everything that a slide's result depends on, but the slide."""
    return {**of_all(job, card), "tissue": _tissue(settings), "mpp_override": settings.mpp_override}


def of_all(job: Job, card: EncoderCard) -> dict[str, Any]:
    """What every slide's result depends on, whatever the manifest says of it."""
    settings, book = job.settings, job.codebook
    return {
        "format": FORMAT,
        "encoder": card.name,
        "weights": card.weights_hash,
        "layer": card.layer,
        "dtype": job.dtype,
        "codebook": book.hash if book else None,
        "k": book.k if book else settings.k,
        "mode": settings.mode,
        "resize": settings.resize,
        "concepts": settings.concepts if settings.mode == "assign" else None,
        "mpp": choose_mpp(card, settings, book),
        "tile": settings.tile or card.tile,
        "halo": settings.halo,
        "seed": settings.seed,
        "features": settings.features,
    }


def _tissue(settings: Settings) -> str:
    if settings.tissue in ("find", "all"):
        return settings.tissue
    try:
        return hashlib.sha256(Path(settings.tissue).read_bytes()).hexdigest()
    except OSError:
        return "unreadable"  # its slide fails, and says so


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()
