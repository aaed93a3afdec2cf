"""Results that are there as other programs read them: SpatialData, TissUUmaps, HDF5, parquet, tables."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import shapely
from PIL import Image

from fseg_jax.errors import InputError
from fseg_jax.files.exchange import exchange_outputs
from fseg_jax.files.kinds import suggest_names
from fseg_jax.files.partial_folders import open_partial_folder
from fseg_jax.outputs import statistics
from fseg_jax.outputs.csv_table import write_csv
from fseg_jax.outputs.embeddings import Embeddings, open_embeddings
from fseg_jax.outputs.geojson import choose_traced_level, describe_classes
from fseg_jax.outputs.labels import LabelPyramid, open_labels
from fseg_jax.outputs.slide_image import ReadImage, read_slide_image
from fseg_jax.outputs.spatialdata_export import import_spatialdata, write_spatialdata
from fseg_jax.outputs.statistics import measure_slide
from fseg_jax.outputs.tissuumaps import describe_project, write_points, write_regions
from fseg_jax.pipeline.features import open_features
from fseg_jax.pipeline.patch_export import (
    tabulate_patches,
    tabulate_tokens,
    write_table_h5,
    write_table_parquet,
)
from fseg_jax.pipeline.publish import check_outputs
from fseg_jax.pipeline.slide_facts import SlideFacts
from fseg_jax.pipeline.tokens import KEPT_SUFFIX

STATISTICS = ("clusters.csv", "pairs.csv", "regions.csv", "neighbours.png")
_LABELS = ".ome.zarr"
_WRITERS = {".h5": write_table_h5, ".parquet": write_table_parquet}


class SegmentedSlide(NamedTuple):
    """What there is of a slide.

    Attributes:
        name: Its name.
        labels: Its labels.
        image: Its picture; None: there is none.
        embedded: Its patches; None: there are none.
    """

    name: str
    labels: LabelPyramid
    image: ReadImage | None
    embedded: Embeddings | None


def list_segmented(folder: Path) -> list[str]:
    """List the slides of a folder that have labels, those of ``fseg seed`` as ``NAME.sic``.

    Raises:
        InputError: There are none.
    """
    paths = sorted(folder.glob(f"[!.]*{_LABELS}")) if folder.is_dir() else []
    names = [path.name.removesuffix(_LABELS) for path in paths]
    if not names:
        raise InputError(f"{folder}: holds no labels; fseg segment, fseg cohort and fseg seed make them")
    return names


def choose_segmented(folder: Path, slide: str | None) -> str:
    """Choose a slide of a folder by its name, or the only one.

    Raises:
        InputError: The folder holds none, not this one, or several to choose from.
    """
    names = list_segmented(folder)
    if slide is None and len(names) > 1:
        raise InputError(
            f"{folder}: holds {', '.join(names[:5])}{' …' if names[5:] else ''}; choose with --slide"
        )
    if slide is not None and slide not in names:
        raise InputError(
            f"{folder}: holds no labels of {slide!r}; {suggest_names(slide, names)}choose another"
        )
    return slide or names[0]


def open_segmented(folder: Path, name: str) -> SegmentedSlide:
    """Open what there is of a slide.

    Raises:
        InputError: Its labels are damaged.
    """
    root = folder / f"{name}{_LABELS}"
    patches = folder / f"{name.removesuffix('.sic')}.embeddings.zarr"
    embedded = open_embeddings(patches) if patches.exists() else None
    return SegmentedSlide(name, open_labels(root), read_slide_image(root), embedded)


def export_spatialdata(folder: Path, slide: str | None, path: Path, *, overwrite: bool = False) -> None:
    """Export a slide as SpatialData (``outputs.spatialdata_export``)."""
    if path.suffix != ".zarr":
        raise InputError(f"{path}: give a name that ends in .zarr")
    import_spatialdata()
    opened = open_segmented(folder, choose_segmented(folder, slide))
    facts = _read_facts(folder, opened)
    with _replace(path, [path.name], overwrite) as part:
        write_spatialdata(
            part / path.name,
            opened.labels,
            measure_regions(opened),
            opened.image,
            opened.embedded,
            slide_mpp=facts.mpp,
            origin=facts.origin,
        )


def _read_facts(folder: Path, opened: SegmentedSlide) -> SlideFacts:
    try:
        return SlideFacts.from_json(opened.labels.provenance["slide"])
    except (LookupError, TypeError, ValueError):
        raise InputError(
            f"{folder}: the labels of {opened.name} do not say which slide they are of"
        ) from None


def measure_regions(opened: SegmentedSlide) -> statistics.RegionTable:
    """Measure the regions of a slide's clusters, at the resolution of its outlines."""
    level = choose_traced_level(opened.labels)
    image = None if opened.image is None else opened.image.image
    return statistics.tabulate_regions(opened.labels.read(level), opened.labels.mpp[level], image)


