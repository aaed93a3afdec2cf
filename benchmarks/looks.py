"""Measure how segmentations look: how much of them is rings, specks and bands in place of tissue.

    FSEG_DATA=... python -m benchmarks.looks [--name NAME]

Every example slide, the picture of ``fseg demo`` and the regions of BCSS are segmented with ``he-small``:
into eight clusters of the slide and into the 16 of the shipped codebook, with H fixed and with W and H free.
The measures, on labels at about 4 µm a pixel:

- *ring*: the share of the tissue in clusters that hug its border. More than half of such a cluster is within
  32 µm of the border, and at least twice the share that all tissue has there.
- *specks*: the share of the connected regions that are smaller than 500 µm².
- *regions*: connected regions in a mm² of tissue.
- *bands*: the share of the tissue that is thinner than 48 µm: the opening of its cluster by a disc of 24 µm
  radius removes it.

The frame of a picture is no border of tissue. A result is kept as ``results/looks_NAME.json`` (NAME is
``today`` unless given), with a picture of each segmentation in ``results/looks_NAME.jpg``; the page
``results/looks.md`` shows all kept results side by side.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import skimage.measure
from PIL import Image, ImageDraw
from scipy import ndimage

from benchmarks.examples import find_examples
from benchmarks.measure import RESULTS, describe_machine
from fseg_jax.cli.segment import DEMO_MPP
from fseg_jax.codebook import SHIPPED, Codebook
from fseg_jax.encoders.load import load_encoder
from fseg_jax.methods import fseg
from fseg_jax.outputs.colours import make_palette
from fseg_jax.outputs.figures import tint
from fseg_jax.outputs.labels import open_labels
from fseg_jax.pipeline.plan import Settings
from fseg_jax.pipeline.segment import segment_slide
from fseg_jax.slides.reader import open_slide, read_thumbnail

MPP = 4.0  # µm per pixel of the measured labels
BORDER = 32.0  # µm
MIN_EXCESS = 2.0  # of a ring's share near the border, times that of all tissue
SPECK = 500.0  # µm², area of a region
OPENING = 24.0  # µm, radius
SLIDE_K, SHIPPED_K = 8, 16  # clusters of the slide, and of the shipped codebook
GOALS = {"ring": 0.03, "specks": 0.2, "regions": 150.0}  # the most of each measure
BORDERED = ("CMU-1", "TCGA")  # how the names of fields with glass begin
PANEL = 520  # pixels of a picture's longer side


class Looks(NamedTuple):
    """The measures of a segmentation; all but ``regions`` are shares of 1."""

    ring: float
    specks: float
    regions: float
    bands: float


class Field(NamedTuple):
    """An image to segment.

    Attributes:
        name: in tables and pictures.
        path: of the file.
        mpp_override: µm per pixel of a file without them.
        mpp: µm per pixel to segment at; the encoder's by default.
    """

    name: str
    path: Path
    mpp_override: float | None = None
    mpp: float | None = None


def measure_looks(labels: np.ndarray, mpp: float) -> Looks:
    """Measure labels, unsigned (h, w) with 0 for background, at ``mpp`` µm per pixel."""
    tissue = labels > 0
    size = np.bincount(labels.ravel())
    near_border = tissue & (_measure_depth(tissue, mpp) <= BORDER)
    share_near = np.bincount(labels[near_border], minlength=len(size)) / np.maximum(size, 1)
    is_ring = (share_near > 0.5) & (share_near >= MIN_EXCESS * near_border.sum() / max(tissue.sum(), 1))
    is_ring[0] = False
    regions = skimage.measure.label(labels, background=0, connectivity=1)
    areas = np.bincount(regions.ravel())[1:] * mpp**2
    total = max(int(tissue.sum()), 1)
    return Looks(
        ring=float(size[is_ring].sum() / total),
        specks=float((areas < SPECK).mean()) if len(areas) else 0.0,
        regions=len(areas) / (total * mpp**2 * 1e-6),
        bands=float(sum(_count_thin(labels == j, mpp) for j in np.flatnonzero(size[1:]) + 1) / total),
    )


def _measure_depth(mask: np.ndarray, mpp: float) -> np.ndarray:
    """Measure the depth of each pixel's centre in a mask, µm; the frame of the picture is no border."""
    if mask.all():
        return np.full(mask.shape, np.inf)
    return np.asarray((ndimage.distance_transform_edt(mask) - 0.5) * mpp)


