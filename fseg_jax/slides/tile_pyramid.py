"""Boxes of a slide's levels, put together from the file's tiles, or chunks, that are decoded once."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, UInt8

from fseg_jax.slides.pixels import Box, compute_downsamples
from fseg_jax.slides.tile_cache import Span, Tile, TileCache, TileKey


class WrittenTiles(NamedTuple):
    """Which tiles of a slide's finest level were written.

    Attributes:
        written: True where one was.
        tile: (height, width) of a tile.
    """

    written: Bool[np.ndarray, "rows columns"]
    tile: tuple[int, int]

    def crop(
        self, box: Box, down: tuple[float, float], origin: tuple[int, int] = (0, 0)
    ) -> Bool[np.ndarray, "height width"]:
        """Tell which pixels of a box of a level have their centres in a tile that was written.

        Args:
            box: (y, x, height, width) in pixels of the level.
            down: Pixels of the finest level per pixel, along y and x.
            origin: (y, x) of the level's corner in the finest level.
        """
        rows, columns = (
            (((np.arange(at, at + n) + 0.5) * d + o) // side).astype(int).clip(0, count - 1)
            for at, n, d, o, side, count in zip(
                box[:2], box[2:], down, origin, self.tile, self.written.shape, strict=True
            )
        )
        return np.asarray(self.written[rows[:, None], columns])


class TiledLevel(Protocol):
    """One level of 8-bit samples, whose tiles several threads may decode at once.

    Attributes:
        shape: (height, width) of the level.
        samples: Number of channels.
        tile: (height, width) of a tile.
        rows: Number of tiles along y.
        columns: Number of tiles along x.
        mapped: The whole level (height, width, samples), mapped into memory; None where it is compressed.
        together: How many tiles are best decoded by one call.
    """

    shape: tuple[int, int]
    samples: int
    tile: tuple[int, int]
    rows: int
    columns: int
    mapped: np.ndarray | None
    together: int

    def decode(self, places: Sequence[tuple[int, int]]) -> Iterable[Tile]:
        """Decode the tiles at some rows and columns; at the lower and right edge they may be smaller."""

    def find_written(self) -> WrittenTiles | None:
        """Find which tiles the file holds; None where it holds all."""


class TilePyramid:
    """The levels of a slide of 8 bits, decoded tile by tile. Several threads may read it at once.

    It offers what ``pixels.Pixels`` says of reading; a reader derives from it.
    """

    def __init__(self, levels: Mapping[int, TiledLevel]) -> None:
        """Take levels by their numbers; level 0 is the finest."""
        self._tiled = levels
        self._cache = TileCache({number: (level.rows, level.columns) for number, level in levels.items()})

    def read(
        self, level: int, y: int, x: int, height: int, width: int
    ) -> UInt8[np.ndarray, "height width samples"]:
        """Decode a box that is inside a level."""
        source = self._tiled[level]
        if source.mapped is not None:
            return np.array(source.mapped[y : y + height, x : x + width], order="C")
        out = np.empty((height, width, source.samples), np.uint8)
        tile_height, tile_width = source.tile
        span = self._find_tiles(level, (y, x, height, width))
        for key, tile in self._cache.read_tiles(span, self._decode, source.together).items():
            top, left = key.row * tile_height, key.column * tile_width
            y0, y1 = max(y, top), min(y + height, top + tile_height)
            x0, x1 = max(x, left), min(x + width, left + tile_width)
            out[y0 - y : y1 - y, x0 - x : x1 - x] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
        return out

    def _decode(self, keys: Sequence[TileKey]) -> Iterable[Tile]:
        return self._tiled[keys[0].level].decode([(key.row, key.column) for key in keys])

    def _find_tiles(self, level: int, box: Box) -> Span:
        y, x, height, width = box
        tile_height, tile_width = self._tiled[level].tile
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

    @cached_property
    def written(self) -> WrittenTiles | None:
        """Which tiles of the finest level were written; None where all were."""
        return self._tiled[0].find_written()

    def read_scanned(
        self, level: int, y: int, x: int, height: int, width: int
    ) -> Bool[np.ndarray, "height width"] | None:
        """Tell which pixels of a box are in tiles that were written; None where all tiles were."""
        if self.written is None:
            return None
        down = compute_downsamples(self._tiled[0].shape, self._tiled[level].shape)
        return self.written.crop((y, x, height, width), down)

    def close(self) -> None:
        """Forget what was decoded."""
        self._cache.clear()
