"""SIC on a slide whose patches are embedded: a file of seeds in, the slide segmented out.

Nothing here needs the slide itself. ``seed_file`` reads seeds, ``voting`` makes the mask.
"""

import logging
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

from fseg_jax.errors import InputError
from fseg_jax.files.kinds import suggest_names
from fseg_jax.files.partial_folders import partial_folder, recover_folder
from fseg_jax.methods import sic
from fseg_jax.numerics.pca import reduce_channels
from fseg_jax.outputs.anndata_export import import_anndata, make_anndata_keys, try_write_anndata
from fseg_jax.outputs.areas import write_areas
from fseg_jax.outputs.colours import make_palette
from fseg_jax.outputs.embeddings import Embeddings, list_embedded_slides, open_embeddings
from fseg_jax.outputs.figures import write_overlay
from fseg_jax.outputs.geojson import write_geojson
from fseg_jax.outputs.labels import LabelWriter, read_level_for
from fseg_jax.pipeline.record import Clock, check_outputs, finish, made_with
from fseg_jax.pipeline.seed_file import read_seeds
from fseg_jax.pipeline.segment import output_paths
from fseg_jax.pipeline.voting import vote
from fseg_jax.slides.identity import identify

_log = logging.getLogger(__name__)

FORMAT = 1  # of the outputs: raised when what they hold changes


@dataclass(frozen=True)
class SeedSettings:
    """How to segment embedded patches from seeds: ``methods.sic`` says what each does.

    ``classes`` are the seeds' names, the negative one first; None: those of the seeds' file.
    """

    classes: tuple[str, ...] | None = None
    metric: str = "f1"
    distance: str = "euclidean"
    hard: bool = False
    smooth: bool = False
    seed: int = 0


