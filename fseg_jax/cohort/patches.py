"""SIC on a slide: its patches embedded, once and anywhere; then, as often as seeds change and without the slide,
segmented from a file of them.

The paper pools a network's last layer. Here a patch's embedding is the mean over its grid of the encoder's
features (``card.layer``, negative values set to zero): of a CNN, its globally pooled last layer; of a vision
transformer, the mean of the final block's patch tokens, not the class token.
"""

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt

from fseg_jax.cohort.worker import FIGURE_SIDE, Report, _Clock, _level_for, check_outputs, output_paths
from fseg_jax.encoders.encoder import Encoder
from fseg_jax.errors import InputError
from fseg_jax.methods import sic
from fseg_jax.outputs.colours import palette
from fseg_jax.outputs.embeddings import (
    Embeddings,
    EmbeddingsWriter,
    load_anndata,
    open_embeddings,
    write_anndata,
)
from fseg_jax.outputs.figures import write_areas, write_overlay
from fseg_jax.outputs.geojson import write_geojson
from fseg_jax.outputs.labels import LabelWriter, label_dtype
from fseg_jax.slides.reader import Slide, read_ahead, shape_at, thumbnail
from fseg_jax.slides.tissue import Tissue, find_tissue, load_tissue, whole_slide

FORMAT = 1  # of the outputs: raised when what they hold changes
CLASSES = ("negative", "positive")
_PACKAGES = ("fseg-jax", "jax", "jaxlib", "numpy", "tensorstore")


@dataclass(frozen=True)
class PatchSettings:
    """How to lay patches over a slide; whatever here affects the embeddings is in their record.

    Patches of ``patch`` pixels at ``mpp`` µm each overlap their neighbours by the fraction ``overlap``; those
    are embedded of which at least ``min_tissue`` is tissue, which is ``"find"``, ``"all"`` or a file.
    ``dtype`` is what embeddings are stored in. ``batch`` patches go to the encoder at once and ``threads``
    decode: neither affects the result.
    """

    patch: int = 256
    overlap: float = 0.5
    mpp: float = 0.5
    tissue: str = "find"
    min_tissue: float = 0.25
    dtype: str = "float32"
    mpp_override: float | None = None
    batch: int = 8
    threads: int = 2


@dataclass(frozen=True)
class SeedSettings:
    """How to segment embedded patches from seeds: ``methods.sic`` says what each does.

    ``classes`` are the seeds' names, the negative one first; None: those of the seeds' file, or ``negative``
    and ``positive``.
    """

    classes: tuple[str, ...] | None = None
    metric: str = "f1"
    distance: str = "euclidean"
    hard: bool = False
    smooth: bool = False
    seed: int = 0


def embedding_paths(name: str, out: Path) -> list[Path]:
    """Everything that ``embed_slide`` may write for a slide of this name, its record first."""
    return [
        out / f"{name}{suffix}" for suffix in (".embeddings.json", ".embeddings.zarr", ".embeddings.h5ad")
    ]


