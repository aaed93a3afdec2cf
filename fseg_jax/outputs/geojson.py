"""Cluster regions as GeoJSON for QuPath: polygons in level-0 pixels of the slide, small enough to load."""

import json
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.features
import shapely
import skimage.measure

from fseg_jax.errors import InputError
from fseg_jax.files.atomic import replace_atomically
from fseg_jax.outputs.labels import LabelPyramid, open_labels

_TRACED_PIXELS = 8_000_000
_TRACED_MPP = 4.0
# What a file may come to, by estimate; QuPath opens 50 MB and balks at more.
_BYTES = 40_000_000
_FEATURES = 50_000
_DOUBLINGS = 4
_BYTES_PER_FEATURE = 420
_BYTES_PER_VERTEX = 15
_NAMESPACE = uuid.UUID("3f6cf0ce-6d0b-5c0b-9c55-6d7d1f6b2c11")


def write_geojson(
    path: str | os.PathLike[str],
    labels_path: str | os.PathLike[str],
    *,
    slide_mpp: float,
    names: Sequence[str],
    colours: np.ndarray,
    tolerance_um: float = 4.0,
    min_area_um2: float = 256.0,
) -> dict[str, Any]:
    """Outline every connected region of every cluster, with its holes, for QuPath.

    Reads the label pyramid at ``labels_path`` at a level of about 4 µm per pixel or coarser and writes a
    FeatureCollection to ``path``, coordinates (x, y) in level-0 pixels of ``slide_mpp`` µm. Regions below
    ``min_area_um2`` go to a neighbour first; if the file would still be too large for QuPath, that area is
    doubled until it is not. Borders are simplified together, so that neighbours go on sharing them, to
    ``tolerance_um`` (at least a pixel): the square root of the largest triangle a removed corner may cut off.
    Returns what was done, as the file says too under ``fseg``: ``level``, ``level_mpp``, ``tolerance_um``,
    ``min_area_um2``, ``slide_mpp``, ``features``; and ``bytes``.
    Raises InputError where the labels are not there or the file cannot be written.
    """
    pyramid = open_labels(labels_path)
    extent = [size * pyramid.mpp[0] / slide_mpp for size in pyramid.levels[0].shape]
    level = -1
    for attempt, min_area in _attempts(pyramid, min_area_um2):
        mpp = pyramid.mpp[attempt]
        if attempt != level:
            level, labels = attempt, pyramid.read(attempt)
        labels = merge_small(labels, max(1, round(min_area / mpp**2)))
        if _count_regions(labels) <= _FEATURES:
            tolerance = max(tolerance_um, mpp)
            clusters, polygons = _trace(labels, mpp / slide_mpp, extent, tolerance / slide_mpp)
            vertices = int(shapely.get_num_coordinates(polygons).sum())
            if len(polygons) * _BYTES_PER_FEATURE + vertices * _BYTES_PER_VERTEX <= _BYTES:
                break
    else:
        raise InputError(f"{labels_path} is too ragged to outline within {_BYTES // 10**6} MB")
    done = {
        "level": level,
        "level_mpp": mpp,
        "tolerance_um": tolerance,
        "min_area_um2": min_area,
        "slide_mpp": slide_mpp,
        "features": len(polygons),
    }
    classes = [
        {"name": name, "color": [int(v) for v in colour]} for name, colour in zip(names, colours, strict=True)
    ]
    with replace_atomically(path) as part, part.open("w", encoding="utf-8") as file:
        file.write(f'{{"type":"FeatureCollection","fseg":{_json(done)},"features":[')
        separator = "\n"
        for feature in _features(clusters, polygons, classes, slide_mpp):
            file.write(separator + feature)
            separator = ",\n"
        file.write("\n]}\n")
    return {**done, "bytes": Path(path).stat().st_size}


def _traced_level(pyramid: LabelPyramid) -> int:
    """The finest level of about 4 µm per pixel or more that has few enough pixels to trace."""
    for index, (level, mpp) in enumerate(zip(pyramid.levels, pyramid.mpp, strict=True)):
        if mpp > 0.75 * _TRACED_MPP and level.shape[0] * level.shape[1] <= _TRACED_PIXELS:
            return index
    return len(pyramid.levels) - 1


def _attempts(pyramid: LabelPyramid, min_area: float) -> Iterator[tuple[int, float]]:
    """Levels and least areas to outline with, from what was asked for to what is certain to be small enough.

    Areas double; where a level's regions stay small however large an area is asked for, as in noise, the next
    level is taken.
    """
    first = _traced_level(pyramid)
    for level in range(first, len(pyramid.levels)):
        for doubling in range(_DOUBLINGS):
            yield level, min_area * 2 ** (doubling + _DOUBLINGS * (level - first))


def _count_regions(labels: np.ndarray) -> int:
    return int(skimage.measure.label(labels, background=0, connectivity=1, return_num=True)[1])


