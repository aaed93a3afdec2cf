"""The grid of overlapping tiles over a slide, and which of them hold tissue."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from fseg_jax.errors import InputError
from fseg_jax.numerics.areas import summed_area_table

MAX_TILE = 8192  # pixels of a tile's side: a batch of them must fit into memory


@dataclass(frozen=True)
class TileGrid:
    """Square tiles over a slide, each overlapping its neighbours.

    A tile is a core and a halo around it. The cores cover the slide and do not overlap. The outermost tiles
    reach past the slide. All sizes are in pixels at the working mpp.

    Attributes:
        height: Pixels of the slide along y.
        width: Pixels of the slide along x.
        tile: Pixels of a tile's side, halo included; a multiple of ``stride``.
        halo: Pixels of the halo on each side; a multiple of ``stride``.
        stride: Pixels of a token's side.
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
        """Pixels of a core's side, which is the distance between two tiles."""
        return self.tile - 2 * self.halo

    @property
    def rows(self) -> int:
        """Number of tiles along y."""
        return -(-self.height // self.pitch)

    @property
    def columns(self) -> int:
        """Number of tiles along x."""
        return -(-self.width // self.pitch)

    def locate_tile(self, row: int, column: int) -> tuple[int, int, int, int]:
        """Locate a whole tile, halo included: (y, x, height, width); y and x may be negative."""
        return row * self.pitch - self.halo, column * self.pitch - self.halo, self.tile, self.tile

    def locate_core(self, row: int, column: int) -> tuple[int, int, int, int]:
        """Locate a tile's core, clipped to the slide: (y, x, height, width)."""
        y, x = row * self.pitch, column * self.pitch
        return y, x, min(self.pitch, self.height - y), min(self.pitch, self.width - x)


def make_grid(height: int, width: int, stride: int, tile: int, halo: float = 1 / 16) -> TileGrid:
    """Lay a grid of tiles over a slide.

    Args:
        height: Pixels of the slide along y.
        width: Pixels of the slide along x.
        stride: Pixels of a token's side.
        tile: Pixels of a tile's side.
        halo: Fraction of the tile that is halo on each side, rounded to tokens; at least one token.

    Raises:
        InputError: Tile and halo do not fit each other or the stride.
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
    """Find the tiles whose core holds any tissue.

    Args:
        grid: The tiles.
        mask: The tissue of the whole slide.
        mask_mpp: µm per mask pixel.
        mpp: µm per pixel of the grid.
    """
    table = summed_area_table(mask)

    def find_edges(n: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the first mask pixel of each of ``n`` cores, and the one after the last."""
        scale = grid.pitch * mpp / mask_mpp
        low = np.floor(np.arange(n) * scale).astype(int).clip(0, limit - 1)
        high = np.ceil(np.arange(1, n + 1) * scale).astype(int).clip(1, limit)
        return low, np.maximum(high, low + 1)

    top, bottom = find_edges(grid.rows, mask.shape[0])
    left, right = find_edges(grid.columns, mask.shape[1])
    count = table[bottom][:, right] - table[top][:, right] - table[bottom][:, left] + table[top][:, left]
    return np.asarray(count > 0)
