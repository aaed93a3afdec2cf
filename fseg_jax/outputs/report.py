"""The report of a cohort: one HTML file with every slide, its picture and its clusters' areas."""

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from jaxtyping import UInt, UInt8
from PIL import Image

from fseg_jax.errors import InputError
from fseg_jax.files.images import load_image
from fseg_jax.outputs.cluster_names import Clusters
from fseg_jax.outputs.colours import format_hex
from fseg_jax.outputs.labels import resample_nearest
from fseg_jax.outputs.neighbours import Neighbours, pool_neighbours

OWN_LISTED = 12  # clusters of a slide's own that its line shows, the largest ones
SIDE = 160  # pixels of the longer side of a slide in a thumbnail, which shows it twice
_ALPHA = 0.55  # opacity of the clusters' colours
_QUALITY = 75  # of JPEG
_DATA = re.compile(r'(<script type="application/json" id="data">)(.*?)(?=</script>)', re.DOTALL)
_RELATED = 32  # clusters whose neighbours the page shows, the largest ones
_MAX_BYTES = 2_500_000  # of all pictures inside a page: where there are more, it shows the files beside it


@dataclass(frozen=True)
class SlideTotals:
    """The results of a finished slide, for tables and the report.

    Attributes:
        tissue_mm2: Area of all clusters.
        areas_mm2: Area of each cluster, by name.
        colours: Colour of each cluster, by name, in hexadecimal digits.
        border_share: Share of each cluster at the border of tissue, by name.
        typical: The shares that clusters have at their most typical places, by name.
        tiles: Number of tiles with tissue.
        versions: Versions of the packages that made it.
        device: Kind of processor that made it.
    """

    tissue_mm2: float
    areas_mm2: Mapping[str, float]
    colours: Mapping[str, str]
    border_share: Mapping[str, float]
    typical: Mapping[str, Sequence[float]]
    tiles: int
    versions: Mapping[str, str]
    device: str


class TypicalPlace(NamedTuple):
    """A place that is typical of a cluster.

    Attributes:
        slide_id: The slide that it is on.
        picture: Its picture, as JPEG.
        share: The cluster's share of the contributions there.
    """

    slide_id: str
    picture: bytes
    share: float


@dataclass(frozen=True)
class SlideTiming:
    """When a slide was made, and how fast.

    Attributes:
        seconds: Seconds by phase.
        tiles_per_second: Tiles segmented in a second.
        finished: When it was finished.
    """

    seconds: Mapping[str, float]
    tiles_per_second: float
    finished: datetime


@dataclass(frozen=True)
class Slide:
    """A slide in a report.

    Attributes:
        slide_id: Its name.
        site: Where it is from; empty: unknown.
        split: The split that it belongs to; empty: none.
        totals: What came of it; None: it is not done.
        timing: When it was made; None: unknown.
        picture: Its thumbnail, as JPEG.
    """

    slide_id: str
    site: str
    split: str
    totals: SlideTotals | None
    timing: SlideTiming | None
    picture: bytes | None


def encode_thumbnail(
    image: UInt8[np.ndarray, "h w 3"],
    labels: UInt[np.ndarray, "label_rows label_columns"],
    colours: UInt8[np.ndarray, "k 3"],
) -> bytes:
    """Encode a thumbnail as JPEG: the slide, and beside it the slide with its clusters' colours.

    Args:
        image: The whole slide.
        labels: Its labels, at any resolution.
        colours: The clusters' colours.
    """
    height, width = image.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    labels = resample_nearest(labels, (size[1], size[0]))
    tints = np.concatenate([np.zeros((1, 3), np.uint8), colours])[labels]
    alpha = np.where(labels > 0, _ALPHA, 0)[..., None]
    overlay = np.rint(np.asarray(small, np.float32) * (1 - alpha) + tints * alpha).astype(np.uint8)
    gap = np.full((size[1], 4, 3), 255, np.uint8)
    return _encode_jpeg(Image.fromarray(np.concatenate([np.asarray(small), gap, overlay], axis=1)))


