"""The report of a cohort: one HTML file that opens anywhere, with every slide, its areas and what failed."""

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

from fseg_jax.errors import InputError
from fseg_jax.files.images import load_image
from fseg_jax.outputs.colours import format_hex, make_palette
from fseg_jax.outputs.labels import open_labels, read_level_for

SIDE = 160  # pixels of a thumbnail's longer side; the slide and its labels lie beside each other
_ALPHA = 0.55
_QUALITY = 75
_BYTES = 40_000_000  # of all pictures of a page: where there are more, they get smaller


@dataclass(frozen=True)
class SlideTotals:
    """What tables and the report show of a slide that is done.

    Attributes:
        tissue_mm2: Area of all clusters.
        areas_mm2: Area of each cluster, by name.
        tiles: Number of tiles with tissue.
        versions: Versions of the packages that made it.
        device: Kind of processor that made it.
    """

    tissue_mm2: float
    areas_mm2: Mapping[str, float]
    tiles: int
    versions: Mapping[str, str]
    device: str


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


def encode_thumbnail(image: np.ndarray, labels_path: str | os.PathLike[str]) -> bytes:
    """A slide beside itself under its clusters, small, as JPEG.

    ``image`` is the whole slide, uint8 (h, w, 3); ``labels_path`` a label pyramid of it.
    """
    height, width = image.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    labels = read_level_for(labels_path, size[1])
    y, x = ((np.arange(n) + 0.5) * full / n for n, full in zip(size[::-1], labels.shape, strict=True))
    there = labels[y.astype(int)[:, None], x.astype(int)[None]]
    colours = np.concatenate([np.zeros((1, 3), np.uint8), open_labels(labels_path).colours])[there]
    share = np.where(there > 0, _ALPHA, 0)[..., None]
    under = np.asarray(small, np.float32)
    over = np.rint(under * (1 - share) + colours * share).astype(np.uint8)
    gap = np.full((size[1], 4, 3), 255, np.uint8)
    return _encode_jpeg(Image.fromarray(np.concatenate([np.asarray(small), gap, over], axis=1)))


def render_report(
    *,
    slides: Sequence[Slide],
    failures: Sequence[dict[str, str]],
    settings: dict[str, Any],
    encoder: dict[str, Any],
    codebook: dict[str, Any] | None,
) -> str:
    """The page. It holds everything it shows and asks for nothing from anywhere.

    Clusters are beside each other only where all slides have those of one ``codebook``.
    """
    from jinja2 import Environment, select_autoescape

    done = [slide for slide in slides if slide.totals]
    totals = [slide.totals for slide in done if slide.totals]
    clusters = list(dict.fromkeys(name for each in totals for name in each.areas_mm2)) if codebook else []
    pictures = _encode_pictures([slide.picture if _is_jpeg(slide.picture) else None for slide in done])
    rows = [
        [
            slide.slide_id,
            slide.site,
            slide.split,
            each.tissue_mm2,
            each.tiles,
            round(sum(slide.timing.seconds.values()), 1) if slide.timing else 0,
            slide.timing.tiles_per_second if slide.timing else 0,
            [round(each.areas_mm2.get(name, 0), 4) for name in clusters],
            picture,
        ]
        for slide, each, picture in zip(done, totals, pictures, strict=True)
    ]
    source = resources.files("fseg_jax.outputs") / "report.html.j2"
    page = Environment(autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True)
    return page.from_string(source.read_text(encoding="utf-8")).render(
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
            "colours": [format_hex(colour) for colour in make_palette(len(clusters))],
        },
    )


def _sum_totals(
    slides: Sequence[Slide], done: Sequence[Slide], failures: Sequence[dict[str, str]]
) -> dict[str, Any]:
    totals = [slide.totals for slide in done if slide.totals]
    timings = [slide.timing for slide in done if slide.timing]
    busy = sum(sum(timing.seconds.values()) for timing in timings)
    ends = sorted(timing.finished for timing in timings)
    return {
        "slides": len(slides),
        "done": len(done),
        "failed": len(failures),
        "missing": len(slides) - len(done) - len(failures),
        "tissue_mm2": sum(each.tissue_mm2 for each in totals),
        "tiles": sum(each.tiles for each in totals),
        "seconds": busy,
        "first": ends[0].strftime("%Y-%m-%d %H:%M") if ends else "",
        "last": ends[-1].strftime("%Y-%m-%d %H:%M UTC") if ends else "",
    }


def _encode_pictures(pictures: Sequence[bytes | None]) -> list[str]:
    """Pictures as data, made smaller where all together would be too much for a page."""
    while sum(len(p) for p in pictures if p) > _BYTES:
        pictures = [p and _encode_jpeg(_halve(load_image(io.BytesIO(p)))) for p in pictures]
    return [base64.b64encode(p).decode() if p else "" for p in pictures]


def _is_jpeg(picture: bytes | None) -> bool:
    """Whether a picture can be shown: it may have been cut off, or be something else."""
    try:
        load_image(io.BytesIO(picture or b""), "a thumbnail", formats=("JPEG",))
    except InputError:
        return False
    return True


def _halve(picture: Image.Image) -> Image.Image:
    return picture.resize((max(1, picture.width // 2), max(1, picture.height // 2)), Image.Resampling.LANCZOS)


def _encode_jpeg(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()