def _count_thin(mask: np.ndarray, mpp: float) -> int:
    """Count the pixels that the opening by a disc removes from a mask."""
    core = _measure_depth(mask, mpp) > OPENING
    opened = mask & (_measure_depth(~core, mpp) <= OPENING) if core.any() else core
    return int(mask.sum() - opened.sum())


def list_fields(data: Path) -> Iterator[Field]:
    """List the example slides, the regions of BCSS and the demo's picture."""
    slides = data / "slides"
    yield Field("CMU-1", slides / "CMU-1-Small-Region.svs")
    yield Field("TCGA, at 0.25", slides / "TCGA-CR-7395-01A-01-TS1.svs", 0.25)
    yield Field("TCGA, at 1.0", slides / "TCGA-CR-7395-01A-01-TS1.svs", 1.0)
    yield Field("OS-1", slides / "OS-1-detail.ome.tif")
    for path in sorted((data / "bcss_tumour" / "images").glob("*.jpg")):
        yield Field(f"BCSS {path.stem}", path, 0.25)
    with resources.as_file(resources.files("skimage.data") / "ihc.png") as image:
        yield Field("the demo's", image, DEMO_MPP, DEMO_MPP)


class SegmentedField(NamedTuple):
    """A field's segmentation.

    Attributes:
        labels: at about 4 µm a pixel.
        looks: measured on them.
        image: a small picture of the field.
    """

    labels: np.ndarray
    looks: Looks
    image: np.ndarray


def segment_field(field: Field, codebook: Codebook | None, settings: Settings) -> SegmentedField:
    """Segment a field with ``he-small``, and measure the looks of it."""
    settings = replace(settings, mpp=field.mpp, mpp_override=field.mpp_override)
    with tempfile.TemporaryDirectory() as folder, open_slide(field.path, field.mpp_override) as slide:
        segment_slide(slide, Path(folder), load_encoder("he-small"), codebook, settings)
        pyramid = open_labels(Path(folder) / f"{slide.name}.ome.zarr")
        level = pyramid.find_level(MPP)
        labels = pyramid.read(level)
        return SegmentedField(
            labels, measure_looks(labels, pyramid.mpp[level]), read_thumbnail(slide, PANEL)[0]
        )


def measure_field(field: Field, panels: list[Image.Image]) -> Iterator[dict[str, Any]]:
    """Segment a field in each way; yield a row of measures for each, and add a picture to ``panels``."""
    modes: tuple[fseg.Mode, ...] = ("fixed", "assign")
    for codebook in (None, Codebook.load(SHIPPED, SHIPPED_K)):
        for mode in modes:
            labels, looks, image = segment_field(field, codebook, Settings(k=SLIDE_K, mode=mode))
            if not panels:
                panels.append(_draw_panel(image, None, field.name))
            clusters = f"its own {SLIDE_K}" if codebook is None else f"shipped {SHIPPED_K}"
            summary = ", ".join(f"{name} {value:.3g}" for name, value in looks._asdict().items())
            print(f"{field.name}, {clusters}, {mode}: {summary}", flush=True)
            panels.append(_draw_panel(image, labels, f"{clusters}, {mode}: ring {looks.ring:.2f}"))
            yield {"field": field.name, "clusters": clusters, "mode": mode, **looks._asdict()}


def _draw_panel(image: np.ndarray, labels: np.ndarray | None, caption: str) -> Image.Image:
    """Draw an image under a caption, tinted by labels."""
    if labels is not None:
        rows, columns = (
            ((np.arange(n) + 0.5) * m / n).astype(int)
            for n, m in zip(image.shape[:2], labels.shape, strict=True)
        )
        image = tint(
            image, labels[rows[:, None], columns[None]], make_palette(int(max(labels.max(), 1))), 0.55
        )
    panel = Image.new("RGB", (PANEL, PANEL + 24), "white")
    panel.paste(Image.fromarray(image), (0, 24))
    ImageDraw.Draw(panel).text((2, 2), caption, "black", font_size=16)
    return panel