def merge_small(labels: np.ndarray, pixels: int) -> np.ndarray:
    """Give regions of fewer than ``pixels`` pixels to their largest neighbour, so that no gap is left.

    Unsigned (h, w) to the same; a region is 4-connected, and background counts as one too.
    """
    pixels = min(pixels, labels.size - 1)
    size = 2
    while size < pixels:  # small ones together first: a crumb among crumbs has no neighbour to go to
        labels = rasterio.features.sieve(labels, size, connectivity=4)
        size *= 2
    return rasterio.features.sieve(labels, pixels, connectivity=4) if pixels > 1 else labels


def _trace(
    labels: np.ndarray, scale: float, extent: Sequence[float], tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Clusters (n,) and their polygons (n,), simplified, in level-0 pixels, rings as RFC 7946 turns them."""
    clusters, rings, of_polygon = [], [], [0]
    for geometry, value in rasterio.features.shapes(labels, mask=labels > 0, connectivity=4):
        rings += geometry["coordinates"]
        of_polygon.append(len(rings))
        clusters.append(int(value))
    if not clusters:
        return np.zeros(0, int), np.zeros(0, object)
    corners = np.concatenate([np.array(ring) for ring in rings]).astype(np.int64)
    corners, of_ring = _with_junctions(corners, np.cumsum([0, *map(len, rings)]), labels)
    # The last coarse pixel may reach over the edge of the slide.
    polygons = shapely.from_ragged_array(
        shapely.GeometryType.POLYGON,
        np.minimum(corners * scale, extent[::-1]),
        (of_ring, np.array(of_polygon)),
    )
    polygons = shapely.coverage_simplify(polygons, tolerance)
    rounded = shapely.transform(polygons, lambda xy: np.round(xy, 1))
    polygons = np.where(shapely.is_valid(rounded), rounded, polygons)
    order = np.argsort(clusters, kind="stable")
    return np.array(clusters)[order], shapely.orient_polygons(polygons[order])


def _with_junctions(
    corners: np.ndarray, of_ring: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Closed rings along pixel edges, with a corner wherever a third region begins.

    That may be inside a straight edge of a region, which would be simplified apart from its neighbours if it
    did not have the corner that they have. ``corners`` int (n, 2) of (x, y), ring r those from ``of_ring[r]``
    to ``of_ring[r + 1]``; returns the same of more.
    """
    around = np.pad(labels, 1)
    across, down = around[:, 1:] != around[:, :-1], around[1:] != around[:-1]
    edges = across[1:].astype(np.int8) + across[:-1] + down[:, 1:] + down[:, :-1]
    way = np.zeros_like(corners)
    way[:-1] = np.diff(corners, axis=0)
    way[of_ring[1:] - 1] = 0  # from a ring's last corner, which is its first, none goes on
    steps = np.maximum(np.abs(way).sum(axis=1), 1)
    begin = np.repeat(np.arange(len(corners)), steps)
    step = np.arange(len(begin)) - np.repeat(np.cumsum(steps) - steps, steps)
    points = corners[begin] + np.sign(way)[begin] * step[:, None]
    kept = (step == 0) | (edges[points[:, 1], points[:, 0]] > 2)
    before = np.concatenate([[0], np.cumsum(kept)])
    return points[kept], before[np.concatenate([[0], np.cumsum(steps)])[of_ring]]


def _features(
    clusters: np.ndarray, polygons: np.ndarray, classes: Sequence[dict[str, Any]], slide_mpp: float
) -> Iterator[str]:
    """The features' JSON, one by one."""
    corners, (of_ring, of_polygon) = _ragged(polygons)
    for n, (cluster, area) in enumerate(zip(clusters, shapely.area(polygons), strict=True)):
        rings = range(of_polygon[n], of_polygon[n + 1])
        coordinates = [corners[of_ring[ring] : of_ring[ring + 1]].tolist() for ring in rings]
        geometry = _json({"type": "Polygon", "coordinates": coordinates})
        classification = classes[cluster - 1]
        properties = {
            "objectType": "annotation",
            "name": classification["name"],
            "classification": classification,
            "isLocked": False,
            "measurements": {"Area µm^2": round(area * slide_mpp**2, 1)},
        }
        identity = uuid.uuid5(_NAMESPACE, classification["name"] + geometry)
        yield f'{{"type":"Feature","id":"{identity}","geometry":{geometry},"properties":{_json(properties)}}}'


def _ragged(polygons: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The corners of polygons (m, 2), where each ring's begin, and where each polygon's rings do."""
    if not len(polygons):
        return np.zeros((0, 2)), (np.zeros(1, int), np.zeros(1, int))
    _, corners, (of_ring, of_polygon) = shapely.to_ragged_array(polygons)
    return corners, (of_ring, of_polygon)


_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
