"""The grid of tiles over a slide: where each tile lies, what it overlaps, and which tiles hold tissue."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from fseg_jax.errors import InputError
from fseg_jax.numerics.areas import summed_area_table

MAX_TILE = 8192  # pixels of a tile's side: a batch of them must fit into memory


@dataclass(frozen=True)
class TileGrid:
    """Square tiles over a slide of ``height × width`` pixels (at the working mpp), each overlapping its
    neighbours.

    A tile of ``tile`` pixels carries ``halo`` pixels on each side; what is left in the middle, its core of
    ``pitch`` pixels, belongs to it alone, and the cores cover the slide. Tile, halo and pitch are whole
    tokens of ``stride`` pixels; the outermost tiles reach past the slide.
    """

    height: int
    width: int
    tile: int
    halo: int
    stride: int

    def __post_init__(self) -> None:
        if self.tile % self.stride or self.halo % self.stride:
            raise InputError(
                f"a tile of {self.tile} pixels with a halo of {self.halo}: both must be multiples of the "
                f"encoder's stride, {self.stride}"
            )
        if not self.stride <= self.halo <= self.tile // 4:
            raise InputError(
                f"a halo of {self.halo} pixels for tiles of {self.tile}: it must be between one token "
                f"({self.stride}) and a quarter of the tile ({self.tile // 4})"
            )

    @property
    def pitch(self) -> int:
        return self.tile - 2 * self.halo

    @property
    def rows(self) -> int:
        return -(-self.height // self.pitch)

    @property
    def columns(self) -> int:
        return -(-self.width // self.pitch)

    def box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """``(y, x, height, width)`` of a whole tile, halo included; y and x may be negative."""
        return row * self.pitch - self.halo, column * self.pitch - self.halo, self.tile, self.tile

    def core(self, row: int, column: int) -> tuple[int, int, int, int]:
        """``(y, x, height, width)`` of what belongs to the tile alone, clipped to the slide."""
        y, x = row * self.pitch, column * self.pitch
        return y, x, min(self.pitch, self.height - y), min(self.pitch, self.width - x)


def make_grid(height: int, width: int, stride: int, tile: int, halo: float = 1 / 16) -> TileGrid:
    """Lay tiles of ``tile`` pixels over a slide, with a halo that is a fraction of the tile and one token at
    least.
    """
    if not 0 <= halo <= 0.25:
        raise InputError(f"a halo of {halo:g} of the tile: choose a fraction between 0 and 0.25")
    if tile > MAX_TILE:
        raise InputError(f"tiles of {tile} pixels: choose {MAX_TILE} at most")
    if tile < 4 * stride:
        raise InputError(f"tiles of {tile} pixels: an encoder of stride {stride} needs {4 * stride} at least")
    tokens = min(max(1, round(halo * tile / stride)), tile // 4 // stride)
    return TileGrid(height, width, tile, tokens * stride, stride)


def find_tissue_tiles(
    grid: TileGrid, mask: Bool[np.ndarray, "h w"], mask_mpp: float, mpp: float
) -> Bool[np.ndarray, "rows columns"]:
    """Say which tiles hold any tissue in their core, given a mask of the whole slide at its own
    resolution.
    """
    table = summed_area_table(mask)

    def edges(n: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
        scale = grid.pitch * mpp / mask_mpp
        low = np.floor(np.arange(n) * scale).astype(int).clip(0, limit - 1)
        high = np.ceil(np.arange(1, n + 1) * scale).astype(int).clip(1, limit)
        return low, np.maximum(high, low + 1)

    (top, bottom), (left, right) = edges(grid.rows, mask.shape[0]), edges(grid.columns, mask.shape[1])
    count = table[bottom][:, right] - table[top][:, right] - table[bottom][:, left] + table[top][:, left]
    return count > 0
