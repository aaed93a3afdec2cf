"""What a place holds already: which slides' results are there, whole, and of the file that is there now.

A slide is done when its record says what the run is asked for, was made of the file that lies at the
slide's path (``slides.identity``), and everything beside it is there. Everything that is read here may have
been damaged, or put there by somebody else: it is then as if it were not there.
"""

import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, Literal, NamedTuple

from fseg_jax.cohort.job import Job, features_hash, settings_hash, settings_of
from fseg_jax.cohort.manifest import ManifestSlide
from fseg_jax.encoders.encoder import EncoderCard
from fseg_jax.errors import InputError
from fseg_jax.files.storage import Storage, open_storage
from fseg_jax.pipeline.segment import SUFFIXES
from fseg_jax.pipeline.tokens import KEPT_SUFFIX
from fseg_jax.slides.identity import identify, is_same

_AT_ONCE = 8  # slides that are looked at


class State(NamedTuple):
    """What there is of a slide: nothing, results of other settings, results that are not to be used any
    more, for a reason, or all that is asked for.
    """

    status: Literal["missing", "other", "outdated", "done"]
    reason: str = ""


class Survey(NamedTuple):
    """Slides by what there is of them; ``outdated`` with reasons."""

    done: set[str]
    other: list[str]
    outdated: dict[str, str]


def survey(storage: Storage, job: Job, card: EncoderCard, slides: Sequence[ManifestSlide]) -> Survey:
    """Look at what there is of every slide."""
    found = storage.read_all([f"{slide.slide_id}.json" for slide in slides])

    def look(slide: ManifestSlide) -> State:
        return state_of(storage, job, card, slide, found.get(f"{slide.slide_id}.json"))

    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fseg-survey") as pool:
        states = dict(zip((slide.slide_id for slide in slides), pool.map(look, slides), strict=True))
    return Survey(
        {name for name, state in states.items() if state.status == "done"},
        [name for name, state in states.items() if state.status == "other"],
        {name: state.reason for name, state in states.items() if state.status == "outdated"},
    )


def state_of(
    storage: Storage, job: Job, card: EncoderCard, slide: ManifestSlide, record: bytes | None
) -> State:
    """Look at what there is of a slide whose record, or None, has been read."""
    if record is None:
        return State("missing")
    made = read_record(record)
    if made is None:
        return State("outdated", "its record is damaged")
    settings = settings_of(slide, job)
    if made.get("settings_hash") != settings_hash(job, card, settings):
        return State("other")
    if not _is_whole(made):
        return State("outdated", "its record is damaged")
    now = facts_of(slide) or _kept_of(job, slide) or made["slide"]
    if not is_same(made["slide"], now):
        return State("outdated", "the file at its path is another one")
    promised = {f"{slide.slide_id}{suffix}": suffix for suffix in SUFFIXES[1:]}
    there = storage.there(list(promised))
    if gone := [suffix for key, suffix in promised.items() if key not in there]:
        return State("outdated", f"its {' and '.join(gone)} {'is' if len(gone) == 1 else 'are'} gone")
    if not job.keep_features:
        return State("done")
    kept = _group(storage, slide.slide_id)
    if stated(kept, "features_hash") != features_hash(job, card, settings):
        return State("missing")
    of = stated(kept, "slide")
    return State("done" if _is_slide(of) and is_same(of, now) else "missing")


def facts_of(slide: ManifestSlide) -> dict[str, Any] | None:
    """The path and the identity of a slide's file; None where it cannot be read."""
    try:
        return {"path": str(slide.path), "identity": identify(slide.path)}
    except InputError:
        return None


def _kept_of(job: Job, slide: ManifestSlide) -> dict[str, Any] | None:
    """Which slide the features were of that a job segments from."""
    of = stated(_group(open_storage(job.features), slide.slide_id), "slide") if job.features else None
    return of if _is_slide(of) else None


def _group(storage: Storage, name: str) -> Any:
    """What a slide's kept features say of their making."""
    return stated(parsed(storage.read(f"{name}{KEPT_SUFFIX}/zarr.json")), "attributes", "fseg")


# ------------------------------------------------------------------------------------- what files hold


def read_record(data: bytes | None) -> dict[str, Any] | None:
    """A slide's record; None where it is none."""
    made = parsed(data)
    return made if isinstance(made, dict) and _is_slide(made.get("slide")) else None


def read_results(data: bytes | None, settings: str) -> dict[str, Any] | None:
    """A slide's record of these settings; None where it is of others, or damaged."""
    made = read_record(data)
    return made if made and made.get("settings_hash") == settings and _is_whole(made) else None


def read_timing(data: bytes | None) -> dict[str, Any] | None:
    """When a slide was made, and how fast; None where that is not said."""
    timing = parsed(data)
    try:
        there = datetime.fromisoformat(timing["finished"]).tzinfo is not None
        numbers = [*timing["seconds"].values(), timing["tiles_per_second"]]
    except (LookupError, TypeError, ValueError, AttributeError):
        return None
    return timing if there and all(map(_is_number, numbers)) else None


def read_failure(data: bytes) -> dict[str, Any] | None:
    """Why a slide failed: its ``slide_id``, ``path`` and ``reason``; None where that is not said."""
    told = parsed(data)
    names = ("slide_id", "path", "reason")
    return told if all(isinstance(stated(told, name), str) for name in names) else None


def parsed(data: bytes | None) -> Any:
    """What JSON says; None where it is none."""
    try:
        return json.loads(data or b"null")
    except (ValueError, RecursionError):
        return None


def stated(value: Any, *keys: str) -> Any:
    """What is said under some keys, one in another; None where nothing is."""
    for key in keys:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def _is_slide(value: Any) -> bool:
    return isinstance(stated(value, "path"), str)


def _is_whole(made: dict[str, Any]) -> bool:
    """Whether a record holds all that tables and the report show of it."""
    areas = made.get("areas_mm2")
    return (
        isinstance(areas, dict)
        and all(map(_is_number, [*areas.values(), made.get("tissue_mm2"), made.get("tiles")]))
        and isinstance(made.get("versions"), dict)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
