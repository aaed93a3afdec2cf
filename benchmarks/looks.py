"""What do segmentations look like? How much of one is rings, specks and bands in place of tissue.

    FSEG_DATA=... python -m benchmarks.looks [--name NAME]

Every example slide, the picture of ``fseg demo`` and the regions of BCSS are segmented by ``he-small``: into
eight clusters of their own and into the 16 of the shipped codebook, with H fixed and with W and H free. Of
the labels at about 4 µm a pixel:

- *ring*: the share of the tissue in clusters that hug its border: more than half of the cluster lies within
  32 µm of the border, and at least twice the share that all tissue has there.
- *specks*: the share of the connected regions that are smaller than 500 µm².
- *regions*: connected regions in a mm² of tissue.
- *bands*: the share of the tissue that is thinner than 48 µm: what an opening of its own cluster by a disc of
  24 µm radius takes away.

The frame of a picture is no border of tissue. A result is kept as ``results/looks_NAME.json`` (NAME is
``today`` unless given) with a picture of each segmentation in ``results/looks_NAME.jpg``; the page
``results/looks.md`` sets all that are kept side by side.
"""

import json
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import skimage.measure
from PIL import Image, ImageDraw
from scipy import ndimage

from benchmarks.examples import examples
from benchmarks.measure import RESULTS, machine
from fseg_jax.cli.segment import DEMO_MPP
from fseg_jax.codebook import SHIPPED, Codebook
from fseg_jax.encoders.load import load_encoder
from fseg_jax.outputs.colours import make_palette
from fseg_jax.outputs.figures import tint
from fseg_jax.outputs.labels import open_labels
from fseg_jax.pipeline.plan import Settings
from fseg_jax.pipeline.segment import segment_slide
from fseg_jax.slides.reader import open_slide, read_thumbnail

MPP = 4.0  # µm a pixel of the labels that are measured
BORDER, TIMES = 32.0, 2.0  # µm; how often the tissue's own share
SPECK = 500.0  # µm²
OPENING = 24.0  # µm
OWN, SHIPPED_K = 8, 16
PANEL = 520  # pixels of a picture's longer side


class Looks(NamedTuple):
    """What labels look like; every figure but ``regions`` is a share of 1."""

    ring: float
    specks: float
    regions: float
    bands: float


class Field(NamedTuple):
    """An image to segment: its µm per pixel where the file does not say, and the resolution to work at."""

    name: str
    path: Path
    mpp_override: float | None = None
    mpp: float | None = None


def looks_of(labels: np.ndarray, mpp: float) -> Looks:
    """Measure labels, unsigned (h, w) with 0 for background, of ``mpp`` µm a pixel."""
    tissue = labels > 0
    size = np.bincount(labels.ravel())
    near = tissue & (_depth(tissue, mpp) <= BORDER)
    inside = np.bincount(labels[near], minlength=len(size)) / np.maximum(size, 1)
    hugging = (inside > 0.5) & (inside >= TIMES * near.sum() / max(tissue.sum(), 1))
    hugging[0] = False
    regions = skimage.measure.label(labels, background=0, connectivity=1)
    areas = np.bincount(regions.ravel())[1:] * mpp**2
    total = max(int(tissue.sum()), 1)
    return Looks(
        ring=float(size[hugging].sum() / total),
        specks=float((areas < SPECK).mean()) if len(areas) else 0.0,
        regions=len(areas) / (total * mpp**2 * 1e-6),
        bands=float(sum(_thin(labels == j, mpp) for j in np.flatnonzero(size[1:]) + 1) / total),
    )


def _depth(mask: np.ndarray, mpp: float) -> np.ndarray:
    """How deep in a mask each pixel's centre lies, µm; the frame of the picture is no end of it."""
    if mask.all():
        return np.full(mask.shape, np.inf)
    return np.asarray((ndimage.distance_transform_edt(mask) - 0.5) * mpp)


def _thin(mask: np.ndarray, mpp: float) -> int:
    """How many pixels an opening by a disc takes away from a mask."""
    core = _depth(mask, mpp) > OPENING
    opened = mask & (_depth(~core, mpp) <= OPENING) if core.any() else core
    return int(mask.sum() - opened.sum())


def fields(data: Path) -> Iterator[Field]:
    """The example slides, BCSS's regions, and the demo's picture."""
    slides = data / "slides"
    yield Field("CMU-1", slides / "CMU-1-Small-Region.svs")
    yield Field("TCGA, at 0.25", slides / "TCGA-CR-7395-01A-01-TS1.svs", 0.25)
    yield Field("TCGA, at 1.0", slides / "TCGA-CR-7395-01A-01-TS1.svs", 1.0)
    yield Field("OS-1", slides / "OS-1-detail.ome.tif")
    for path in sorted((data / "bcss_tumour" / "images").glob("*.jpg")):
        yield Field(f"BCSS {path.stem}", path, 0.25)
    with resources.as_file(resources.files("skimage.data") / "ihc.png") as image:
        yield Field("the demo's", image, DEMO_MPP, DEMO_MPP)


