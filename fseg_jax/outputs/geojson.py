"""The outlines of a slide's clusters as GeoJSON for QuPath: polygons in level-0 pixels."""

import json
import math
import os
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.errors
import rasterio.features
import shapely
import skimage.measure
from jaxtyping import Int64, UInt

from fseg_jax.errors import InputError
from fseg_jax.files.atomic import replace_atomically
from fseg_jax.numerics.regions import merge_small_regions
from fseg_jax.outputs.form import Outlines
from fseg_jax.outputs.labels import LabelPyramid, open_labels

# Labels are traced in pixels, and scaled afterwards.
warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)

_MAX_TRACED_PIXELS = 8_000_000
_TRACED_MPP = 4.0  # µm per pixel of the finest level that is traced
# QuPath opens files of 50 MB, and has difficulties with larger ones.
_MAX_BYTES = 40_000_000  # by estimate
_MAX_FEATURES = 50_000
_BYTES_PER_FEATURE = 420
_BYTES_PER_VERTEX = 15
_DOUBLINGS = 4  # least areas that are tried at a level
_LEAST_DOUBLED = 256.0  # µm²
AREA = "Region area µm^2"  # QuPath drops a measurement that is called as its own, "Area µm^2"
UnsignedLabels = UInt[np.ndarray, "h w"]

_NAMESPACE = uuid.UUID("3f6cf0ce-6d0b-5c0b-9c55-6d7d1f6b2c11")


@dataclass(frozen=True)
class OutlineFacts:
    """How the outlines of a slide were made, and how large their file is.

    Attributes:
        level: Level of the label pyramid that was traced.
        level_mpp: µm per pixel of that level.
        tolerance_um: Tolerance of the simplified borders.
        min_area_um2: Area below which regions were merged.
        slide_mpp: µm per level-0 pixel.
        features: Number of QuPath's objects: of polygons, or of clusters that have one of many.
        bytes: Size of the file.
    """

    level: int
    level_mpp: float
    tolerance_um: float
    min_area_um2: float
    slide_mpp: float
    features: int
    bytes: int


def write_geojson(
    path: str | os.PathLike[str],
    labels_path: str | os.PathLike[str],
    *,
    slide_mpp: float,
    names: Sequence[str],
    colours: np.ndarray,
    tolerance_um: float = 4.0,
    min_area_um2: float = 0.0,
    frame: Mapping[str, Any] | None = None,
    outlines: Outlines = "regions",
) -> OutlineFacts:
    """Write a polygon for every connected region of every cluster, with its holes, as a FeatureCollection.

    1. Read the labels at about 4 µm per pixel, or coarser.
    2. Merge small regions into their neighbours: those that a coarser level has cut off.
    3. Trace the regions, and simplify their borders together, so that neighbours keep sharing them.

    Where the file would be too large for QuPath, the steps are repeated with ever larger areas, and small
    holes and pieces go too.

    Args:
        path: The file; its coordinates are (x, y) in level-0 pixels.
        labels_path: The label pyramid.
        slide_mpp: µm per level-0 pixel.
        names: Names of the clusters.
        colours: uint8 (k, 3), colours of the clusters.
        tolerance_um: Square root of the area of the largest triangle that the removal of a corner may cut
            off; at least a pixel.
        min_area_um2: Area below which regions were merged in the labels.
        frame: What the coordinates count from, as JSON.
        outlines: Which objects QuPath gets (``form``).

    Returns:
        How they were made; the file states it under ``fseg``, but for its size, and the frame.

    Raises:
        InputError: The labels are missing, damaged or too ragged.
        OutputError: The file cannot be written.
    """
    pyramid = open_labels(labels_path)
    extent = [size * pyramid.mpp[0] / slide_mpp for size in pyramid.levels[0].shape]
    level = -1
    for next_level, min_area in _yield_attempts(pyramid, min_area_um2):
        mpp = pyramid.mpp[next_level]
        if next_level != level:
            level, labels = next_level, pyramid.read(next_level)
        if min_area == min_area_um2:
            labels = next(merge_small_regions([labels], math.ceil(min_area / mpp**2)))
        else:
            labels = merge_small(labels, max(1, round(min_area / mpp**2)))
        if _count_regions(labels) <= _MAX_FEATURES:
            tolerance = max(tolerance_um, mpp)
            clusters, polygons = trace_regions(labels, mpp / slide_mpp, extent, tolerance / slide_mpp)
            vertices = int(shapely.get_num_coordinates(polygons).sum())
            if len(polygons) * _BYTES_PER_FEATURE + vertices * _BYTES_PER_VERTEX <= _MAX_BYTES:
                break
    else:
        raise InputError(f"{labels_path} is too ragged to outline within {_MAX_BYTES // 10**6} MB")
    if outlines == "clusters":
        clusters, polygons = _unite(clusters, polygons)
    facts: dict[str, Any] = {
        "level": level,
        "level_mpp": mpp,
        "tolerance_um": tolerance,
        "min_area_um2": min_area,
        "slide_mpp": slide_mpp,
        "features": len(polygons),
    }
    stated = {**facts, **(frame or {})}
    classes = describe_classes(names, colours)
    with replace_atomically(path) as part, part.open("w", encoding="utf-8") as file:
        file.write(f'{{"type":"FeatureCollection","fseg":{encode_compact(stated)},"features":[')
        separator = "\n"
        for feature in yield_features(clusters, polygons, classes, slide_mpp, outlines):
            file.write(separator + feature)
            separator = ",\n"
        file.write("\n]}\n")
    return OutlineFacts(**facts, bytes=Path(path).stat().st_size)


