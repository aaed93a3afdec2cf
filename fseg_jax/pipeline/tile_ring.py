"""The W of a slide's latest tiles, on the device: those of the rows that are labelled, and of what is below.

Of a grid of c columns there are some 4·c tiles and a batch: at 1 µm per pixel, of a slide of 100,000² pixels
with tiles of 512 and k = 64, 0.3 GB. Nothing of it is copied to the host.
"""

import threading

import jax
import numpy as np
from jaxtyping import Float, Int

from fseg_jax.numerics import blending
from fseg_jax.pipeline.plan import Plan

_ROWS_ABOVE = 3  # rows of tiles that are still wanted, above the one that is being factorized


class TileRing:
    """The W of a slide's latest tiles, in a ring of slots on the device.

    Tiles are stored in the order of the plan. A row can be blended until tiles of the fourth row below it are
    stored; another thread may do so.

    Attributes:
        slots: Tiles that there is room for, from the first batch on.
    """

    def __init__(self, plan: Plan, k: int) -> None:
        """Number the tiles of a slide, each of which will have contributions of k clusters."""
        self._plan, grid = plan, plan.grid
        self._halo, self._pitch = grid.halo // grid.stride, grid.pitch // grid.stride
        self._shape = (-(-grid.height // grid.stride), -(-grid.width // grid.stride))
        self._number = np.full((grid.rows + 2, grid.columns + 2), -1)  # with a frame; −1: no tile
        for number, (row, column) in enumerate(plan.tiles()):
            self._number[row + 1, column + 1] = number
        self.slots = 0
        self._ring = blending.make_ring(0, grid.tile // grid.stride, k)
        self._lock = threading.Lock()  # what stores uses up the ring that another thread may be blending

    def store(self, W: Float[jax.Array, "b t t k"], first: int) -> None:
        """Store the next batch of tiles, of which the first is that of the plan with the number ``first``."""
        with self._lock:
            if not self.slots:
                batch, tokens, _, k = W.shape
                self.slots = _round_up(_count_wanted(self._plan, batch), batch)
                self._ring = blending.make_ring(self.slots, tokens, k)
            self._ring = blending.store_tiles(self._ring, W, first % self.slots, halo=self._halo)

    def blend(
        self, row: int, columns: Int[np.ndarray, " n"], batch: int, frame: int
    ) -> Float[jax.Array, "b p p k"]:
        """Blend some tiles of a row with their neighbours; those of the batch that are too many are 0."""
        near = np.full((batch, 9), self.slots, np.int32)
        taken = np.zeros((batch, self._pitch + 2 * frame), np.int32)
        for i, column in enumerate(columns):
            numbers = self._number[row : row + 3, column : column + 3].ravel()
            near[i] = np.where(numbers < 0, self.slots, numbers % self.slots)
            taken[i] = blending.clip_to_grid(int(column), self._pitch, frame, self._shape[1])
        rows = np.tile(blending.clip_to_grid(row, self._pitch, frame, self._shape[0]), (batch, 1))
        with self._lock:
            blocks: jax.Array = blending.blend_tiles(
                self._ring, near, rows, taken, halo=self._halo, frame=frame
            )
        return blocks


def _count_wanted(plan: Plan, batch: int) -> int:
    """Count the tiles that are wanted at once, at most, with those that are being stored."""
    rows = np.argwhere(plan.tissue_tiles)[::batch, 0]  # of the first tile of each batch
    before = np.concatenate([[0], np.cumsum(plan.tissue_tiles.sum(1))])  # tiles above each row
    first = np.arange(len(rows)) * batch
    return int((first + batch - before[np.maximum(rows - _ROWS_ABOVE, 0)]).max(initial=batch))


def _round_up(tiles: int, batch: int) -> int:
    """Round up to batches, by a quarter at most, so that slides of many sizes share a program."""
    batches = -(-tiles // batch)
    step = 1 << max(0, (batches - 1).bit_length() - 3)
    return -(-batches // step) * step * batch