def measured(field: Field, picture: list[Image.Image]) -> Iterator[dict[str, Any]]:
    """Segment a field in each way and measure it; what it looks like is added to ``picture``."""
    encoder = load_encoder("he-small")
    for codebook in (None, Codebook.load(SHIPPED, SHIPPED_K)):
        for mode in ("fixed", "assign"):
            settings = Settings(k=OWN, mode=mode, mpp=field.mpp, mpp_override=field.mpp_override)
            with tempfile.TemporaryDirectory() as folder, open_slide(field.path, field.mpp_override) as slide:
                if not picture:
                    picture.append(_panel(read_thumbnail(slide, PANEL)[0], None, field.name))
                segment_slide(slide, Path(folder), encoder, codebook, settings)
                pyramid = open_labels(Path(folder) / f"{slide.name}.ome.zarr")
                level = int(np.argmin(np.abs(np.log(np.array(pyramid.mpp) / MPP))))
                labels = pyramid.read(level)
                image = read_thumbnail(slide, PANEL)[0]
            looks = looks_of(labels, pyramid.mpp[level])
            clusters = f"its own {OWN}" if codebook is None else f"shipped {SHIPPED_K}"
            told = ", ".join(f"{name} {value:.3g}" for name, value in looks._asdict().items())
            print(f"{field.name}, {clusters}, {mode}: {told}", flush=True)
            row = {"field": field.name, "clusters": clusters, "mode": mode, **looks._asdict()}
            picture.append(_panel(image, labels, f"{clusters}, {mode}: ring {looks.ring:.2f}"))
            yield row


def _panel(image: np.ndarray, labels: np.ndarray | None, caption: str) -> Image.Image:
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


def _sheet(pictures: list[list[Image.Image]]) -> Image.Image:
    """Panels side by side, a row a field, each row as high as its field."""
    heights = [_filled(row) + 12 for row in pictures]
    sheet = Image.new("RGB", (max(map(len, pictures)) * (PANEL + 8), sum(heights)), "white")
    top = 0
    for row, height in zip(pictures, heights, strict=True):
        for column, panel in enumerate(row):
            sheet.paste(panel.crop((0, 0, PANEL, height - 12)), (column * (PANEL + 8), top))
        top += height
    return sheet


def _filled(row: list[Image.Image]) -> int:
    """The height of what a row's panels show; below it they are white."""
    dark = [np.flatnonzero((np.asarray(panel) < 250).any((1, 2))) for panel in row]
    return 1 + max(int(lines[-1]) for lines in dark)


def page() -> str:
    """All results that are kept, side by side, as Markdown."""
    kept = {path.stem.removeprefix("looks_"): json.loads(path.read_text("utf-8")) for path in _kept()}
    lines = [
        "# What segmentations look like",
        "",
        "Made by `python -m benchmarks.looks` (`FSEG_DATA` names the folder of examples), which says what is "
        "measured and how. To reach: ring ≤ .03, specks ≤ .20, regions ≤ 150 a mm².",
    ]
    for name, result in kept.items():
        lines += [
            "",
            f"- *{name}*: commit {result['commit']}, {result['measured']}; [pictures](looks_{name}.jpg)",
        ]
    head = ["image", "clusters", "mode", *(f"{m}, {name}" for m in Looks._fields for name in kept)]
    lines += ["", "| " + " | ".join(head) + " |", "| --- | --- | --- |" + " ---: |" * (len(head) - 3)]
    tables = [{(r["field"], r["clusters"], r["mode"]): r for r in result["rows"]} for result in kept.values()]
    for key in dict.fromkeys(key for table in tables for key in table):
        cells = [_cell(table.get(key), m) for m in Looks._fields for table in tables]
        lines.append("| " + " | ".join([*key, *cells]) + " |")
    return "\n".join(lines) + "\n"


def _kept() -> list[Path]:
    """The results, the oldest first."""
    found = RESULTS.glob("looks_*.json")
    return sorted(found, key=lambda path: json.loads(path.read_text("utf-8"))["measured"])


def _cell(row: dict[str, Any] | None, measure: str) -> str:
    if row is None:
        return ""
    return f"{row[measure]:.0f}" if measure == "regions" else f"{row[measure]:.2f}"


@click.command()
@click.option("--name", default="today", show_default=True, help="What the result is called.")
def main(name: str) -> None:
    pictures: list[list[Image.Image]] = []
    rows: list[dict[str, Any]] = []
    for field in fields(examples()):
        pictures.append([])
        rows += measured(field, pictures[-1])
    result = {**machine(), "rows": rows}
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    (RESULTS / f"looks_{name}.json").write_text(text, encoding="utf-8")
    _sheet(pictures).save(RESULTS / f"looks_{name}.jpg", quality=80)
    (RESULTS / "looks.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
