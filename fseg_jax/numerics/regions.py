"""Small connected regions of labels, given to their neighbours in one pass over rows. Host side, NumPy.

A region is a 4-connected part of one label that is not 0. The smallest region below the least area (of two
of one area, the one whose first pixel comes first) takes the label with which it shares the longest border
(the lowest of two), and becomes part of what it joins; and so on, until every region has the least area or
borders on nothing but 0. Borders can be weighted by how alike two labels are: what a region belongs to is
seldom what merely surrounds it.

What becomes of a region depends on itself and its neighbours alone, once it is smaller than all of these:
they can only grow, so regions that are the smallest around may join in any order. So few rows are in memory,
and the result does not depend on how many come at once.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from jaxtyping import Float, Int, UInt

from fseg_jax.numerics.runs import Borders, find_parts

_LARGE = -1  # in place of a small region's number, for large regions and background


@dataclass(slots=True)
class _Region:
    """A small region, or part of one that goes on below.

    Attributes:
        label: Its label.
        area: Its pixels so far.
        first: Its first pixel, in raster order.
        is_open: Whether it may go on below.
        borders: Edges shared with each small neighbour, by its number.
        large_borders: Edges shared with large regions, by their label.
        joined: The region that it has become part of.
        is_large: Whether it has become part of a large region.
    """

    label: int
    area: int
    first: int
    is_open: bool = False
    borders: dict[int, int] = field(default_factory=dict)
    large_borders: dict[int, int] = field(default_factory=dict)
    joined: int | None = None
    is_large: bool = False


@dataclass
class _Strip:
    """Rows that wait for the regions in them.

    Attributes:
        labels: As given.
        start: First pixels of the runs of small regions.
        length: Pixels of these runs.
        regions: Regions of these runs, each once.
        region: Which of these each run is of.
        waiting: Regions that may still take another label.
    """

    labels: UInt[np.ndarray, "n width"]
    start: Int[np.ndarray, " runs"]
    length: Int[np.ndarray, " runs"]
    regions: list[int]
    region: Int[np.ndarray, " runs"]
    waiting: list[int]


def weigh_borders(centers: Float[np.ndarray, "k c"]) -> Float[np.ndarray, "l l"]:
    """Weigh the border between two labels, 1…k, by one over the squared distance of their centres.

    Returns:
        ``(k + 1, k + 1)``, by the two labels; 0 is background, and has no weight.
    """
    X = centers.astype(np.float64)
    X = X / max(np.abs(X).max(), np.finfo(np.float64).tiny)
    squares = (X**2).sum(1)
    distances = squares[:, None] + squares - 2 * X @ X.T
    distances = (distances + distances.T) / 2
    weights = np.zeros((len(X) + 1, len(X) + 1))
    weights[1:, 1:] = 1 / np.maximum(distances, 1e-12)
    return weights


def merge_small_regions(
    rows: Iterable[UInt[np.ndarray, "_ width"]],
    least: int,
    weights: Float[np.ndarray, "l l"] | None = None,
) -> Iterator[UInt[np.ndarray, "_ width"]]:
    """Give every region of fewer than ``least`` pixels to its neighbours, but those that have none.

    Args:
        rows: Labels from top to bottom, some rows at a time; 0 is background, and stays.
        least: Pixels of the smallest region that stays.
        weights: What a border counts, by the label of the region and that of its neighbour; None: by its
            length alone.

    Yields:
        The rows, as many at a time.
    """
    if least <= 1:
        yield from rows
        return
    graph = _RegionGraph(least, weights)
    strips: deque[_Strip] = deque()
    above: UInt[np.ndarray, " width"] | None = None
    owners = np.zeros(0, np.int64)  # of the pixels of the last row
    top = 0
    for labels in rows:
        if not labels.size:
            yield labels
            continue
        if above is None:  # nothing lies above the first row
            above, owners = np.zeros_like(labels[0]), np.full(labels.shape[1], _LARGE)
        strip, owners = graph.add(np.concatenate([above[None], labels]), owners, top)
        strips.append(strip)
        above, top = labels[-1], top + len(labels)
        graph.settle()
        while strips and graph.is_settled(strips[0]):
            yield graph.paint(strips.popleft())
        graph.forget_all_but(chain(np.unique(owners).tolist(), *(strip.regions for strip in strips)))
    graph.close()
    graph.settle()
    for strip in strips:
        yield graph.paint(strip)


class _RegionGraph:
    """The small regions of the rows so far, and what they border on."""

    def __init__(self, least: int, weights: Float[np.ndarray, "l l"] | None) -> None:
        self._least = least
        self._weights = weights
        self._regions: dict[int, _Region] = {}
        self._count = 0
        self._open: list[int] = []
        self._unsettled: list[int] = []

    def add(
        self, block: UInt[np.ndarray, "rows width"], owners: Int[np.ndarray, " width"], top: int
    ) -> tuple[_Strip, Int[np.ndarray, " width"]]:
        """Add rows.

        Args:
            block: The row above, and the rows.
            owners: The number of the small region of each pixel of the row above.
            top: The first row's number.

        Returns:
            The rows, to paint once they are settled, and the owners of their last row.
        """
        width = block.shape[1]
        runs, borders = find_parts(block)
        inside = runs.start >= width  # not in the row above
        area = np.bincount(runs.part, runs.length * inside, runs.parts).astype(np.int64)
        label = np.zeros(runs.parts, np.int64)
        label[runs.part] = runs.label
        first = np.zeros(runs.parts, np.int64)
        first[runs.part[::-1]] = runs.start[::-1]
        is_large = (area >= self._least) | (label == 0)
        above = ~inside & (runs.label > 0)
        owner = owners[runs.start[above]]
        is_large[runs.part[above][owner == _LARGE]] = True

        self.close()
        number = np.full(runs.parts, _LARGE)
        small = np.flatnonzero(~is_large)
        number[small] = self._count + np.arange(len(small))
        self._count += len(small)
        offset = (top - 1) * width
        for i, *values in zip(
            number[small].tolist(),
            label[small].tolist(),
            area[small].tolist(),
            (first[small] + offset).tolist(),
            strict=True,
        ):
            self._regions[i] = _Region(*values)
        self._add_borders(borders, number, label)
        for part, i in zip(runs.part[above][owner != _LARGE].tolist(), owner[owner != _LARGE], strict=True):
            self._continue_region(self._find(int(i)), int(number[part]))
        self._unsettled += number[small].tolist()

        of_last_row = runs.start >= len(block) * width - width
        last = np.repeat(number[runs.part[of_last_row]], runs.length[of_last_row])
        self._open = [i for i in np.unique(last).tolist() if i != _LARGE]
        for i in self._open:
            self._regions[self._find(i)].is_open = True
        chosen = inside & ~is_large[runs.part]
        found, region = np.unique(number[runs.part[chosen]], return_inverse=True)
        regions = found.tolist()
        return _Strip(
            block[1:], runs.start[chosen] - width, runs.length[chosen], regions, region, regions
        ), last

    def _add_borders(
        self, borders: Borders, number: Int[np.ndarray, " parts"], label: Int[np.ndarray, " parts"]
    ) -> None:
        for a, b in ((borders.a, borders.b), (borders.b, borders.a)):
            of_small = number[a] != _LARGE
            a, b, length = a[of_small], b[of_small], borders.length[of_small]
            # A large neighbour stands for all large ones of its label: −2 − label.
            other = np.where(number[b] == _LARGE, -2 - label[b], number[b])
            for i, j, edges in zip(*_sum_pairs(number[a], other, length), strict=True):
                if j < _LARGE:
                    _add(self._regions[i].large_borders, -2 - j, edges)
                else:
                    _add(self._regions[i].borders, j, edges)

    def _continue_region(self, i: int, j: int) -> None:
        """Take a region of the rows above and a part of the rows below for one; ``j`` may be large."""
        if j == _LARGE:
            self._enlarge(i)
            return
        j = self._find(j)
        if self._regions[i].is_large or self._regions[j].is_large:
            self._enlarge(i)
            self._enlarge(j)
        elif i != j:
            self._enlarge_if_due(self._unite(i, j))

    def close(self) -> None:
        """Let no region go on below."""
        for i in self._open:
            self._regions[self._find(i)].is_open = False
        self._open = []

    def settle(self) -> None:
        """Give away all small regions that are complete and smaller than their neighbours."""
        self._unsettled = list({self._find(i) for i in self._unsettled})
        waiting = [(self._regions[i].area, self._regions[i].first, i) for i in self._unsettled]
        heapq.heapify(waiting)
        while waiting:
            area, first, i = heapq.heappop(waiting)
            region = self._regions[i]
            if region.joined is not None or region.is_large or region.area != area or region.is_open:
                continue
            neighbours = (self._regions[j] for j in region.borders)
            if all((area, first) < (other.area, other.first) for other in neighbours):
                grown = self._give_away(i)
                if grown is not None:
                    heapq.heappush(waiting, (self._regions[grown].area, self._regions[grown].first, grown))
        self._unsettled = [i for i in self._unsettled if not self._is_final(self._find(i))]

    def _give_away(self, i: int) -> int | None:
        """Give a region the label of its longest border; return what it becomes part of, if that is small."""
        region = self._regions[i]
        totals = dict(region.large_borders)
        for j, length in region.borders.items():
            _add(totals, self._regions[j].label, length)
        if not totals:
            return None
        if self._weights is None:
            label = min(totals, key=lambda label: (-totals[label], label))
        else:
            of_label = self._weights[region.label]
            label = min(totals, key=lambda label: (-totals[label] * of_label[label], label))
        joins_large = label in region.large_borders
        region.label = label
        same = [j for j in region.borders if self._regions[j].label == label]
        if joins_large:
            for j in (i, *same):
                self._enlarge(j)
            return None
        for j in same:
            i = self._unite(i, j)
        self._enlarge_if_due(i)
        return None if self._regions[i].is_large else i

    def _unite(self, i: int, j: int) -> int:
        """Make one region of two of one label, and return its number."""
        if len(self._regions[i].borders) < len(self._regions[j].borders):
            i, j = j, i
        one, other = self._regions[i], self._regions[j]
        one.area += other.area
        one.first = min(one.first, other.first)
        one.is_open |= other.is_open
        for n, length in other.borders.items():
            del self._regions[n].borders[j]
            if n != i:
                _add(one.borders, n, length)
                _add(self._regions[n].borders, i, length)
        for label, length in other.large_borders.items():
            _add(one.large_borders, label, length)
        other.joined = i
        other.borders, other.large_borders = {}, {}
        return i

    def _enlarge_if_due(self, i: int) -> None:
        if self._regions[i].area >= self._least:
            self._enlarge(i)

    def _enlarge(self, i: int) -> None:
        """Take a region for a large one: its label stays."""
        region = self._regions[i]
        for j, length in region.borders.items():
            other = self._regions[j]
            del other.borders[i]
            _add(other.large_borders, region.label, length)
        region.is_large = True
        region.borders, region.large_borders = {}, {}

    def _find(self, i: int) -> int:
        """Find the region that a region is part of now."""
        root = i
        while (joined := self._regions[root].joined) is not None:
            root = joined
        while (joined := self._regions[i].joined) is not None:
            self._regions[i].joined, i = root, joined
        return root

    def _is_final(self, i: int) -> bool:
        region = self._regions[i]
        return region.is_large or not (region.is_open or region.borders or region.large_borders)

    def is_settled(self, strip: _Strip) -> bool:
        """Whether no region of some rows can take another label."""
        strip.waiting = [i for i in strip.waiting if not self._is_final(self._find(i))]
        return not strip.waiting

    def forget_all_but(self, numbers: Iterable[int]) -> None:
        """Keep these regions, and those that they are part of now."""
        needed = {i for i in numbers if i != _LARGE}.union(self._open, self._unsettled)
        needed |= {self._find(i) for i in needed}
        self._regions = {i: self._regions[i] for i in needed}

    def paint(self, strip: _Strip) -> UInt[np.ndarray, "n width"]:
        """Give rows their final labels."""
        labels = np.array([self._regions[self._find(i)].label for i in strip.regions], int)[strip.region]
        painted = np.array(strip.labels)
        flat = painted.reshape(-1)
        changed = labels != flat[strip.start]
        start, length = strip.start[changed], strip.length[changed]
        pixels = np.arange(length.sum()) + np.repeat(start - np.cumsum(length) + length, length)
        flat[pixels] = np.repeat(labels[changed], length)
        return painted


def _add(totals: dict[int, int], key: int, value: int) -> None:
    totals[key] = totals.get(key, 0) + value


def _sum_pairs(
    a: Int[np.ndarray, " n"], b: Int[np.ndarray, " n"], values: Int[np.ndarray, " n"]
) -> tuple[list[int], list[int], list[int]]:
    """Sum the values of each pair that occurs; return the pairs and their sums."""
    if not len(a):
        return [], [], []
    order = np.lexsort((b, a))
    a, b = a[order], b[order]
    first = np.flatnonzero(np.concatenate([[True], (a[1:] != a[:-1]) | (b[1:] != b[:-1])]))
    return a[first].tolist(), b[first].tolist(), np.add.reduceat(values[order], first).tolist()