def choose_traced_level(pyramid: LabelPyramid) -> int:
    """Choose the finest level of about 4 µm per pixel, or coarser, that has few enough pixels to trace."""
    for index, (level, mpp) in enumerate(zip(pyramid.levels, pyramid.mpp, strict=True)):
        if mpp > 0.75 * _TRACED_MPP and level.shape[0] * level.shape[1] <= _MAX_TRACED_PIXELS:
            return index
    return len(pyramid.levels) - 1


def _yield_attempts(pyramid: LabelPyramid, min_area: float) -> Iterator[tuple[int, float]]:
    """Yield the levels and least areas to try, from the ones asked for to those that give the smallest file.

    The area is doubled, from 256 µm² where less is asked for. After a few times the next level is taken too,
    since merging does not help where no region has a larger neighbour, as in noise.
    """
    first = choose_traced_level(pyramid)
    yield first, min_area
    min_area = max(min_area, _LEAST_DOUBLED)
    for level in range(first, len(pyramid.levels)):
        for doubling in range(_DOUBLINGS):
            yield level, min_area * 2 ** (1 + doubling + _DOUBLINGS * (level - first))


def _count_regions(labels: UnsignedLabels) -> int:
    """Count the 4-connected regions that are not background."""
    return int(skimage.measure.label(labels, background=0, connectivity=1, return_num=True)[1])


def merge_small(labels: UnsignedLabels, pixels: int) -> UnsignedLabels:
    """Merge regions of fewer than ``pixels`` pixels into their largest neighbour.

    Regions are 4-connected; background has regions too.
    """
    pixels = min(pixels, labels.size - 1)
    size = 2
    while size < pixels:  # in steps, since a region is not merged where all its neighbours are small
        labels = rasterio.features.sieve(labels, size, connectivity=4)
        size *= 2
    return rasterio.features.sieve(labels, pixels, connectivity=4) if pixels > 1 else labels