def render_report(
    *,
    slides: Sequence[Slide],
    failures: Sequence[dict[str, str]],
    settings: dict[str, Any],
    encoder: dict[str, Any],
    codebook: dict[str, Any] | None,
    typical: Mapping[str, Sequence[TypicalPlace]],
    neighbours: Sequence[Neighbours] = (),
) -> str:
    """Render the page, with everything that it shows inside it.

    Args:
        slides: All slides.
        failures: The slides that failed, with ``slide_id`` and ``reason``.
        settings: The settings of the run.
        encoder: The encoder's card.
        codebook: What the codebook was made with; None where each slide has clusters of its own, which are
            shown in its own line, as no two of them are the same.
        typical: The most typical places of clusters, by name.
        neighbours: How clusters lie to each other on slides.
    """
    from jinja2 import Environment, select_autoescape

    done = [slide for slide in slides if slide.totals]
    totals = [slide.totals for slide in done if slide.totals]
    names = (name for slide_totals in totals for name in slide_totals.areas_mm2)
    clusters = list(dict.fromkeys(names)) if codebook else []
    colours = {name: colour for each in totals for name, colour in each.colours.items()}
    pictures = _place_pictures({slide.slide_id: slide.picture for slide in done})
    rows = [
        [
            slide.slide_id,
            slide.site,
            slide.split,
            slide_totals.tissue_mm2,
            slide_totals.tiles,
            round(sum(slide.timing.seconds.values()), 1) if slide.timing else 0,
            slide.timing.tiles_per_second if slide.timing else 0,
            [round(slide_totals.areas_mm2.get(name, 0), 4) for name in clusters],
            pictures[slide.slide_id],
            [] if codebook else _list_own_clusters(slide.slide_id, slide_totals),
        ]
        for slide, slide_totals in zip(done, totals, strict=True)
    ]
    template = resources.files("fseg_jax.outputs") / "report.html.j2"
    environment = Environment(
        autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        totals=_sum_totals(slides, done, failures),
        failures=failures,
        settings=settings,
        encoder=encoder,
        codebook=codebook,
        versions=totals[0].versions if totals else {},
        device=totals[0].device if totals else "",
        sites=any(slide.site for slide in slides),
        splits=any(slide.split for slide in slides),
        data={
            "rows": rows,
            "clusters": clusters,
            "colours": [colours[name] for name in clusters],
            "listed": OWN_LISTED,
            "border": [_average_border_share(name, totals) for name in clusters]
            if any(each.border_share for each in totals)
            else None,
            "typical": [
                [
                    [each.slide_id, base64.b64encode(each.picture).decode(), round(each.share, 3)]
                    for each in typical.get(name, ())
                ]
                for name in clusters
            ],
            "neighbours": _describe_neighbours(neighbours, clusters, totals),
        },
    )


