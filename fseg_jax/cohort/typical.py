"""The places of a cohort that are most typical of each cluster, chosen among those of its slides."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fseg_jax.cohort.records import typical_key
from fseg_jax.errors import InputError
from fseg_jax.files.storage import Storage
from fseg_jax.outputs.picture import cut_tiles, decode_jpeg, encode_jpeg
from fseg_jax.outputs.report import SlideTotals, TypicalPlace

_PLACES = 3  # of a cluster
_GOOD = 0.75  # of the share of its best place, that the others have at least
_QUALITY = 80  # of JPEG


class _Candidate(NamedTuple):
    """A typical place of a slide.

    Attributes:
        share: The cluster's share of the contributions there.
        slide_id: The slide.
        place: Which of the cluster's places on that slide it is.
    """

    share: float
    slide_id: str
    place: int


def read_typical(storage: Storage, totals: Mapping[str, SlideTotals]) -> dict[str, list[TypicalPlace]]:
    """Read the pictures of the most typical places of each cluster, by name.

    Slides whose pictures are gone or damaged have no places.
    """
    names = list(dict.fromkeys(name for slide in totals.values() for name in slide.typical))
    chosen = {name: _choose(name, totals) for name in names}
    pictures: dict[tuple[str, str, int], bytes] = {}
    for slide_id in sorted({each.slide_id for places in chosen.values() for each in places}):
        wanted = [
            (name, each.place)
            for name, places in chosen.items()
            for each in places
            if each.slide_id == slide_id
        ]
        sheet = _read_sheet(storage.read(typical_key(slide_id)), totals[slide_id].typical, wanted)
        pictures |= {(slide_id, *place): picture for place, picture in sheet.items()}
    shown = {
        name: [
            TypicalPlace(each.slide_id, pictures[each.slide_id, name, each.place], each.share)
            for each in places
            if (each.slide_id, name, each.place) in pictures
        ]
        for name, places in chosen.items()
    }
    return {name: places for name, places in shown.items() if places}


def _choose(name: str, totals: Mapping[str, SlideTotals]) -> list[_Candidate]:
    """Choose places of a cluster that are nearly as much its own as the best, on several slides if there are.

    The best place of a slide that has little of the cluster would show something else.
    """
    candidates = [
        _Candidate(share, slide_id, index)
        for slide_id, slide in totals.items()
        for index, share in enumerate(slide.typical.get(name, ()))
    ]
    least = _GOOD * max((each.share for each in candidates), default=0.0)
    good = [each for each in candidates if each.share >= least]
    good.sort(key=lambda each: (each.place, -each.share, each.slide_id))
    return sorted(good[:_PLACES], key=lambda each: (-each.share, each.slide_id, each.place))


def _read_sheet(
    data: bytes | None, typical: Mapping[str, Sequence[float]], wanted: Sequence[tuple[str, int]]
) -> dict[tuple[str, int], bytes]:
    """Cut the pictures of some places, JPEG, out of the sheet of a slide's."""
    counts = {j: len(places) for j, places in enumerate(typical.values())}
    rows = {name: j for j, name in enumerate(typical)}
    try:
        tiles = cut_tiles(decode_jpeg(data or b""), counts)
    except (InputError, ValueError):
        return {}
    return {(name, index): encode_jpeg(tiles[rows[name]][index], _QUALITY) for name, index in wanted}