def export_statistics(
    folder: Path,
    slide: str | None,
    path: Path,
    *,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda name: None,
) -> None:
    """Write tidy tables of clusters, of pairs of them and of regions, of all slides or of one, and a plot.

    Args:
        folder: The folder of results.
        slide: The slide's name; None: all that have labels.
        path: The folder for the tables.
        overwrite: Whether tables that exist are replaced.
        progress: Called with the name of each slide that is done.
    """
    names = list_segmented(folder) if slide is None else [choose_segmented(folder, slide)]
    columns = (statistics.CLUSTER_COLUMNS, statistics.PAIR_COLUMNS, statistics.REGION_COLUMNS)
    lists = (statistics.list_cluster_rows, statistics.list_pair_rows, statistics.list_region_rows)
    tables: tuple[list[dict[str, object]], ...] = ([], [], [])
    plotted: dict[tuple[str, ...], list[statistics.SlideStatistics]] = {}
    with _replace(path / STATISTICS[0], STATISTICS, overwrite) as part:
        for name in names:
            opened = open_segmented(folder, name)
            measured = measure_slide(opened.labels, None if opened.image is None else opened.image.image)
            for rows, list_rows in zip(tables, lists, strict=True):
                rows += [{"slide_id": name, **row} for row in list_rows(measured)]
            plotted.setdefault(tuple(measured.names), []).append(measured)
            progress(name)
        for file, heads, rows in zip(STATISTICS, columns, tables, strict=False):
            write_csv(part / file, ("slide_id", *heads), rows)
        shared = max(plotted.values(), key=len)  # slides whose clusters are the same
        with np.errstate(invalid="ignore"):
            z = np.mean([np.nan_to_num(each.z) for each in shared], axis=0)
        interfaces = np.sum([each.interfaces[1:, 1:] for each in shared], axis=0)
        statistics.draw_neighbours(part / STATISTICS[3], shared[0].names, z, interfaces)


def export_patches(
    folder: Path, slide: str | None, path: Path, *, tokens: bool = False, overwrite: bool = False
) -> None:
    """Export a slide's patches, or its dense tokens, as HDF5 of TRIDENT's layout or parquet, by the suffix.

    Raises:
        InputError: There are none, or the suffix is another.
    """
    if path.suffix not in _WRITERS:
        raise InputError(f"{path}: give a name that ends in {' or '.join(_WRITERS)}")
    suffix = KEPT_SUFFIX if tokens else ".embeddings.zarr"
    names = sorted(p.name.removesuffix(suffix) for p in folder.glob(f"[!.]*{suffix}"))
    made = "fseg cohort --keep-features keeps them" if tokens else "fseg embed makes them"
    if not names or (slide is not None and slide not in names):
        what = "dense tokens" if tokens else "embedded patches"
        raise InputError(f"{folder}: holds no {what}{f' of {slide!r}' if slide else ''}; {made}")
    if slide is None and len(names) > 1:
        raise InputError(f"{folder}: holds {', '.join(names[:5])}; choose with --slide")
    source = folder / f"{slide or names[0]}{suffix}"
    table = tabulate_tokens(open_features(source)) if tokens else tabulate_patches(open_embeddings(source))
    with _replace(path, [path.name], overwrite) as part:
        _WRITERS[path.suffix](part / path.name, table)


def export_tissuumaps(folder: Path, slide: str | None, path: Path, *, overwrite: bool = False) -> None:
    """Export a slide as a project of TissUUmaps: the file, and beside it regions, points and an image.

    The image is the slide where it still lies at its path, and its picture otherwise.
    """
    if path.suffix != ".tmap":
        raise InputError(f"{path}: give a name that ends in .tmap")
    opened = open_segmented(folder, choose_segmented(folder, slide))
    facts = _read_facts(folder, opened)
    stem = path.stem
    names = [path.name, f"{stem}.regions.geojson", f"{stem}.points.csv", f"{stem}.image.png"]
    has_slide = "://" not in facts.path and Path(facts.path).exists()
    if not has_slide and opened.image is None:
        raise InputError(f"{facts.path}: is not there, and {opened.name}{_LABELS} has no picture of it")
    mpp = facts.mpp if has_slide or opened.image is None else opened.image.mpp
    shift = np.array(facts.origin[::-1], float) if has_slide else np.zeros(2)
    regions = measure_regions(opened)
    polygons = shapely.transform(regions.polygons, lambda xy: np.round(xy / mpp + shift, 1))
    points, clusters, spacing = _choose_points(opened, regions)
    classes = describe_classes(opened.labels.names, opened.labels.colours)
    with _replace(path, names, overwrite) as part:
        write_regions(part / names[1], regions.clusters, polygons, classes)
        write_points(part / names[2], points / mpp + shift, clusters, classes)
        image = os.path.relpath(facts.path, path.parent) if has_slide else names[3]
        if not has_slide and opened.image is not None:
            Image.fromarray(opened.image.image).save(part / names[3])
        text = describe_project(opened.name, image, names[1], names[2], spacing / mpp)
        (part / path.name).write_text(text, encoding="utf-8")


def _choose_points(
    opened: SegmentedSlide, regions: statistics.RegionTable
) -> tuple[np.ndarray, np.ndarray, float]:
    """Choose points (x, y) in µm, their clusters and their distance: patches, or places in the regions."""
    if opened.embedded is None:
        middles = shapely.point_on_surface(regions.polygons)
        return np.stack([shapely.get_x(middles), shapely.get_y(middles)], 1), regions.clusters, 64.0
    provenance = opened.embedded.provenance
    points = opened.embedded.centers[:, ::-1] * provenance["slide"]["mpp"]
    level = opened.labels.find_level(4.0)
    labels, mpp = opened.labels.read(level), opened.labels.mpp[level]
    x, y = (
        np.clip((axis / mpp).astype(int), 0, size - 1)
        for axis, size in zip(points.T, labels.shape[::-1], strict=True)
    )
    return (
        points,
        labels[y, x].astype(np.int64),
        provenance["parameters"]["step"] * provenance["parameters"]["mpp"],
    )


@contextmanager
def _replace(path: Path, names: Sequence[str], overwrite: bool) -> Iterator[Path]:
    """Give a folder for files that belong together, and put them beside ``path`` when the block ends well."""
    out = path.parent
    check_outputs([out / name for name in names], out, overwrite)
    with open_partial_folder(Path(names[0]).stem, out) as folder:
        yield folder
        exchange_outputs(folder, list(names))
