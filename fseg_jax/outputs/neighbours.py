"""Which clusters of a slide, or of a cohort, are whose neighbours: coarsely, for the report of a cohort."""

import io
import math
import zipfile
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt

from fseg_jax.numerics.spatial import count_borders, measure_distances, measure_enrichment, measure_length
from fseg_jax.outputs.labels import LabelPyramid, resample_nearest

_NODES = 16.0  # µm between the points that are neighbours
_MOST_NODES = 4_000_000
_MOST_POINTS = 65_536  # that distances are measured between: one pass for each cluster
_DAMAGE = (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


class Neighbours(NamedTuple):
    """How clusters lie to each other.

    Attributes:
        clusters: (n,), the clusters that there are, from 0.
        points: (n,), points of each.
        counts: (n, n), neighbours of cluster j that points of cluster i have.
        expected: (n, n), by chance.
        borders: (n, n), µm of border between clusters.
        distances: (n, n), mean µm from cluster i to the nearest of j.
    """

    clusters: Int[np.ndarray, " n"]
    points: Float[np.ndarray, " n"]
    counts: Float[np.ndarray, "n n"]
    expected: Float[np.ndarray, "n n"]
    borders: Float[np.ndarray, "n n"]
    distances: Float[np.ndarray, "n n"]


def measure_neighbours(pyramid: LabelPyramid) -> Neighbours:
    """Measure how the clusters of a slide lie to each other, on points that are 16 µm apart."""
    level = pyramid.find_level(_NODES)
    labels, mpp = pyramid.read(level), pyramid.mpp[level]
    clusters, at = np.unique(labels, return_inverse=True)
    at = at.reshape(labels.shape).astype(np.uint16)  # 0: no cluster, and then 1…n
    if clusters[0] > 0:  # there is tissue everywhere
        at += 1
    clusters = clusters[clusters > 0].astype(np.int64) - 1
    n = len(clusters)
    nodes, spacing = _space_out(at, mpp, _NODES, _MOST_NODES)
    enrichment = measure_enrichment(nodes, n)
    found = count_borders(nodes)
    borders = np.zeros((n + 1, n + 1))
    borders[found.first, found.second] = measure_length(found.edges, spacing)
    borders += borders.T
    points, spacing = _space_out(nodes, spacing, spacing, _MOST_POINTS)
    return Neighbours(
        clusters,
        np.bincount(nodes.ravel(), minlength=n + 1)[1:].astype(float),
        enrichment.counts,
        enrichment.expected,
        borders[1:, 1:],
        measure_distances(points, n, spacing).mean,
    )


def _space_out(
    labels: UInt[np.ndarray, "h w"], mpp: float, spacing: float, most: int
) -> tuple[UInt[np.ndarray, "h2 w2"], float]:
    """Take labels at points ``spacing`` µm apart or more, ``most`` at most; return how far apart they are."""
    spacing = max(mpp, spacing, mpp * math.sqrt(labels.size / most))
    height, width = (max(1, round(size * mpp / spacing)) for size in labels.shape)
    return resample_nearest(labels, (height, width)), spacing


def pool_neighbours(slides: Sequence[Neighbours], clusters: Sequence[int]) -> Neighbours:
    """Pool slides that share their clusters: counts and borders are sums, distances means over all points.

    Args:
        slides: The slides.
        clusters: The clusters to pool, from 0.
    """
    place = {cluster: i for i, cluster in enumerate(clusters)}
    n = len(place)
    points = np.zeros(n)
    sums, weights = np.zeros((4, n, n)), np.zeros((n, n))
    for slide in slides:
        rows = [i for i, cluster in enumerate(slide.clusters.tolist()) if cluster in place]
        to = [place[cluster] for cluster in slide.clusters[rows].tolist()]
        points[to] += slide.points[rows]
        at, own = np.ix_(to, to), np.ix_(rows, rows)
        weight = np.where(np.isfinite(slide.distances[own]), slide.points[rows][:, None], 0)
        far = np.nan_to_num(slide.distances[own]) * weight
        weights[at] += weight
        for total, part in zip(
            sums, (slide.counts[own], slide.expected[own], slide.borders[own], far), strict=True
        ):
            total[at] += part
    with np.errstate(invalid="ignore", divide="ignore"):
        counts, expected, borders, far = sums
        return Neighbours(np.array(clusters, np.int64), points, counts, expected, borders, far / weights)


def encode_neighbours(neighbours: Neighbours) -> bytes:
    """Encode them as a file of NumPy's, .npz."""
    out = io.BytesIO()
    arrays = {name: values.astype(np.float32) for name, values in neighbours._asdict().items()}
    np.savez_compressed(out, allow_pickle=False, **arrays)
    return out.getvalue()


def decode_neighbours(data: bytes | None) -> Neighbours | None:
    """Decode what ``encode_neighbours`` made; None where it is damaged, or not there."""
    try:
        with np.load(io.BytesIO(data or b""), allow_pickle=False) as arrays:
            clusters, points, *tables = (arrays[name].astype(float) for name in Neighbours._fields)
    except _DAMAGE:
        return None
    n = clusters.size
    if points.shape != (n,) or any(table.shape != (n, n) for table in tables):
        return None
    return Neighbours(clusters.astype(np.int64), points, *tables)
