"""Look at what a place holds already: whose results are there, whole, and of the file that is there now.

A slide is done when its record states the settings of the run, was made of the file that lies at the slide's
path (``slides.identity``), and everything beside it is there.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

from fseg_jax.cohort.job import Job, hash_feature_settings, hash_settings, resolve_settings
from fseg_jax.cohort.manifest import ManifestSlide
from fseg_jax.cohort.records import SlideRecord, get_nested, parse_json, read_slide, record_key
from fseg_jax.encoders.encoder import EncoderCard
from fseg_jax.errors import InputError
from fseg_jax.files.storage import Storage, open_storage
from fseg_jax.pipeline.segment import SUFFIXES
from fseg_jax.pipeline.tokens import KEPT_SUFFIX
from fseg_jax.slides.identity import SlideFile, identify, is_same_slide

_THREADS = 8

SlideStatus = Literal["missing", "other", "outdated", "done"]


class SlideState(NamedTuple):
    """What a place holds of a slide."""

    status: SlideStatus  # nothing; results of other settings; results not to be used any more; all of it
    reason: str = ""  # why results are outdated
    clusters: tuple[tuple[str, str], ...] = ()  # their names and colours, where it is done


class Survey(NamedTuple):
    """The slides of a run by what a place holds of them; those of which it holds nothing are in none."""

    done: set[str]
    other: list[str]  # slides with results of other settings
    outdated: dict[str, str]  # slides with results that are not to be used any more, and why
    clusters: frozenset[tuple[tuple[str, str], ...]] = frozenset()  # names and colours of those done


def survey(storage: Storage, job: Job, card: EncoderCard, slides: Sequence[ManifestSlide]) -> Survey:
    """Look at what a place holds of every slide."""
    files = storage.read_all([record_key(slide.slide_id) for slide in slides])

    def inspect(slide: ManifestSlide) -> SlideState:
        return inspect_slide(storage, job, card, slide, files.get(record_key(slide.slide_id)))

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="fseg-survey") as pool:
        states = dict(zip((slide.slide_id for slide in slides), pool.map(inspect, slides), strict=True))
    return Survey(
        {name for name, state in states.items() if state.status == "done"},
        [name for name, state in states.items() if state.status == "other"],
        {name: state.reason for name, state in states.items() if state.status == "outdated"},
        frozenset(state.clusters for state in states.values() if state.status == "done"),
    )


def inspect_slide(
    storage: Storage, job: Job, card: EncoderCard, slide: ManifestSlide, data: bytes | None
) -> SlideState:
    """Look at what a place holds of a slide; ``data`` is its record, if there is one."""
    if data is None:
        return SlideState("missing")
    record = SlideRecord.from_json(data)
    if record is None:
        return SlideState("outdated", "its record is damaged")
    settings = resolve_settings(slide, job)
    if record.settings_hash != hash_settings(job, card, settings):
        return SlideState("other")
    if record.totals is None:
        return SlideState("outdated", "its record is damaged")
    file = identify_slide(slide) or _identify_kept(job, slide) or record.slide
    if not is_same_slide(record.slide, file):
        return SlideState("outdated", "the file at its path is another one")
    outputs = {f"{slide.slide_id}{suffix}": suffix for suffix in SUFFIXES[1:]}
    present = storage.find_present(list(outputs))
    if gone := [suffix for key, suffix in outputs.items() if key not in present]:
        verb = "is" if len(gone) == 1 else "are"
        return SlideState("outdated", f"its {' and '.join(gone)} {verb} gone")
    done = SlideState("done", clusters=tuple(record.totals.colours.items()))
    if not job.keep_features:
        return done
    attributes = _read_kept_attributes(storage, slide.slide_id)
    if get_nested(attributes, "features_hash") != hash_feature_settings(job, card, settings):
        return SlideState("missing")
    kept_slide = read_slide(attributes)
    return done if kept_slide and is_same_slide(kept_slide, file) else SlideState("missing")


def identify_slide(slide: ManifestSlide) -> SlideFile | None:
    """Return the path and the identity of a slide's file; None where it cannot be read."""
    try:
        return SlideFile(str(slide.path), identify(slide.path))
    except InputError:
        return None


def _identify_kept(job: Job, slide: ManifestSlide) -> SlideFile | None:
    """Return the path and the identity of the slide that the job's kept features were made of."""
    return (
        read_slide(_read_kept_attributes(open_storage(job.features), slide.slide_id))
        if job.features
        else None
    )


def _read_kept_attributes(storage: Storage, slide_id: str) -> Any:
    """Read what the kept features of a slide state of their making."""
    data = storage.read(f"{slide_id}{KEPT_SUFFIX}/zarr.json")
    return get_nested(parse_json(data), "attributes", "fseg")