def _arrange(pictures: list[list[Image.Image]]) -> Image.Image:
    """Arrange panels in a row for each field, as high as its images."""
    heights = [_measure_height(row) + 12 for row in pictures]
    sheet = Image.new("RGB", (max(map(len, pictures)) * (PANEL + 8), sum(heights)), "white")
    top = 0
    for row, height in zip(pictures, heights, strict=True):
        for column, panel in enumerate(row):
            sheet.paste(panel.crop((0, 0, PANEL, height - 12)), (column * (PANEL + 8), top))
        top += height
    return sheet


def _measure_height(row: list[Image.Image]) -> int:
    """Measure the height of a row's images; the rest of its panels is white."""
    filled_lines = [np.flatnonzero((np.asarray(panel) < 250).any((1, 2))) for panel in row]
    return 1 + max(int(lines[-1]) for lines in filled_lines)


def format_page() -> str:
    """Format all kept results, side by side, as a page of Markdown."""
    results = {
        path.stem.removeprefix("looks_"): json.loads(path.read_text("utf-8")) for path in _list_results()
    }
    lines = [
        "# What segmentations look like",
        "",
        "Made by `python -m benchmarks.looks` (`FSEG_DATA` names the folder of examples), with `he-small`. "
        "On labels at 4 µm a pixel, of the labelled tissue: *ring*, the share of clusters that hug its "
        "border (more than half of such a cluster is within 32 µm of it, and at least twice the share that "
        "all tissue has there); *specks*, the share of the connected regions that are under 500 µm²; "
        "*regions* in a mm²; *bands*, the share that is thinner than 48 µm. Only CMU-1 and TCGA have a "
        "border that a ring could hug. Bold: the goal is reached.",
        "",
        "CMU-1 and TCGA are among the images that `he-small` and its codebook were trained on, without "
        "labels; BCSS was kept out.",
        "",
    ]
    for name, result in results.items():
        reached = []
        for measure, goal in GOALS.items():
            judged = [row for row in result["rows"] if _has_goal(row, measure)]
            count = sum(row[measure] <= goal for row in judged)
            reached.append(f"{measure} ≤ {goal:g} in {count} of {len(judged)}")
        lines.append(f"- *{name}*: commit {result['commit']}, {result['measured']}; {', '.join(reached)}")
    head = ["image", "clusters", "mode", *(f"{m}, {name}" for m in Looks._fields for name in results)]
    lines += ["", "| " + " | ".join(head) + " |", "| --- | --- | --- |" + " ---: |" * (len(head) - 3)]
    tables = [
        {(r["field"], r["clusters"], r["mode"]): r for r in result["rows"]} for result in results.values()
    ]
    for key in dict.fromkeys(key for table in tables for key in table):
        cells = [_format_cell(table.get(key), m) for m in Looks._fields for table in tables]
        lines.append("| " + " | ".join([*key, *cells]) + " |")
    for name in results:
        lines += ["", f"## {name.capitalize()}", "", f"![Segmentations, {name}](looks_{name}.jpg)"]
    return "\n".join(lines) + "\n"


def _list_results() -> list[Path]:
    """List the files of results, oldest first."""
    return sorted(
        RESULTS.glob("looks_*.json"), key=lambda path: json.loads(path.read_text("utf-8"))["measured"]
    )


def _has_goal(row: dict[str, Any], measure: str) -> bool:
    """Return whether a measure of a segmentation has a goal: where there is no border there is no ring."""
    return measure in GOALS and (measure != "ring" or row["field"].startswith(BORDERED))


def _format_cell(row: dict[str, Any] | None, measure: str) -> str:
    """Format a measure; in bold where it reaches its goal."""
    if row is None:
        return ""
    text = f"{row[measure]:.0f}" if measure == "regions" else f"{row[measure]:.2f}"
    return f"**{text}**" if _has_goal(row, measure) and row[measure] <= GOALS[measure] else text


@click.command()
@click.option("--name", default="today", show_default=True, help="What the result is called.")
def main(name: str) -> None:
    """Segment and measure every field, and write the result, its pictures and the page."""
    pictures: list[list[Image.Image]] = []
    rows: list[dict[str, Any]] = []
    for field in list_fields(find_examples()):
        pictures.append([])
        rows += measure_field(field, pictures[-1])
    result = {**describe_machine(), "rows": rows}
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    (RESULTS / f"looks_{name}.json").write_text(text, encoding="utf-8")
    _arrange(pictures).save(RESULTS / f"looks_{name}.jpg", quality=80)
    (RESULTS / "looks.md").write_text(format_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