def _describe_neighbours(
    neighbours: Sequence[Neighbours], clusters: Sequence[str], totals: Sequence[SlideTotals]
) -> dict[str, Any] | None:
    """Describe how the largest clusters lie to each other on all slides; None where that is not known."""
    areas = [sum(slide.areas_mm2.get(name, 0) for slide in totals) for name in clusters]
    largest = sorted(range(len(clusters)), key=lambda j: -areas[j])[:_RELATED]
    shown = sorted(j for j in largest if areas[j])
    if not neighbours or len(shown) < 2:
        return None
    pooled = pool_neighbours(neighbours, shown)
    np.fill_diagonal(pooled.borders, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = pooled.counts / pooled.expected
        border = pooled.borders / pooled.borders.sum(1, keepdims=True)
    tables = {"ratio": ratio, "border": border, "distance": pooled.distances}
    for table in tables.values():
        np.fill_diagonal(table, np.nan)
    return {
        "slides": len(neighbours),
        "clusters": shown,
        **{name: [[_round(v) for v in row] for row in table.tolist()] for name, table in tables.items()},
    }


def _round(value: float) -> float | None:
    return float(f"{value:.3g}") if np.isfinite(value) else None


def _average_border_share(name: str, totals: Sequence[SlideTotals]) -> float:
    """Average what part of a cluster lies at the border of tissue, over its area on all slides."""
    area = sum(slide.areas_mm2.get(name, 0) for slide in totals)
    near = sum(slide.areas_mm2.get(name, 0) * slide.border_share.get(name, 0) for slide in totals)
    return round(near / area, 4) if area else 0.0


def rename_report(page: str, clusters: Clusters, thumbnails: Mapping[str, bytes]) -> str:
    """Rename the clusters of a page whose slides share a codebook.

    Args:
        page: The page.
        clusters: What its clusters are called now.
        thumbnails: The slides' new thumbnails, by their names.

    Raises:
        ValueError: It is no such page.
    """
    from jinja2.utils import htmlsafe_json_dumps

    found = _DATA.search(page)
    if found is None:
        raise ValueError("it is no report of this version")
    data = json.loads(found[2])
    if len(data["clusters"]) != len(clusters.names):
        raise ValueError("it has other clusters")
    data["clusters"] = list(clusters.names)
    data["colours"] = [format_hex(colour) for colour in clusters.colours]
    pictures = _place_pictures({row[0]: thumbnails.get(row[0]) for row in data["rows"]})
    for row in data["rows"]:
        row[8] = pictures[row[0]]
    return page[: found.start(2)] + str(htmlsafe_json_dumps(data)) + page[found.end(2) :]


def make_own_label(slide_id: str, label: int) -> str:
    """Name a cluster that was fitted on one slide alone so that it is no other slide's.

    >>> make_own_label("S-01", 3)
    'S-01/3'
    """
    return f"{slide_id}/{label}"


def _list_own_clusters(slide_id: str, totals: SlideTotals) -> list[tuple[str, str, float]]:
    """List the clusters found on a slide: label, colour and area in mm², the largest first."""
    rows = [
        (make_own_label(slide_id, label), totals.colours[name], round(area, 4))
        for label, (name, area) in enumerate(totals.areas_mm2.items(), 1)
        if area > 0
    ]
    return sorted(rows, key=lambda row: -row[2])


def _sum_totals(
    slides: Sequence[Slide], done: Sequence[Slide], failures: Sequence[dict[str, str]]
) -> dict[str, Any]:
    totals = [slide.totals for slide in done if slide.totals]
    timings = [slide.timing for slide in done if slide.timing]
    seconds = sum(sum(timing.seconds.values()) for timing in timings)
    ends = sorted(timing.finished for timing in timings)
    return {
        "slides": len(slides),
        "done": len(done),
        "failed": len(failures),
        "missing": len(slides) - len(done) - len(failures),
        "tissue_mm2": sum(slide_totals.tissue_mm2 for slide_totals in totals),
        "tiles": sum(slide_totals.tiles for slide_totals in totals),
        "seconds": seconds,
        "first": ends[0].strftime("%Y-%m-%d %H:%M") if ends else "",
        "last": ends[-1].strftime("%Y-%m-%d %H:%M UTC") if ends else "",
    }


def _place_pictures(pictures: Mapping[str, bytes | None]) -> dict[str, str]:
    """Return where a page finds pictures: in itself, or in files beside it if they are too large."""
    good = {name: picture for name, picture in pictures.items() if picture and _is_jpeg(picture)}
    if sum(map(len, good.values())) > _MAX_BYTES:
        return {name: quote(locate_thumbnail(name)) if name in good else "" for name in pictures}
    return {
        name: f"data:image/jpeg;base64,{base64.b64encode(good[name]).decode()}" if name in good else ""
        for name in pictures
    }


def locate_thumbnail(slide_id: str) -> str:
    """Return where the thumbnail of a slide is, from the report."""
    return f"thumbnails/{slide_id}.jpg"


def _is_jpeg(picture: bytes | None) -> bool:
    """Return whether a thumbnail can be shown: its file may be damaged."""
    try:
        load_image(io.BytesIO(picture or b""), "a thumbnail", formats=("JPEG",))
    except InputError:
        return False
    return True


def _encode_jpeg(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()
