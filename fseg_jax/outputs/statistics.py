"""Spatial statistics of slides' clusters as tidy CSV, and a plot of who is whose neighbour."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely
import skimage.color
from jaxtyping import Float, Int, UInt, UInt8

from fseg_jax.numerics.spatial import (
    count_borders,
    find_regions,
    measure_distances,
    measure_enrichment,
    measure_length,
)
from fseg_jax.outputs.geojson import choose_traced_level, trace_regions
from fseg_jax.outputs.labels import LabelPyramid, resample_nearest
from fseg_jax.outputs.style import save_figure

REGION_COLUMNS = (
    *("region", "cluster", "x_um", "y_um", "area_um2", "perimeter_um", "roundness", "solidity"),
    *("holes", "neighbours", "border_share", "haematoxylin", "eosin"),
)
CLUSTER_COLUMNS = (
    *("cluster", "area_mm2", "share", "regions", "median_region_um2", "largest_region_um2"),
    *("perimeter_mm", "roundness", "solidity"),
)
PAIR_COLUMNS = (
    *("cluster", "other", "interface_mm", "neighbours", "expected", "enrichment_z"),
    *("distance_mean_um", "distance_median_um"),
)
_NODES = 16.0  # µm between the points that are neighbours
_MOST_PIXELS = 4_000_000  # of labels that distances are measured on
_TOLERANCE = 4.0  # µm, of simplified borders


class RegionTable(NamedTuple):
    """The connected regions of a slide's clusters.

    Attributes:
        clusters: (n,), the cluster of each, from 1.
        polygons: (n,), their outlines, in µm from the slide's corner.
        columns: (n,) values by name, those of ``REGION_COLUMNS`` that are numbers.
    """

    clusters: Int[np.ndarray, " n"]
    polygons: np.ndarray
    columns: dict[str, np.ndarray]


class SlideStatistics(NamedTuple):
    """A slide's spatial statistics.

    Attributes:
        names: Names of the clusters.
        regions: Its regions.
        interfaces: (k + 1, k + 1), µm of border between clusters, and with what is none (0).
        counts: (k, k), neighbours of cluster j + 1 that pixels of cluster i + 1 have.
        expected: (k, k), by chance.
        z: (k, k), how many standard deviations more.
        distance_mean: (k, k), µm from cluster i + 1 to the nearest of j + 1.
        distance_median: (k, k), the same.
        areas: (k,), µm².
    """

    names: Sequence[str]
    regions: RegionTable
    interfaces: Float[np.ndarray, "k1 k1"]
    counts: Float[np.ndarray, "k k"]
    expected: Float[np.ndarray, "k k"]
    z: Float[np.ndarray, "k k"]
    distance_mean: Float[np.ndarray, "k k"]
    distance_median: Float[np.ndarray, "k k"]
    areas: Float[np.ndarray, " k"]


def tabulate_regions(
    labels: UInt[np.ndarray, "h w"], mpp: float, image: UInt8[np.ndarray, "h2 w2 3"] | None
) -> RegionTable:
    """Tabulate the regions of labels.

    Args:
        labels: The labels of a whole slide.
        mpp: µm per pixel of the labels.
        image: The whole slide, for the mean densities of stains; None: they are not known.
    """
    regions = find_regions(labels)
    n = len(regions.labels)
    ids = regions.ids
    pixels = np.bincount(ids.ravel(), minlength=n + 1)[1:]
    extent = [size * mpp for size in labels.shape]
    numbers, polygons = trace_regions(ids, mpp, extent, max(_TOLERANCE, mpp))
    assert np.array_equal(numbers, np.arange(1, n + 1))
    borders = count_borders(ids)
    has_label = borders.first > 0
    neighbours = np.bincount(borders.first[has_label], minlength=n + 1)
    neighbours += np.bincount(borders.second[has_label], minlength=n + 1)
    edges = np.bincount(borders.first, borders.edges, n + 1) + np.bincount(
        borders.second, borders.edges, n + 1
    )
    outer = np.bincount(borders.second[~has_label], borders.edges[~has_label], n + 1)[1:]
    perimeter = shapely.length(polygons)
    area = pixels * mpp**2
    hulls = np.maximum(shapely.area(shapely.convex_hull(polygons)), 1e-9)
    centres = shapely.centroid(polygons)
    columns = {
        "x_um": shapely.get_x(centres),
        "y_um": shapely.get_y(centres),
        "area_um2": area,
        "perimeter_um": perimeter,
        "roundness": np.minimum(4 * np.pi * shapely.area(polygons) / np.maximum(perimeter, 1e-9) ** 2, 1),
        "solidity": shapely.area(polygons) / hulls,
        "holes": shapely.get_num_interior_rings(polygons).astype(np.int64),
        "neighbours": neighbours[1:],
        "border_share": outer / np.maximum(edges[1:], 1),
    }
    if image is not None:
        stains = skimage.color.rgb2hed(image)[..., :2].astype(np.float32)
        rows, places = (
            np.minimum(((np.arange(size) + 0.5) * have / size).astype(int), have - 1)
            for size, have in zip(ids.shape, image.shape[:2], strict=True)
        )
        for channel, name in enumerate(("haematoxylin", "eosin")):
            density = stains[rows[:, None], places[None], channel]
            columns[name] = np.bincount(ids.ravel(), density.ravel(), n + 1)[1:] / np.maximum(pixels, 1)
    return RegionTable(regions.labels, polygons, columns)


def measure_slide(pyramid: LabelPyramid, image: UInt8[np.ndarray, "h w 3"] | None) -> SlideStatistics:
    """Measure a slide's spatial statistics; ``image`` is the whole slide.

    Areas of clusters are of the finest labels, all else of those of about 4 µm per pixel.
    """
    level = choose_traced_level(pyramid)
    labels, mpp, k = pyramid.read(level), pyramid.mpp[level], len(pyramid.names)
    borders = count_borders(labels)
    interfaces = np.zeros((k + 1, k + 1))
    interfaces[borders.first, borders.second] = measure_length(borders.edges, mpp)
    enrichment = measure_enrichment(_space_out(labels, mpp, _NODES), k)
    spacing = mpp * max(1.0, math.sqrt(labels.size / _MOST_PIXELS))
    distances = measure_distances(_space_out(labels, mpp, spacing), k, spacing)
    return SlideStatistics(
        pyramid.names,
        tabulate_regions(labels, mpp, image),
        interfaces + interfaces.T,
        *enrichment,
        *distances,
        np.array(pyramid.provenance["pixels"][1:], float) * pyramid.mpp[0] ** 2,
    )


def _space_out(labels: UInt[np.ndarray, "h w"], mpp: float, spacing: float) -> UInt[np.ndarray, "h2 w2"]:
    """Take the labels at points that lie ``spacing`` µm apart; all, where that is finer than they are."""
    if spacing <= mpp:
        return labels
    height, width = (max(1, round(size * mpp / spacing)) for size in labels.shape)
    return resample_nearest(labels, (height, width))


def list_region_rows(slide: SlideStatistics) -> list[dict[str, Any]]:
    """List a line a region."""
    columns = slide.regions.columns
    return [
        {
            "region": i + 1,
            "cluster": slide.names[cluster - 1],
            **{name: _format(values[i]) for name, values in columns.items()},
        }
        for i, cluster in enumerate(slide.regions.clusters.tolist())
    ]


def list_cluster_rows(slide: SlideStatistics) -> list[dict[str, Any]]:
    """List a line a cluster."""
    rows, tissue, columns = [], max(slide.areas.sum(), 1e-9), slide.regions.columns
    for j, name in enumerate(slide.names):
        own = slide.regions.clusters == j + 1
        area = columns["area_um2"][own]
        row: dict[str, Any] = {
            "cluster": name,
            "area_mm2": _format(slide.areas[j] * 1e-6),
            "share": _format(slide.areas[j] / tissue),
            "regions": int(own.sum()),
            "perimeter_mm": _format(columns["perimeter_um"][own].sum() * 1e-3),
        }
        if own.any():
            row |= {
                "median_region_um2": _format(np.median(area)),
                "largest_region_um2": _format(area.max()),
                "roundness": _format(np.average(columns["roundness"][own], weights=area)),
                "solidity": _format(np.average(columns["solidity"][own], weights=area)),
            }
        rows.append(row)
    return rows


def list_pair_rows(slide: SlideStatistics) -> list[dict[str, Any]]:
    """List a line for each cluster and each other one, itself among them."""
    return [
        {
            "cluster": a,
            "other": b,
            "interface_mm": _format(slide.interfaces[i + 1, j + 1] * 1e-3),
            "neighbours": int(slide.counts[i, j]),
            "expected": _format(slide.expected[i, j]),
            "enrichment_z": _format(slide.z[i, j]),
            "distance_mean_um": _format(slide.distance_mean[i, j]),
            "distance_median_um": _format(slide.distance_median[i, j]),
        }
        for i, a in enumerate(slide.names)
        for j, b in enumerate(slide.names)
    ]


def _format(value: Any) -> Any:
    """Format a number with six digits; what is not known is empty."""
    if isinstance(value, int | np.integer):
        return int(value)
    return "" if not np.isfinite(value) else float(f"{value:.6g}")


def draw_neighbours(
    path: Path, names: Sequence[str], z: Float[np.ndarray, "k k"], interfaces: Float[np.ndarray, "k k"]
) -> None:
    """Draw which clusters are neighbours more and less often than by chance, and how long they touch, as PNG.

    Args:
        path: The file.
        names: Names of the clusters.
        z: Enrichment, in standard deviations.
        interfaces: µm of border between clusters.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    k = len(names)
    side = min(14.0, 2.2 + 0.32 * k)
    figure = Figure(figsize=(2 * side + 1.5, side + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    # A cluster has itself for a neighbour so often that beside it nothing else would show.
    shown = np.where(np.eye(k, dtype=bool), np.nan, np.arcsinh(np.nan_to_num(z)))
    most = float(np.abs(np.nan_to_num(shown)).max(initial=1e-9)) or 1.0
    left, right = figure.subplots(1, 2)
    pictures = (
        left.imshow(shown, cmap="RdBu_r", vmin=-most, vmax=most),
        right.imshow(np.where(np.eye(k, dtype=bool), np.nan, interfaces * 1e-3), cmap="viridis"),
    )
    left.set_title("neighbours: arcsinh of z (red: more than by chance; grey: itself)", fontsize=9)
    right.set_title("interface, mm", fontsize=9)
    for axes, picture in zip((left, right), pictures, strict=True):
        axes.set_facecolor("#dddddd")
        axes.set_xticks(range(k), names, rotation=90, fontsize=7)
        axes.set_yticks(range(k), names, fontsize=7)
        figure.colorbar(picture, ax=axes, shrink=0.8)
    save_figure(figure, path, dpi=110)