def trace_regions(
    labels: UnsignedLabels, scale: float, extent: Sequence[float], tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Trace the regions of labels, and simplify their outlines.

    Args:
        labels: The labels.
        scale: Level-0 pixels per label.
        extent: (height, width) of the slide in level-0 pixels.
        tolerance: Tolerance of the simplification, in level-0 pixels.

    Returns:
        The clusters (n,) and their polygons (n,) in level-0 pixels, with rings oriented as in RFC 7946.
    """
    clusters, rings, polygon_starts = [], [], [0]
    for geometry, value in rasterio.features.shapes(labels, mask=labels > 0, connectivity=4):
        rings += geometry["coordinates"]
        polygon_starts.append(len(rings))
        clusters.append(int(value))
    if not clusters:
        return np.zeros(0, int), np.zeros(0, object)
    corners = np.concatenate([np.array(ring) for ring in rings]).astype(np.int64)
    corners, ring_starts = _add_junctions(corners, np.cumsum([0, *map(len, rings)]), labels)
    # The last coarse pixel may reach past the edge of the slide, so coordinates are clipped.
    polygons = shapely.from_ragged_array(
        shapely.GeometryType.POLYGON,
        np.minimum(corners * scale, extent[::-1]),
        (ring_starts, np.array(polygon_starts)),
    )
    polygons = shapely.coverage_simplify(polygons, tolerance)
    rounded = shapely.transform(polygons, lambda xy: np.round(xy, 1))
    polygons = np.where(shapely.is_valid(rounded), rounded, polygons)
    order = np.argsort(clusters, kind="stable")
    return np.array(clusters)[order], shapely.orient_polygons(polygons[order])


def _add_junctions(
    corners: Int64[np.ndarray, "corners 2"],
    ring_starts: Int64[np.ndarray, " rings+1"],
    labels: UnsignedLabels,
) -> tuple[Int64[np.ndarray, "more_corners 2"], Int64[np.ndarray, " rings+1"]]:
    """Add a corner to rings wherever three regions meet, which may be inside a straight edge of one of them.

    Without it, that region's edge would be simplified differently from its neighbours' edges.

    Args:
        corners: (x, y) of the corners of all rings, along pixel edges; a ring's last is its first.
        ring_starts: Index of each ring's first corner, and the number of corners.
        labels: The labels.

    Returns:
        The corners and ring starts with the added corners.
    """
    padded = np.pad(labels, 1)
    across, down = padded[:, 1:] != padded[:, :-1], padded[1:] != padded[:-1]
    # The number of region borders at each pixel corner: 3 or 4 where at least three regions meet.
    edges = across[1:].astype(np.int8) + across[:-1] + down[:, 1:] + down[:, :-1]
    vectors = np.zeros_like(corners)  # to the next corner
    vectors[:-1] = np.diff(corners, axis=0)
    vectors[ring_starts[1:] - 1] = 0  # a ring ends at its last corner
    # Each vector is walked in steps of a pixel, and the steps that reach a junction are kept.
    steps = np.maximum(np.abs(vectors).sum(axis=1), 1)
    corner = np.repeat(np.arange(len(corners)), steps)
    step = np.arange(len(corner)) - np.repeat(np.cumsum(steps) - steps, steps)
    points = corners[corner] + np.sign(vectors)[corner] * step[:, None]
    kept = (step == 0) | (edges[points[:, 1], points[:, 0]] > 2)
    kept_before = np.concatenate([[0], np.cumsum(kept)])
    return points[kept], kept_before[np.concatenate([[0], np.cumsum(steps)])[ring_starts]]


def _unite(clusters: np.ndarray, polygons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unite the polygons (n,) of each cluster, which are sorted by cluster, to one geometry of many."""
    if not len(polygons):
        return clusters, polygons
    found, starts = np.unique(clusters, return_index=True)
    return found, np.array([shapely.MultiPolygon(list(own)) for own in np.split(polygons, starts[1:])])


def yield_features(
    clusters: np.ndarray,
    polygons: np.ndarray,
    classes: Sequence[dict[str, Any]],
    slide_mpp: float,
    outlines: Outlines = "regions",
) -> Iterator[str]:
    """Yield the JSON of a QuPath object for each polygon.

    Args:
        clusters: (n,), which of the classes each polygon is of, from 1 on.
        polygons: (n,) shapely polygons, or collections of polygons, in level-0 pixels.
        classes: QuPath's classifications: objects with a ``name`` and a ``color``.
        slide_mpp: µm per level-0 pixel.
        outlines: Which objects they become (``form``).
    """
    areas = (shapely.area(polygons) * slide_mpp**2).tolist()
    # A collection of one polygon becomes that polygon: QuPath 0.5 reads nothing of a file that has one.
    single = (shapely.get_type_id(polygons) == shapely.GeometryType.MULTIPOLYGON) & (
        shapely.get_num_geometries(polygons) == 1
    )
    geometries = shapely.to_geojson(np.where(single, shapely.get_geometry(polygons, 0), polygons))
    begun: dict[int, str] = {}  # of each cluster, the properties that all of its objects have
    for cluster, geometry, area in zip(clusters.tolist(), geometries, areas, strict=True):
        name = classes[cluster - 1]["name"]
        if cluster not in begun:
            properties = {
                "objectType": "detection" if outlines == "detections" else "annotation",
                "name": name,
                "classification": classes[cluster - 1],
                "isLocked": False,
            }
            begun[cluster] = encode_compact(properties).removesuffix("}")
        yield (
            f'{{"type":"Feature","id":"{identify_feature(name, geometry)}","geometry":{geometry},'
            f'"properties":{begun[cluster]},"measurements":{{"{AREA}":{round(area)}}}}}}}'
        )


def describe_classes(names: Sequence[str], colours: np.ndarray) -> list[dict[str, Any]]:
    """Describe classes as QuPath's classifications."""
    return [
        {"name": name, "color": [int(v) for v in colour]} for name, colour in zip(names, colours, strict=True)
    ]


def identify_feature(name: str, geometry: str) -> str:
    """Make the id of an annotation from the name of its class and the JSON of its geometry."""
    return str(uuid.uuid5(_NAMESPACE, name + geometry))


encode_compact = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
