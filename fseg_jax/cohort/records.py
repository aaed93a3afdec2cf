"""The files of a cohort that are JSON, and what each states: the one place where they are read and written.

``cohort.json`` states what settings the place is for, ``failures/ID.json`` why a slide failed, and
``timings/ID.json`` how fast it was made. ``ID.json`` is the record of a slide, as the pipeline writes it. Any
of them may be damaged, or somebody else's: reading then gives None, as if it were not there.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from fseg_jax.encoders.encoder import EncoderCard
from fseg_jax.outputs.report import SlideTiming, SlideTotals, locate_thumbnail
from fseg_jax.pipeline.publish import encode_json
from fseg_jax.slides.identity import SlideFile

AGREEMENT = "cohort.json"
FAILURES = "failures"  # folder
NAMES = "names.csv"  # what the clusters of all slides are called


def record_key(slide_id: str) -> str:
    """Return where the record of a slide is, below the cohort's place."""
    return f"{slide_id}.json"


def failure_key(slide_id: str) -> str:
    """Return where it is written why a slide failed."""
    return f"{FAILURES}/{slide_id}.json"


def timing_key(slide_id: str) -> str:
    """Return where it is written how fast a slide was made."""
    return f"timings/{slide_id}.json"


def thumbnail_key(slide_id: str) -> str:
    """Return where the picture of a slide for the report is."""
    return locate_thumbnail(slide_id)


def typical_key(slide_id: str) -> str:
    """Return where the pictures of a slide's typical places are, those of the record in a sheet."""
    return f"typical/{slide_id}.jpg"


def neighbours_key(slide_id: str) -> str:
    """Return where it is written how the clusters of a slide lie to each other."""
    return f"neighbours/{slide_id}.npz"


@dataclass(frozen=True)
class Agreement:
    """What settings a place is for, so that two runs never mix theirs: ``cohort.json``.

    Attributes:
        settings_hash: Hash of the settings, and of all else that the results depend on.
        settings: The same in full, by name.
        encoder: The encoder; None where its card is damaged.
    """

    settings_hash: str
    settings: Mapping[str, Any]
    encoder: EncoderCard | None

    def to_json(self) -> bytes:
        """Return the content of the file."""
        encoder = self.encoder.to_json() if self.encoder else None
        return encode_json(
            {"settings_hash": self.settings_hash, "settings": self.settings, "encoder": encoder}
        )

    @classmethod
    def from_json(cls, data: bytes | None) -> "Agreement | None":
        """Read the content of the file; None where it is damaged."""
        content = parse_json(data)
        settings, digest = get_nested(content, "settings"), get_nested(content, "settings_hash")
        if not isinstance(settings, dict) or not isinstance(digest, str):
            return None
        try:
            card = EncoderCard.from_json(content["encoder"])
        except (LookupError, TypeError):
            card = None
        return cls(digest, settings, card)


@dataclass(frozen=True)
class Failure:
    """Why a slide failed: ``failures/ID.json``.

    Attributes:
        slide_id: The slide.
        path: Its file.
        reason: What went wrong, in one line.
        outdated: Whether there are results of it that are not to be used any more.
    """

    slide_id: str
    path: str
    reason: str
    outdated: bool = False

    def to_json(self) -> bytes:
        """Return the content of the file."""
        content = asdict(self)
        if not self.outdated:
            del content["outdated"]
        return encode_json(content)

    @classmethod
    def from_json(cls, data: bytes | None) -> "Failure | None":
        """Read the content of the file; None where it is damaged."""
        content = parse_json(data)
        slide_id, path, reason = (get_nested(content, name) for name in ("slide_id", "path", "reason"))
        if not all(isinstance(text, str) for text in (slide_id, path, reason)):
            return None
        return cls(slide_id, path, reason, bool(content.get("outdated")))


@dataclass(frozen=True)
class SlideRecord:
    """What a cohort reads in the record of a slide: ``ID.json``.

    Attributes:
        slide: Path and identity of the slide's file.
        settings_hash: Hash of all that the results depend on but the slide; None: no cohort made them.
        totals: What is shown of it; None where that is damaged.
    """

    slide: SlideFile
    settings_hash: str | None
    totals: SlideTotals | None

    @classmethod
    def from_json(cls, data: bytes | None) -> "SlideRecord | None":
        """Read the content of the file; None where it is damaged."""
        content = parse_json(data)
        slide = read_slide(content)
        if slide is None:
            return None
        return cls(slide, get_nested(content, "settings_hash"), _read_totals(content))


def _read_totals(content: dict[str, Any]) -> SlideTotals | None:
    areas, versions = content.get("areas_mm2"), content.get("versions")
    colours = content.get("colours")
    tissue: Any = content.get("tissue_mm2")
    tiles: Any = content.get("tiles")
    if not isinstance(areas, dict) or not isinstance(versions, dict) or not isinstance(colours, dict):
        return None
    if colours.keys() != areas.keys() or not all(map(_is_colour, colours.values())):
        return None
    border: Any = content.get("border_share")
    if (
        not isinstance(border, dict)
        or border.keys() != areas.keys()
        or not all(map(_is_number, border.values()))
    ):
        return None
    if not all(map(_is_number, (tissue, tiles, *areas.values(), *border.values()))):
        return None
    try:
        typical = {str(name): [float(p["share"]) for p in own] for name, own in content["typical"].items()}
    except (LookupError, TypeError, ValueError, AttributeError):
        return None
    return SlideTotals(tissue, areas, colours, border, typical, tiles, versions, content.get("device", ""))


def read_slide(content: Any) -> SlideFile | None:
    """Return the path and the identity of the slide that JSON is about; None where it has no path."""
    slide = get_nested(content, "slide")
    path, identity = (get_nested(slide, name) for name in ("path", "identity"))
    return SlideFile(path, identity) if isinstance(path, str) else None


def read_timing(data: bytes | None) -> SlideTiming | None:
    """Read when a slide was made, and how fast; None where the file is damaged."""
    content = parse_json(data)
    try:
        finished = datetime.fromisoformat(content["finished"])
        timing = SlideTiming(dict(content["seconds"]), content["tiles_per_second"], finished)
    except (LookupError, TypeError, ValueError):
        return None
    numbers = [*timing.seconds.values(), timing.tiles_per_second]
    return timing if finished.tzinfo is not None and all(map(_is_number, numbers)) else None


def parse_json(data: bytes | None) -> Any:
    """Parse JSON; None where it is damaged, or there is none."""
    try:
        return json.loads(data or b"null")
    except (ValueError, RecursionError):
        return None


def get_nested(content: Any, *keys: str) -> Any:
    """Look keys up, one in another; None where one is not there.

    >>> get_nested({"slide": {"path": "a.svs"}}, "slide", "path")
    'a.svs'
    """
    for key in keys:
        if not isinstance(content, dict):
            return None
        content = content.get(key)
    return content


def _is_colour(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("#[0-9a-f]{6}", value) is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
