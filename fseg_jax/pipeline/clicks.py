"""Segment a slide whose patches are embedded from a file of seeds, by SIC.

The slide itself is not needed. ``seed_file`` reads seeds, ``voting`` makes the mask.
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

from fseg_jax.errors import InputError
from fseg_jax.files.kinds import suggest_names
from fseg_jax.files.partial_folders import open_partial_folder, recover_folder
from fseg_jax.methods import sic
from fseg_jax.numerics.pca import Distance, reduce_channels
from fseg_jax.outputs.anndata_export import (
    import_anndata,
    list_category_colours,
    make_anndata_keys,
    try_write_anndata,
)
from fseg_jax.outputs.colours import format_hex, make_palette
from fseg_jax.outputs.embeddings import list_embedded_slides, open_embeddings
from fseg_jax.outputs.form import DEFAULT_FORM, OutputForm
from fseg_jax.pipeline.patch_map import write_patch_map
from fseg_jax.pipeline.patch_records import (
    SeedFacts,
    SeedParameters,
    SeedProvenance,
    SeedRecord,
    read_provenance,
)
from fseg_jax.pipeline.publish import Clock, Json, check_outputs, finish
from fseg_jax.pipeline.record import made_with
from fseg_jax.pipeline.seed_file import read_seeds
from fseg_jax.pipeline.segment import output_paths
from fseg_jax.pipeline.slide_facts import SlideFacts
from fseg_jax.slides.identity import identify

_log = logging.getLogger(__name__)

FORMAT = 3  # of the outputs: raised when what they hold changes
METHOD = "SIC (Seeded iterative clustering, LMRL workshop 2022)"


@dataclass(frozen=True)
class SeedSettings:
    """How to segment embedded patches from seeds (``methods.sic``).

    Attributes:
        classes: Names of the classes, the negative one first; None: those of the seeds' file.
        metric: Agreement with the seeds that the iteration maximizes: a name in ``sic.METRICS``.
        distance: Distance between embeddings.
        hard: Whether seeds keep their class.
        smooth: Whether the labels of neighbouring patches are smoothed.
        seed: Random seed.
    """

    classes: tuple[str, ...] | None = None
    metric: str = "f1"
    distance: Distance = "euclidean"
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
    form: OutputForm = DEFAULT_FORM,
    overwrite: bool = False,
) -> Json:
    """Segment a slide embedded in a folder from a file of seeds, and write all outputs there.

    Writes ``out/NAME.sic.ome.zarr`` (class j has the label j + 1; background has no patch or no tissue),
    ``.geojson``, ``.png``, ``.csv``, if wanted ``.h5ad``, and, last, ``.json``.

    Args:
        out: The folder that holds the embeddings.
        seeds: The file of seeds.
        settings: How to segment.
        slide: Name of the slide; may be left out where the folder holds only one.
        metric: Score of the seeds, in place of the one that the settings name.
        anndata: Whether to write the ``.h5ad`` too.
        form: How outputs are written.
        overwrite: Whether outputs that exist are replaced.

    Returns:
        What the record ``NAME.sic.json`` holds.

    Raises:
        InputError: Something that was given is wrong; nothing is written then. Or the ``.h5ad`` cannot be
            written; everything else is then.
    """
    settings = settings or SeedSettings()
    out, seeds = Path(out), Path(seeds)
    if settings.metric not in sic.METRICS:
        raise InputError(f"--metric {settings.metric}: choose {', '.join(sic.METRICS)}")
    if anndata:
        import_anndata()
    recover_folder(out)
    name = choose_slide(out, slide)
    embedded = open_embeddings(out / f"{name}.embeddings.zarr")
    facts = read_provenance(embedded)
    _warn_if_replaced(facts.slide)
    points, point_labels, names, sha256 = read_seeds(seeds, settings.classes, origin=facts.slide.origin)
    side, size = facts.parameters.side_level0, (facts.slide.height, facts.slide.width)
    y, overruled = assign_seeds(points, point_labels, embedded.centers, side, size, seeds)
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
    provenance = SeedProvenance(
        format=FORMAT,
        method=METHOD,
        **vars(made_with()),
        embedded=facts,
        seeds=SeedFacts(
            path=str(seeds),
            sha256=sha256,
            points=_count_classes(point_labels, names),
            patches=_count_classes(y, names),
            overruled=overruled,
        ),
        parameters=SeedParameters(
            classes=names,
            metric=settings.metric if metric is None else getattr(metric, "__name__", repr(metric)),
            distance=settings.distance,
            hard=settings.hard,
            smooth=settings.smooth,
            seed=settings.seed,
            coordinates=prepared.X.shape[1],
            variance_kept=round(prepared.variance_kept, 4),
        ),
    )
    with open_partial_folder(stem, out) as folder:
        made = write_patch_map(
            folder,
            stem,
            embedded,
            facts,
            labels,
            soft,
            name=name,
            names=names,
            colours=make_palette(k),
            provenance=provenance.to_json(),
            title=f"{name} · SIC · {facts.encoder.card.name} · {len(points)} seeds",
            form=form,
        )
        export_error = None
        if anndata:
            columns = make_anndata_keys([f"sic_{c}" for c in names])
            of_patches = np.array(names)[labels]
            obs = {"sic": of_patches, **dict(zip(columns, soft.T, strict=True))}
            hexes = dict(zip(names, map(format_hex, make_palette(k)), strict=True))
            uns = {
                "sic": {"classes": np.array(names), "columns": np.array(columns)},
                "sic_colors": list_category_colours(of_patches, hexes),
            }
            export_error = try_write_anndata(folder / f"{stem}.h5ad", out, embedded, name, obs, uns)
        clock.lap("outputs")
        record = SeedRecord(
            provenance=provenance,
            score=result.score,
            scores=result.scores,
            iterations=result.iterations,
            form=form,
            patches=_count_classes(labels, names),
            areas_mm2=made.areas_mm2,
            area_step_mm2=made.step_mm2,
            outlines=made.outlines,
            seconds=clock.laps,
        )
        content = finish(folder, record.to_json(), paths)
    if export_error:
        raise export_error
    return content


def _count_classes(labels: Int[np.ndarray, " n"], names: Sequence[str]) -> dict[str, int]:
    """Count how often each class occurs, by name."""
    return {name: int((labels == j).sum()) for j, name in enumerate(names)}


def _warn_if_replaced(slide: SlideFacts) -> None:
    """Warn where the path of the slide that was embedded holds another slide now."""
    with suppress(InputError):
        if slide.identity not in (None, identify(slide.path)):
            _log.warning(
                "%s: is another slide than the one that was embedded, which is what is segmented here; fseg "
                "embed it again",
                slide.path,
            )


def choose_slide(out: Path, slide: str | None) -> str:
    """Choose the embedded slide of a folder by its name, or the only one.

    Raises:
        InputError: The folder holds none, not this one, or several to choose from.
    """
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
    centers: Float[np.ndarray, "n 2"],
    side: float,
    size: tuple[int, int],
    path: Path,
) -> tuple[Int[np.ndarray, " n"], int]:
    """Assign each seed to the patch around it whose centre is nearest.

    A patch with seeds of several classes takes the class of most of them, in a tie that of the last one.

    Args:
        points: (x, y) of the seeds in level-0 pixels.
        labels: The numbers of their classes.
        centers: (y, x) of the patches' centres in level-0 pixels.
        side: Side of a patch in level-0 pixels.
        size: The slide's height and width in level-0 pixels.
        path: The file of the seeds, for errors.

    Returns:
        The patches' classes, −1 for none, and how many seeds were overruled.

    Raises:
        InputError: A seed is outside the slide, or on no patch.
    """
    height, width = size
    for x, y in points:
        if not (0 <= x < width and 0 <= y < height):
            raise InputError(
                f"{path}: the seed at x = {x:g}, y = {y:g} is outside the slide, {width} × {height} pixels"
            )
    near = cKDTree(centers).query_ball_point(points[:, ::-1], side / 2 * 1.001, p=np.inf)
    seeds_by_patch: dict[int, list[int]] = {}
    for (x, y), j, patches in zip(points, labels, near, strict=True):
        rows = np.sort(np.asarray(patches, np.int64))
        away = np.abs(centers[rows] - (y, x))
        inside = away.max(1, initial=0) <= side / 2
        if not inside.any():
            raise InputError(
                f"{path}: the seed at x = {x:g}, y = {y:g} is on no embedded patch: too little tissue"
            )
        nearest = int(rows[np.argmin(np.where(inside, (away**2).sum(1), np.inf))])
        seeds_by_patch.setdefault(nearest, []).append(int(j))
    classes = np.full(len(centers), -1, np.int32)
    overruled = 0
    for patch, seeds in seeds_by_patch.items():
        most = max(seeds.count(j) for j in seeds)
        classes[patch] = next(j for j in reversed(seeds) if seeds.count(j) == most)
        overruled += len(seeds) - seeds.count(int(classes[patch]))
    return classes, overruled