def seed_slide(
    out: str | Path,
    seeds: str | Path,
    settings: SeedSettings | None = None,
    *,
    slide: str | None = None,
    metric: sic.Metric | None = None,
    anndata: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Segment a slide embedded in a folder from a file of seeds, and write all outputs there.

    ``slide`` is its name where the folder holds several; ``metric`` any callable, instead of the one that
    ``settings`` names. Writes ``out/NAME.sic.ome.zarr`` (a label a class, from 1 on: background has no
    patch or no tissue), ``.geojson``, ``.png``, ``.csv``, with ``anndata`` also ``.h5ad``, and last
    ``.json``, whose content it returns. Raises ``InputError``, with nothing written, for anything wrong with
    what was given; and where the ``.h5ad`` cannot be made, with all else written.
    """
    settings = settings or SeedSettings()
    out, seeds = Path(out), Path(seeds)
    if settings.metric not in sic.METRICS:
        raise InputError(f"--metric {settings.metric}: choose {', '.join(sic.METRICS)}")
    if anndata:
        import_anndata()
    recover_folder(out)
    name = _embedded(out, slide)
    embedded = open_embeddings(out / f"{name}.embeddings.zarr")
    made = embedded.provenance
    _warn_of_another(made["slide"])
    points, point_labels, names, sha256 = read_seeds(seeds, settings.classes)
    size = (made["slide"]["height"], made["slide"]["width"])
    y, overruled = assign_seeds(points, point_labels, embedded, size, seeds)
    stem = f"{name}.sic"
    paths = [*output_paths(stem, out), out / f"{stem}.h5ad"]
    check_outputs(paths, out, overwrite)
    clock = Clock()
    k = len(names)
    prepared = reduce_channels(embedded.read(), distance=settings.distance)
    clock.lap("load")
    result = sic.fit(
        prepared.X,
        y,
        classes=k,
        key=jax.random.key(settings.seed),
        metric=metric or sic.METRICS[settings.metric],
        hard=settings.hard,
        soft=True,  # decides where the patches over a pixel are at a tie
        neighbours=sic.find_neighbours(embedded.grid) if settings.smooth else None,
    )
    labels, soft = np.asarray(result.labels), np.asarray(result.soft)
    clock.lap("clustering")
    provenance = {
        "format": FORMAT,
        "method": "SIC (Seeded iterative clustering, LMRL workshop 2022)",
        **made_with().to_json(),
        "slide": made["slide"],
        "encoder": made["encoder"],
        "embeddings": made["parameters"] | {"patches": made["patches"], "height": made["height"]},
        "seeds": {
            "path": str(seeds),
            "sha256": sha256,
            "points": {c: int((point_labels == j).sum()) for j, c in enumerate(names)},
            "patches": {c: int((y == j).sum()) for j, c in enumerate(names)},
            "overruled": overruled,
        },
        "parameters": {
            **asdict(settings),
            "classes": list(names),
            "metric": settings.metric if metric is None else getattr(metric, "__name__", repr(metric)),
            "coordinates": prepared.X.shape[1],
            "variance_kept": round(prepared.variance_kept, 4),
        },
    }
    with partial_folder(stem, out) as folder:
        path, mpp, colours = folder / f"{stem}.ome.zarr", made["parameters"]["mpp"], make_palette(k)
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
            read_level_for(path, picture.shape[0]),
            names=names,
            colours=colours,
            areas_mm2=areas.tolist(),
            mpp=made["slide"]["mpp"] * made["slide"]["width"] / picture.shape[1],
            title=f"{name} · SIC · {made['encoder']['name']} · {len(points)} seeds",
        )
        lost = None
        if anndata:
            columns = make_anndata_keys([f"sic_{c}" for c in names])
            obs = {"sic": np.array(names)[labels], **dict(zip(columns, soft.T, strict=True))}
            uns = {"sic": {"classes": np.array(names), "columns": np.array(columns)}}
            lost = try_write_anndata(folder / f"{stem}.h5ad", out, embedded, name, obs, uns)
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
        }
        record = finish(folder, record, paths)
    if lost:
        raise lost
    return record


def _warn_of_another(slide: dict[str, Any]) -> None:
    """Say so where another file lies now where the slide was that was embedded."""
    with suppress(InputError):
        if slide.get("identity") not in (None, identify(slide["path"])):
            _log.warning(
                "%s: is another slide than the one that was embedded, which is what is segmented here; fseg "
                "embed it again",
                slide["path"],
            )


def _embedded(out: Path, slide: str | None) -> str:
    """The name of the slide embedded in a folder, or of the one that is asked for."""
    names = list_embedded_slides(out)
    if not names:
        raise InputError(f"{out}: holds no embedded slide; make one with fseg embed SLIDE -o {out}")
    if slide is None and len(names) > 1:
        raise InputError(f"{out}: holds {', '.join(names)}; choose one with --slide")
    if slide is not None and slide not in names:
        near = suggest_names(slide, names)
        raise InputError(f"{out}: holds no embedded slide {slide!r}; {near}it holds {', '.join(names)}")
    return slide or names[0]


def assign_seeds(
    points: Float[np.ndarray, "m 2"],
    labels: Int[np.ndarray, " m"],
    embedded: Embeddings,
    size: tuple[int, int],
    path: Path,
) -> tuple[Int[np.ndarray, " n"], int]:
    """Assign each seed to the patch around it whose centre is nearest.

    A patch with seeds of several classes takes the class of most of them, in a tie that of the last one.

    Args:
        points: (x, y) of the seeds in level-0 pixels.
        labels: The numbers of their classes.
        embedded: The patches.
        size: The slide's height and width in level-0 pixels.
        path: The file of the seeds, for errors.

    Returns:
        The patches' classes, −1 for none, and how many seeds were overruled.

    Raises:
        InputError: A seed is outside the slide, or on no patch.
    """
    side = embedded.provenance["parameters"]["side_level0"]
    for x, y in points:
        if not (0 <= x < size[1] and 0 <= y < size[0]):
            raise InputError(
                f"{path}: the seed at x = {x:g}, y = {y:g} is outside the slide, {size[1]} × {size[0]} pixels"
            )
    near = cKDTree(embedded.centers).query_ball_point(points[:, ::-1], side / 2 * 1.001, p=np.inf)
    placed: dict[int, list[int]] = {}
    for (x, y), j, patches in zip(points, labels, near, strict=True):
        rows = np.sort(np.asarray(patches, np.int64))
        away = np.abs(embedded.centers[rows] - (y, x))
        inside = away.max(1, initial=0) <= side / 2
        if not inside.any():
            raise InputError(
                f"{path}: the seed at x = {x:g}, y = {y:g} is on no embedded patch: too little tissue"
            )
        nearest = int(rows[np.argmin(np.where(inside, (away**2).sum(1), np.inf))])
        placed.setdefault(nearest, []).append(int(j))
    classes = np.full(len(embedded.centers), -1, np.int32)
    overruled = 0
    for patch, seeds in placed.items():
        most = max(seeds.count(j) for j in seeds)
        classes[patch] = next(j for j in reversed(seeds) if seeds.count(j) == most)
        overruled += len(seeds) - seeds.count(int(classes[patch]))
    return classes, overruled
