"""How clusters lie to each other: regions, interfaces, neighbourhoods, distances. Over labels, 0 is none."""

import math
from typing import NamedTuple

import numpy as np
import skimage.measure
from jaxtyping import Float, Int, UInt
from scipy import ndimage


class Regions(NamedTuple):
    """The connected regions of labels.

    Attributes:
        ids: Number of the region of each pixel, from 1; 0 where there is no label.
        labels: (n,), the label of each region.
    """

    ids: Int[np.ndarray, "h w"]
    labels: Int[np.ndarray, " n"]


class Borders(NamedTuple):
    """Which values border on which, in pixel edges; each pair once, the lower value first.

    Attributes:
        first: (m,), the lower value of each pair.
        second: (m,), the higher one.
        edges: (m,), how many pixel edges they share.
    """

    first: Int[np.ndarray, " m"]
    second: Int[np.ndarray, " m"]
    edges: Int[np.ndarray, " m"]


def find_regions(labels: UInt[np.ndarray, "h w"]) -> Regions:
    """Find the regions of equal labels, connected by pixel edges."""
    ids, n = skimage.measure.label(labels, background=0, connectivity=1, return_num=True)
    of_region = np.zeros(n + 1, np.int64)
    of_region[ids.ravel()] = labels.ravel()
    return Regions(ids.astype(np.int32), of_region[1:])


def count_borders(values: Int[np.ndarray, "h w"] | UInt[np.ndarray, "h w"]) -> Borders:
    """Count the pixel edges between each two values, 0 among them; the picture's frame is no border."""
    values = values.astype(np.int64)
    size = int(values.max(initial=0)) + 1
    codes = []
    for a, b in ((values[:, 1:], values[:, :-1]), (values[1:], values[:-1])):
        differ = a != b
        low, high = np.minimum(a[differ], b[differ]), np.maximum(a[differ], b[differ])
        codes.append(low * size + high)
    pairs, edges = np.unique(np.concatenate(codes), return_counts=True)
    return Borders(pairs // size, pairs % size, edges)


def measure_length(edges: Int[np.ndarray, " n"], mpp: float) -> Float[np.ndarray, " n"]:
    """Estimate the length of borders in µm from their pixel edges, whatever their direction (Crofton)."""
    return edges * (mpp * math.pi / 4)


class Enrichment(NamedTuple):
    """How often labels are neighbours, beside what chance gives.

    Attributes:
        counts: (k, k), neighbours of label j + 1 that pixels of label i + 1 have.
        expected: (k, k), their mean were labels laid at random on the same pixels.
        z: (k, k), (counts - expected) over the standard deviation; NaN where nothing varies.
    """

    counts: Float[np.ndarray, "k k"]
    expected: Float[np.ndarray, "k k"]
    z: Float[np.ndarray, "k k"]


def measure_enrichment(labels: UInt[np.ndarray, "h w"], k: int) -> Enrichment:
    """Measure which labels are neighbours more often than by chance, as ``squidpy.gr.nhood_enrichment`` does.

    Pixels with labels are the nodes, and those that share an edge are neighbours. Mean and deviation over all
    permutations of the labels are exact (join counts without replacement; Cliff and Ord 1981, §2.2), where
    squidpy draws some permutations.
    """
    inside = labels > 0
    n = np.bincount(labels[inside], minlength=k + 1)[1:].astype(float)
    counts = np.zeros((k, k))
    degrees = np.zeros(labels.shape, np.int64)
    for a, b in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
        joined = inside[a] & inside[b]
        degrees[a] += joined
        degrees[b] += joined
        codes = (labels[a][joined].astype(np.int64) - 1) * k + labels[b][joined] - 1
        counts += np.bincount(codes, minlength=k * k).reshape(k, k)
    counts = counts + counts.T
    joins = degrees.sum() / 2.0
    shared = (degrees * (degrees - 1)).sum() / 2.0  # pairs of joins that have a node in common
    total = n.sum()
    two, three, four = (math.prod(max(total - i, 1) for i in range(m)) for m in (2, 3, 4))
    apart = joins * (joins - 1) - 2 * shared
    r, s = n[:, None], n[None]
    mean = joins * 2 * r * s / two
    square = mean + 2 * shared * r * s * (r + s - 2) / three + apart * 4 * r * (r - 1) * s * (s - 1) / four
    variance = square - mean**2
    same = joins * n * (n - 1) / two
    same_square = (
        same + 2 * shared * n * (n - 1) * (n - 2) / three + apart * n * (n - 1) * (n - 2) * (n - 3) / four
    )
    np.fill_diagonal(mean, 2 * same)  # each join of a label with itself counts for both its pixels
    np.fill_diagonal(variance, 4 * (same_square - same**2))
    with np.errstate(invalid="ignore", divide="ignore"):
        z = (counts - mean) / np.sqrt(np.where(variance > 1e-9 * np.maximum(square, 1), variance, np.nan))
    return Enrichment(counts, mean, z)


class Distances(NamedTuple):
    """How far pixels of a label are from the nearest pixel of another, in µm; NaN where one is missing.

    Attributes:
        mean: (k, k), from label i + 1 to label j + 1.
        median: (k, k), the same.
    """

    mean: Float[np.ndarray, "k k"]
    median: Float[np.ndarray, "k k"]


def measure_distances(labels: UInt[np.ndarray, "h w"], k: int, mpp: float) -> Distances:
    """Measure the distances between the centres of pixels of each two labels."""
    mean, median = np.full((k, k), np.nan), np.full((k, k), np.nan)
    order = np.argsort(labels, axis=None, kind="stable")
    ends = np.cumsum(np.bincount(labels.ravel(), minlength=k + 1))
    for j in range(k):
        if ends[j + 1] == ends[j]:
            continue
        away = ndimage.distance_transform_edt(labels != j + 1).ravel()
        for i in range(k):
            own = away[order[ends[i] : ends[i + 1]]]
            if len(own):
                mean[i, j], median[i, j] = own.mean() * mpp, np.median(own) * mpp
    return Distances(mean, median)
