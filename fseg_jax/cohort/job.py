"""What a run over a cohort is asked for, and hashes of all that the result of a slide depends on."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

from fseg_jax.codebook import Codebook
from fseg_jax.cohort.manifest import ManifestSlide, hash_tissue_file
from fseg_jax.cohort.records import AGREEMENT, Agreement
from fseg_jax.encoders.encoder import Encoder, EncoderCard
from fseg_jax.encoders.load import load_encoder
from fseg_jax.errors import InputError
from fseg_jax.files.storage import open_storage
from fseg_jax.outputs.cluster_names import ClusterNames
from fseg_jax.outputs.form import DEFAULT_FORM, OutputForm
from fseg_jax.pipeline.image import check_codebook
from fseg_jax.pipeline.plan import (
    Settings,
    choose_min_region,
    choose_mpp,
    choose_smoothing,
    choose_stain_normalization,
)
from fseg_jax.pipeline.segment import FORMAT
from fseg_jax.pipeline.tokens import KEPT_DTYPE, KEPT_FORMAT

# Settings that are fixed once features are kept; the hash of features covers them.
_KEPT_SETTINGS = ("mpp", "tile", "halo", "tissue", "stain_normalization", "mpp_override", "frame", "series")
_FEATURE_DEPENDENCIES = ("encoder", "weights", "layer", "dtype", *_KEPT_SETTINGS)


@dataclass(frozen=True)
class Job:
    """What all slides of a run have in common; it travels to workers on other machines.

    Attributes:
        out: Place of the results: a folder, or the address of a bucket.
        encoder: Name of the encoder, or its file.
        settings: How to segment, where the manifest does not say.
        weights: File of the encoder's weights, instead of the hub's.
        dtype: Precision of the encoder's products.
        codebook: The centres; None: each slide is clustered by itself.
        keep_features: Whether the token features of every slide are kept beside its results.
        features: Place where an earlier run kept features. Slides are segmented from them, and neither the
            slides nor the encoder are opened.
        names: Names and colours of the codebook's clusters; None: ``cluster 1``, …
        form: How outputs are written.
    """

    out: str
    encoder: str
    settings: Settings
    weights: str | None = None
    dtype: str = "float32"
    codebook: Codebook | None = None
    keep_features: bool = False
    features: str | None = None
    names: ClusterNames | None = None
    form: OutputForm = DEFAULT_FORM


@dataclass(frozen=True)
class SharedDependencies:
    """All that the result of every slide depends on, whatever the manifest says of it.

    Attributes:
        format: Version of the outputs.
        encoder: Name of the encoder.
        weights: Hash of its weights.
        layer: Layer that is read.
        dtype: Precision of its products.
        codebook: Hash of the codebook; None where each slide is clustered by itself.
        k: Number of clusters.
        mode: "fixed" or "assign".
        resize: "bilinear" or "nearest".
        concepts: Concepts of a tile; None in the mode "fixed".
        mpp: Resolution in µm per pixel.
        tile: Side of a tile in pixels.
        halo: Overlap of tiles, as a fraction of the tile.
        stain_normalization: Whether the encoder sees slides in the colours of a standard stain.
        artefacts: "keep", or "drop" where artefacts have no labels.
        smoothing: Standard deviation, in µm, of the Gaussian by which W is averaged.
        min_region: Area, in µm², below which regions are given to their neighbours.
        mixtures: Centres of mixed tokens; None where the codebook has none.
        seed: Random seed.
        features: Number type that features are rounded to.
        frame: What coordinates count from.
        form: How outputs are written.
    """

    format: int
    encoder: str
    weights: str
    layer: str
    dtype: str
    codebook: str | None
    k: int
    mode: str
    resize: str
    concepts: int | None
    mpp: float
    tile: int
    halo: float
    stain_normalization: bool
    artefacts: str
    smoothing: float
    min_region: float
    mixtures: int | None
    seed: int
    features: str
    frame: str
    form: OutputForm


@dataclass(frozen=True)
class Dependencies(SharedDependencies):
    """All that the result of a slide depends on, but the slide.

    Attributes:
        tissue: "find", "all", or the hash of the tissue file.
        mpp_override: µm per pixel, instead of what the slide's file says.
        series: Which image of the file; None: the largest.
    """

    tissue: str
    mpp_override: float | None
    series: int | None


def adopt_kept_settings(job: Job) -> Job:
    """Return the job with the encoder and the settings that its kept features were made with.

    Raises ``InputError`` where no run has kept features in their place, or the codebook is of other stains.
    """
    agreement = _read_kept_agreement(str(job.features))
    try:
        kept = {name: agreement.settings[name] for name in _KEPT_SETTINGS}
        dtype = agreement.settings["dtype"]
    except LookupError:
        raise _make_damage_error(str(job.features)) from None
    card = _require_card(str(job.features), agreement)
    is_normalized = bool(kept["stain_normalization"])
    if job.codebook is not None and choose_stain_normalization(None, job.codebook) != is_normalized:
        kept_with, fitted_with = ("with", "without") if is_normalized else ("without", "with")
        raise InputError(
            f"{job.features}: kept {kept_with} stain normalization, and the codebook was fitted {fitted_with}"
            " it; run with --keep-features and this --codebook again"
        )
    return replace(job, encoder=card.name, dtype=dtype, settings=replace(job.settings, **kept))


@lru_cache(maxsize=1)
def load_encoder_once(name: str, weights: str | None, dtype: str) -> Encoder:
    """Load an encoder, once a process."""
    return load_encoder(name, weights=weights, dtype=dtype)


def load_card(job: Job) -> EncoderCard:
    """Return the encoder's card: that of the kept features, or that of the encoder, which is loaded.

    Raises ``InputError`` where the encoder cannot be loaded, or does not fit the codebook.
    """
    if job.features is not None:
        return _require_card(job.features, _read_kept_agreement(job.features))
    encoder = load_encoder_once(job.encoder, job.weights, job.dtype)
    if job.codebook is not None:
        check_codebook(job.codebook, encoder)
    return encoder.card


@lru_cache(maxsize=1)
def _read_kept_agreement(place: str) -> Agreement:
    data = open_storage(place).read(AGREEMENT)
    if data is None:
        raise InputError(f"{place}: no cohort is there; run one with --keep-features first")
    agreement = Agreement.from_json(data)
    if agreement is None:
        raise _make_damage_error(place)
    return agreement


def _require_card(place: str, agreement: Agreement) -> EncoderCard:
    if agreement.encoder is None:
        raise _make_damage_error(place)
    return agreement.encoder


def _make_damage_error(place: str) -> InputError:
    return InputError(f"{place}/{AGREEMENT}: damaged, or of another version; run with --keep-features again")


def resolve_settings(slide: ManifestSlide, job: Job) -> Settings:
    """Return the settings for a slide: the run's, with what the manifest says of the slide."""
    settings = job.settings
    mpp = settings.mpp_override if slide.mpp is None else slide.mpp
    series = settings.series if slide.series is None else slide.series
    return replace(settings, tissue=slide.tissue or settings.tissue, mpp_override=mpp, series=series)


