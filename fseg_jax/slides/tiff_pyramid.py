"""Boxes of the levels of a TIFF, put together from tiles that are decoded once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from jaxtyping import UInt8

from fseg_jax.slides.pixels import Box
from fseg_jax.slides.tiff_tiles import TiffTiles
from fseg_jax.slides.tile_cache import Span, Tile, TileCache, TileKey


class TiffPyramid:
    """The levels of an 8-bit TIFF. Several threads may read it at once."""

    def __init__(self, levels: Mapping[int, TiffTiles]) -> None:
        self._levels = levels
        self._cache = TileCache({number: (level.rows, level.columns) for number, level in levels.items()})

    def read(
        self, level: int, y: int, x: int, height: int, width: int
    ) -> UInt8[np.ndarray, "height width samples"]:
        """Decode a box that is inside a level."""
        source = self._levels[level]
        if source.mapped is not None:
            return np.array(source.mapped[y : y + height, x : x + width], order="C")
        out = np.empty((height, width, source.samples), np.uint8)
        tile_height, tile_width = source.tile
        tiles = self._cache.read_tiles(self._find_tiles(level, (y, x, height, width)), self._decode)
        for key, tile in tiles.items():
            top, left = key.row * tile_height, key.column * tile_width
            y0, y1 = max(y, top), min(y + height, top + tile_height)
            x0, x1 = max(x, left), min(x + width, left + tile_width)
            out[y0 - y : y1 - y, x0 - x : x1 - x] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
        return out

    def _decode(self, key: TileKey) -> Tile:
        return self._levels[key.level].decode(key.row, key.column)

    def _find_tiles(self, level: int, box: Box) -> Span:
        y, x, height, width = box
        tile_height, tile_width = self._levels[level].tile
        rows = range(y // tile_height, (y + height - 1) // tile_height + 1)
        return Span(level, rows, range(x // tile_width, (x + width - 1) // tile_width + 1))

    @contextmanager
    def announce(self, level: int, boxes: Sequence[Box]) -> Iterator[Callable[[int], None]]:
        """Keep the tiles that boxes share until all have been read.

        Args:
            level: Level of the boxes.
            boxes: Boxes inside the level.

        Yields:
            A function to call with the number of each box that has been read.
        """
        spans = [self._find_tiles(level, box) for box in boxes]
        self._cache.announce(spans)
        try:
            yield lambda i: self._cache.release(spans[i])
        finally:
            self._cache.end()

    def close(self) -> None:
        """Forget what was decoded."""
        self._cache.clear()
