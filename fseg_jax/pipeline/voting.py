"""Turn classes of overlapping patches into a mask: each pixel takes the class of most patches over it.

The lines on which patches begin and end divide the slide into cells, whose pixels all lie in the same
patches. Votes are counted once for each cell, however many pixels it has. Counts are whole numbers, so that
no rounding decides a tie.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int64, UInt

from fseg_jax.outputs.embeddings import Embeddings
from fseg_jax.outputs.labels import choose_label_dtype
from fseg_jax.pipeline.patch_records import PatchProvenance
from fseg_jax.slides.tissue import Tissue

_STRIP_PIXELS = 4 << 20  # of the mask, made at once
_BLOCK_CELLS = 1 << 20  # whose votes are counted at once
_MOST_FRACTION_BITS, _INT_BITS = 40, 62  # of a vote's fraction; of all votes on a cell


class Block(NamedTuple):
    """Labels of some rows of cells.

    Attributes:
        first: Number of the first row.
        labels: The label of each cell: j + 1 for class j, 0 where no patch covers it.
    """

    first: int
    labels: UInt[np.ndarray, "rows columns"]


class PatchVoter:
    """Counts votes of patches on the cells between their edges.

    Row i of the cells ends at ``lines_y[i]``, column j at ``lines_x[j]``. One more row and one more column
    come after all lines.

    Attributes:
        lines_y: Where patches begin and end vertically, in pixels.
        lines_x: Where patches begin and end horizontally, in pixels.
    """

    def __init__(self, grid: Int[np.ndarray, "n 2"], step: int, side: int) -> None:
        """Lay out the cells of patches of ``side`` pixels in (row, column) of a grid of ``step`` pixels."""
        begin = grid.astype(np.int64) * step
        self.lines_y, self.lines_x = (np.unique([begin[:, i], begin[:, i] + side]) for i in (0, 1))
        # A patch covers the rows of cells from ``top`` to before ``bottom``, and columns likewise.
        self._top, self._bottom = (np.searchsorted(self.lines_y, begin[:, 0] + d) + 1 for d in (0, side))
        self._left, self._right = (np.searchsorted(self.lines_x, begin[:, 1] + d) + 1 for d in (0, side))
        # A ballot is one whole vote and a fraction; the fractions on a cell add up to less than one vote.
        bits = ((-(-side // step)) ** 2).bit_length()
        self._fraction_bits = min(_MOST_FRACTION_BITS, _INT_BITS - 2 * bits)
        self._vote_bits = self._fraction_bits + bits

    def count(self, labels: Int[np.ndarray, " n"], soft: Float[np.ndarray, "n k"]) -> Iterator[Block]:
        """Yield the cells' labels from top to bottom.

        A patch votes for its class ``labels``, 0…k−1. A tie goes to the class with the larger sum of
        ``soft``, then to the lower one.
        """
        ballots = np.rint(soft.T * 2.0**self._fraction_bits).astype(np.int64)
        ballots[labels, np.arange(len(labels))] += 1 << self._vote_bits
        rows, columns = len(self.lines_y) + 1, len(self.lines_x) + 1
        block = max(1, _BLOCK_CELLS // columns)
        for first in range(0, rows, block):
            yield Block(first, self._label(ballots, first, min(block, rows - first), columns))

    def _label(
        self, ballots: Int64[np.ndarray, "k n"], first: int, rows: int, columns: int
    ) -> UInt[np.ndarray, "rows columns"]:
        """Label the cells of some rows: sum the ballots by differences at the patches' corners."""
        inside = np.flatnonzero((self._bottom > first) & (self._top < first + rows))
        top = np.maximum(self._top[inside] - first, 0) * columns
        bottom = np.minimum(self._bottom[inside] - first, rows) * columns
        left, right = self._left[inside], self._right[inside]
        most = np.full((rows, columns), (1 << self._vote_bits) - 1)
        winner = np.zeros((rows, columns), choose_label_dtype(len(ballots)))
        for j, ballot in enumerate(ballots[:, inside], 1):
            change = np.zeros((rows + 1) * columns, np.int64)
            np.add.at(change, top + left, ballot)
            np.add.at(change, top + right, -ballot)
            np.add.at(change, bottom + left, -ballot)
            np.add.at(change, bottom + right, ballot)
            votes = change.reshape(rows + 1, columns)[:-1].cumsum(0).cumsum(1)
            is_ahead = votes > most
            most[is_ahead] = votes[is_ahead]
            winner[is_ahead] = j
        return winner


def vote(
    embedded: Embeddings,
    facts: PatchProvenance,
    labels: Int[np.ndarray, " n"],
    soft: Float[np.ndarray, "n k"],
) -> Iterator[UInt[np.ndarray, "m width"]]:
    """Yield a slide's mask from top to bottom, at the resolution of its patches.

    ``facts`` are those of ``embedded``. Class j has the label j + 1; pixels that no patch covers or that are
    not tissue have 0. Ties are as in ``PatchVoter.count``.
    """
    parameters = facts.parameters
    height, width, mpp = facts.height, facts.width, parameters.mpp
    tissue = Tissue(embedded.tissue, facts.tissue_mpp)
    voter = PatchVoter(embedded.grid, parameters.step, parameters.patch)
    rows, columns = (
        np.concatenate([[0], lines.clip(0, length), [length]])
        for lines, length in ((voter.lines_y, height), (voter.lines_x, width))
    )
    strip = max(1, _STRIP_PIXELS // width)
    for first, block in voter.count(labels, soft):
        for i, cells in enumerate(block, first):
            line = np.repeat(cells, np.diff(columns))
            for y in range(rows[i], rows[i + 1], strip):
                m = min(strip, int(rows[i + 1]) - y)
                yield np.where(tissue.crop(y, 0, m, width, mpp), line, 0).astype(line.dtype)