def hash_settings(job: Job, card: EncoderCard, settings: Settings) -> str:
    """Hash all that a slide's result depends on, but the slide (SHA-256)."""
    return _hash(asdict(list_dependencies(job, card, settings)))


def hash_feature_settings(job: Job, card: EncoderCard, settings: Settings) -> str:
    """Hash all that a slide's features depend on, but the slide (SHA-256)."""
    dependencies = asdict(list_dependencies(job, card, settings))
    values = {name: dependencies[name] for name in _FEATURE_DEPENDENCIES}
    return _hash({**values, "format": KEPT_FORMAT, "features": KEPT_DTYPE})


def hash_cohort_settings(job: Job, card: EncoderCard) -> str:
    """Hash all that the results of a whole cohort depend on (SHA-256)."""
    return hash_settings(job, card, job.settings)


def list_dependencies(job: Job, card: EncoderCard, settings: Settings) -> Dependencies:
    """List all that a slide's result depends on, but the slide."""
    tissue = settings.tissue
    if tissue not in ("find", "all"):
        tissue = hash_tissue_file(tissue) or "unreadable"  # its slide fails, and says so
    shared = vars(list_shared_dependencies(job, card))
    return Dependencies(**shared, tissue=tissue, mpp_override=settings.mpp_override, series=settings.series)


def list_shared_dependencies(job: Job, card: EncoderCard) -> SharedDependencies:
    """List all that every slide's result depends on, whatever the manifest says of it."""
    settings, book = job.settings, job.codebook
    return SharedDependencies(
        format=FORMAT,
        encoder=card.name,
        weights=card.weights_hash,
        layer=card.layer,
        dtype=job.dtype,
        codebook=book.hash if book else None,
        k=book.k if book else settings.k,
        mode=settings.mode,
        resize=settings.resize,
        concepts=settings.concepts if settings.mode == "assign" else None,
        mpp=choose_mpp(card, settings, book),
        tile=settings.tile or card.tile,
        halo=settings.halo,
        stain_normalization=choose_stain_normalization(settings.stain_normalization, book),
        artefacts=settings.artefacts,
        smoothing=choose_smoothing(settings, choose_mpp(card, settings, book), card.stride),
        min_region=choose_min_region(settings, choose_mpp(card, settings, book), card.stride),
        mixtures=settings.mixtures if book is None else _count_mixtures(settings, book),
        seed=settings.seed,
        features=settings.features,
        frame=settings.frame,
        form=job.form,
    )


def _count_mixtures(settings: Settings, codebook: Codebook) -> int | None:
    """Count the codebook's mixtures that are used; None where it has none."""
    if codebook.mixtures is None:
        return None
    return len(codebook.mixtures) if settings.mixtures else 0


def _hash(values: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()