def embed_slide(
    slide: Slide,
    out: Path,
    encoder: Encoder,
    settings: PatchSettings | None = None,
    *,
    anndata: bool = False,
    overwrite: bool = False,
    report: Report = lambda phase, done, total: None,
) -> dict[str, Any]:
    """Embed a slide's patches, and write them and all that seeding needs of the slide to a folder.

    Writes ``out/NAME.embeddings.zarr``, with ``anndata`` also ``.h5ad``, and last ``.json``, whose content it
    returns. Raises ``InputError``, with nothing written, for anything wrong with what was given.
    """
    settings = settings or PatchSettings()
    card = encoder.card
    patch, mpp = settings.patch, settings.mpp
    if patch < 1 or patch % card.stride:
        near = max(1, round(patch / card.stride)) * card.stride
        raise InputError(
            f"--patch {patch}: must be a multiple of {card.name}'s stride, {card.stride}: try {near}"
        )
    if not 0 <= settings.overlap < 1 or not 0 <= settings.min_tissue <= 1:
        raise InputError("--overlap must be from 0 to below 1, --min-tissue from 0 to 1")
    if anndata:
        load_anndata()
    check_outputs(f"{slide.name}.embeddings", out, overwrite)
    clock = _Clock()
    height, width = shape_at(slide, mpp)
    step = max(1, round(patch * (1 - settings.overlap)))
    rows, columns = (1 + max(0, -(-(size - patch) // step)) for size in (height, width))
    tissue = _tissue(slide, settings.tissue)
    share = tissue_share(tissue, rows, columns, step * mpp, patch * mpp)
    grid = np.argwhere((share >= settings.min_tissue) & (share > 0)).astype(np.int32)
    if not len(grid):
        raise InputError(
            f"{slide.path}: no patch of {patch} pixels has {settings.min_tissue:.0%} of tissue; lower "
            "--min-tissue, --no-tissue embeds everything, --tissue FILE says where it is"
        )
    scale = mpp / slide.mpp
    provenance = {
        "format": FORMAT,
        "method": "SIC (Seeded iterative clustering, LMRL workshop 2022): patch embeddings",
        "versions": {name: version(name) for name in _PACKAGES},
        "device": jax.devices()[0].device_kind,
        "slide": {
            "path": str(slide.path),
            "format": slide.format,
            "height": slide.height,
            "width": slide.width,
            "mpp": slide.mpp,
        },
        "encoder": {**asdict(card), "pooling": "mean over the grid"},
        "parameters": {
            **{k: v for k, v in asdict(settings).items() if k not in ("batch", "threads")},
            "step": step,
            "side_level0": patch * scale,
        },
        "height": height,
        "width": width,
        "tissue_mpp": tissue.mpp,
        "patches": len(grid),
    }
    picture, _ = thumbnail(slide, FIGURE_SIDE)
    clock.lap("tissue")
    with _partial(slide.name, out) as folder:
        writer = EmbeddingsWriter(
            folder / f"{slide.name}.embeddings.zarr",
            card.channels,
            centers=(grid * step + patch / 2) * scale,
            grid=grid,
            tissue=tissue.mask,
            thumbnail=picture,
            provenance=provenance,
            dtype=settings.dtype,
        )
        for part in _embed(slide, encoder, grid * step, settings, report):
            writer.append(part)
        writer.close()
        clock.lap("embedding")
        if anndata:
            embedded = open_embeddings(folder / f"{slide.name}.embeddings.zarr")
            write_anndata(folder / f"{slide.name}.embeddings.h5ad", embedded, slide.name)
            clock.lap("anndata")
        rate = round(len(grid) / clock.laps["embedding"], 2)
        record = {**provenance, "seconds": clock.laps, "patches_per_second": rate, "finished": _now()}
        return _finish(folder, record, embedding_paths(slide.name, out))


def tissue_share(
    tissue: Tissue, rows: int, columns: int, step: float, side: float
) -> Float[np.ndarray, "rows columns"]:
    """Say how much of each patch is tissue, 0…1, for squares of ``side`` µm every ``step`` µm."""
    # The area of tissue above and to the left of every mask corner; between corners it is linear.
    table = np.zeros((tissue.mask.shape[0] + 1, tissue.mask.shape[1] + 1))
    table[1:, 1:] = tissue.mask.cumsum(0).cumsum(1)

    def at(positions: np.ndarray, values: np.ndarray) -> np.ndarray:
        p = np.clip(positions / tissue.mpp, 0, len(values) - 1)
        low = np.minimum(p.astype(int), len(values) - 2)
        return values[low] + (p - low)[:, None] * (values[low + 1] - values[low])

    def between(n: int, values: np.ndarray) -> np.ndarray:
        begin = np.arange(n) * step
        return at(begin + side, values) - at(begin, values)

    return between(columns, between(rows, table).T).T * (tissue.mpp / side) ** 2


def _tissue(slide: Slide, how: str) -> Tissue:
    if how == "find":
        return find_tissue(slide)
    return whole_slide(slide) if how == "all" else load_tissue(how, slide)


@jax.jit
def _pool(features: Float[jax.Array, "b h w c"]) -> Float[jax.Array, "b c"]:
    return jnp.mean(features.astype(jnp.float32), axis=(1, 2))


def _embed(
    slide: Slide, encoder: Encoder, corners: Int[np.ndarray, "n 2"], settings: PatchSettings, report: Report
) -> Iterator[Float[np.ndarray, "m c"]]:
    """Embed patches, read ahead in threads, in batches of one shape, the last padded with blank ones."""
    side, n = settings.patch, len(corners)
    boxes = ((int(y), int(x), side, side) for y, x in corners)
    images = read_ahead(slide, boxes, settings.mpp, settings.threads)
    report("embedding", 0, n)
    try:
        for start in range(0, n, settings.batch):
            m = min(settings.batch, n - start)
            batch = np.full((settings.batch, side, side, 3), 255, np.uint8)
            for i in range(m):
                batch[i] = next(images)
            X = np.asarray(_pool(encoder(jnp.asarray(batch))))[:m]
            if not np.isfinite(X).all():
                y, x = corners[start + int(np.argmin(np.isfinite(X).all(1)))]
                raise InputError(
                    f"{slide.path}: the features of the encoder {encoder.card.name!r} hold a NaN or an infinity "
                    f"in the patch at y = {y}, x = {x} (at {settings.mpp:g} µm per pixel)"
                )
            yield X
            report("embedding", start + m, n)
    finally:
        images.close()  # type: ignore[attr-defined]


def seed_slide(
    out: Path,
    seeds: Path,
    settings: SeedSettings | None = None,
    *,
    slide: str | None = None,
    metric: Callable | None = None,
    anndata: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Segment a slide embedded in a folder from a file of seeds, and write all outputs there.

    ``slide`` is its name where the folder holds several; ``metric`` any callable, instead of the one that
    ``settings`` names. Writes ``out/NAME.sic.ome.zarr`` (a label a class, from 1 on: background has no
    patch or no tissue), ``.geojson``, ``.png``, ``.csv``, with ``anndata`` also ``.h5ad``, and last ``.json``,
    whose content it returns. Raises ``InputError``, with nothing written, for anything wrong with what was
    given.
    """
    settings = settings or SeedSettings()
    if settings.metric not in sic.METRICS:
        raise InputError(f"--metric {settings.metric}: choose {', '.join(sic.METRICS)}")
    if anndata:
        load_anndata()
    name = _embedded(out, slide)
    embedded = open_embeddings(out / f"{name}.embeddings.zarr")
    made = embedded.provenance
    points, given, names = read_seeds(seeds, settings.classes)
    size = (made["slide"]["height"], made["slide"]["width"])
    y, overruled = seeds_on_patches(points, given, embedded, size, seeds)
    check_outputs(f"{name}.sic", out, overwrite)
    clock = _Clock()
    k = len(names)
    prepared = sic.prepare(embedded.read(), distance=settings.distance)
    clock.lap("load")
    result = sic.fit(
        prepared.X,
        y,
        classes=k,
        key=jax.random.key(settings.seed),
        metric=metric or sic.METRICS[settings.metric],
        hard=settings.hard,
        soft=True,  # decides where the patches over a pixel are at a tie
        neighbours=sic.grid_neighbours(embedded.grid) if settings.smooth else None,
    )
    labels, soft = np.asarray(result.labels), np.asarray(result.soft)
    clock.lap("clustering")
    provenance = {
        "format": FORMAT,
        "method": "SIC (Seeded iterative clustering, LMRL workshop 2022)",
        "versions": {package: version(package) for package in _PACKAGES},
        "device": jax.devices()[0].device_kind,
        "slide": made["slide"],
        "encoder": made["encoder"],
        "embeddings": made["parameters"] | {"patches": made["patches"], "height": made["height"]},
        "seeds": {
            "path": str(seeds),
            "sha256": hashlib.sha256(seeds.read_bytes()).hexdigest(),
            "points": {c: int((given == j).sum()) for j, c in enumerate(names)},
            "patches": {c: int((y == j).sum()) for j, c in enumerate(names)},
            "overruled": overruled,
        },
        "parameters": {
            **asdict(settings),
            "classes": list(names),
            "metric": settings.metric if metric is None else getattr(metric, "__name__", repr(metric)),
            "coordinates": prepared.X.shape[1],
            "variance_kept": round(prepared.kept, 4),
        },
    }
    with _partial(f"{name}.sic", out) as folder:
        stem = f"{name}.sic"
        path, mpp, colours = folder / f"{stem}.ome.zarr", made["parameters"]["mpp"], palette(k)
        shape = (made["height"], made["width"])
        writer = LabelWriter(path, shape, mpp, k, names=names, colours=colours, provenance=provenance)
        for part in vote(embedded, labels, soft):
            writer.append(part)
        pixels = writer.close()
        outlines = write_geojson(
            folder / f"{stem}.geojson", path, slide_mpp=made["slide"]["mpp"], names=names, colours=colours
        )
        write_areas(folder / f"{stem}.csv", names, pixels, mpp, colours=colours)
        areas = pixels[1:] * mpp**2 * 1e-6
        picture = embedded.thumbnail
        write_overlay(
            folder / f"{stem}.png",
            picture,
            _level_for(path, picture.shape[0]),
            names=names,
            colours=colours,
            areas_mm2=areas.tolist(),
            mpp=made["slide"]["mpp"] * made["slide"]["width"] / picture.shape[1],
            title=f"{name} · SIC · {made['encoder']['name']} · {len(given)} seeds",
        )
        if anndata:
            obs = {"sic": np.array(names)[labels], **{f"sic_{c}": soft[:, j] for j, c in enumerate(names)}}
            write_anndata(folder / f"{stem}.h5ad", embedded, name, obs)
        clock.lap("outputs")
        record = {
            **provenance,
            "score": result.score,
            "scores": list(result.scores),
            "iterations": result.iterations,
            "patches": {c: int((labels == j).sum()) for j, c in enumerate(names)},
            "areas_mm2": {c: round(float(a), 6) for c, a in zip(names, areas, strict=True)},
            "outlines": outlines,
            "seconds": clock.laps,
            "finished": _now(),
        }
        paths = output_paths(stem, out)
        return _finish(folder, record, [*paths, out / f"{stem}.h5ad"])
