"""Connected parts of labels and the borders between them, by the runs of labels in rows. Host side, NumPy."""

from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Int, UInt
from scipy.sparse import csgraph


class Runs(NamedTuple):
    """Stretches of one label in a row, of the row above some rows and of these, in raster order.

    Attributes:
        start: Its first pixel, counted over all these rows.
        length: Its pixels.
        label: Its label.
        part: Which connected part of these rows it belongs to; parts are counted by their first pixels.
        parts: Number of parts.
    """

    start: Int[np.ndarray, " runs"]
    length: Int[np.ndarray, " runs"]
    label: UInt[np.ndarray, " runs"]
    part: Int[np.ndarray, " runs"]
    parts: int


class Borders(NamedTuple):
    """Borders between parts of other labels: the two parts, and the pixels' edges that they share."""

    a: Int[np.ndarray, " borders"]
    b: Int[np.ndarray, " borders"]
    length: Int[np.ndarray, " borders"]


def find_parts(block: UInt[np.ndarray, "rows width"]) -> tuple[Runs, Borders]:
    """Find the connected parts of rows, and the borders between them that are not all in the first row."""
    width = block.shape[1]
    begins: Bool[np.ndarray, "rows width"] = np.ones(block.shape, bool)
    np.not_equal(block[:, 1:], block[:, :-1], out=begins[:, 1:])
    start = np.flatnonzero(begins)
    length = np.diff(start, append=block.size)
    label = block.reshape(-1)[start]
    # Stretches along which neither the run above nor the one below changes.
    stretch = np.flatnonzero(begins[:-1] | begins[1:])
    shared = np.diff(stretch, append=block.size - width)
    flat = begins.reshape(-1)
    above = np.cumsum(flat[stretch]) - 1
    below = np.cumsum(flat[stretch + width]) - 1 + np.count_nonzero(begins[0])
    same = label[above] == label[below]
    joined = np.flatnonzero(same & (label[above] > 0))
    links = scipy.sparse.coo_array(
        (np.ones(len(joined), bool), (above[joined], below[joined])), shape=(len(start), len(start))
    )
    parts, part = csgraph.connected_components(links, directed=False)
    # Where a run begins inside a row below the first, it borders on the run before it.
    right = np.flatnonzero((start % width > 0) & (start >= width))
    a = np.concatenate([above[~same], right - 1])
    b = np.concatenate([below[~same], right])
    edges = np.concatenate([shared[~same], np.ones(len(right), shared.dtype)])
    between = (label[a] > 0) & (label[b] > 0)
    borders = Borders(part[a[between]], part[b[between]], edges[between])
    return Runs(start, length, label, part, int(parts)), borders
