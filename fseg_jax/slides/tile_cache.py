"""Decoded tiles of a slide, shared by the threads that read it."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from fseg_jax.files.once import Once

_KEPT = 32 << 20  # bytes of tiles that are kept though no box is known to want them
_FEWEST = 4  # of them that are kept where they are large: those that meet in a corner
_MOST = 256 << 20  # bytes of tiles that are kept

Tile = UInt8[np.ndarray, "tile_height tile_width samples"]


class Span(NamedTuple):
    """The tiles of a level that a box touches."""

    level: int
    rows: range
    columns: range


class TileKey(NamedTuple):
    """Where a tile lies in a slide's file."""

    level: int
    row: int
    column: int


class TileCache:
    """Tiles, of which each is decoded once, however many threads want it at the same time.

    Boxes may be announced before they are read. Tiles are kept until the last such box that they belong to
    has been read; the others are dropped first, those that were not used for the longest time before all.
    """

    def __init__(self, grids: Mapping[int, tuple[int, int]]) -> None:
        """Make an empty cache for levels of so many rows and columns of tiles."""
        self._grids = grids
        self._wanted: dict[int, Int32[np.ndarray, "rows columns"]] = {}  # number of boxes to come, by level
        self._announced = 0  # lists of boxes
        self._kept: OrderedDict[TileKey, Tile] = OrderedDict()  # that boxes to come want
        self._spare: OrderedDict[TileKey, Tile] = OrderedDict()
        self._bytes = 0
        self._once: Once[TileKey, Tile] = Once(self._find, self._keep)
        self._lock = self._once.lock

    def read_tiles(
        self, span: Span, decode: Callable[[Sequence[TileKey]], Iterable[Tile]], together: int = 1
    ) -> dict[TileKey, Tile]:
        """Return the tiles of a span; those that nobody has decoded are decoded here.

        Args:
            span: The tiles.
            decode: Decodes tiles, in order.
            together: How many tiles at most are given to it at once.
        """
        keys = [TileKey(span.level, row, column) for row in span.rows for column in span.columns]
        return self._once.get(keys, decode, together)

    def _find(self, key: TileKey) -> Tile | None:
        if key in self._spare:
            self._spare.move_to_end(key)
            return self._spare[key]
        return self._kept.get(key)

    def _keep(self, key: TileKey, tile: Tile) -> None:
        (self._kept if self._is_wanted(key) else self._spare)[key] = tile
        self._bytes += tile.nbytes
        self._drop_tiles()

    def _is_wanted(self, key: TileKey) -> bool:
        return key.level in self._wanted and bool(self._wanted[key.level][key.row, key.column] > 0)

    def _drop_tiles(self) -> None:
        while len(self._spare) > _FEWEST and self._bytes > _KEPT:
            self._bytes -= self._spare.popitem(last=False)[1].nbytes
        for tiles in (self._spare, self._kept):
            while tiles and self._bytes > _MOST:
                self._bytes -= tiles.popitem(last=False)[1].nbytes

    def announce(self, spans: Sequence[Span]) -> None:
        """Say which boxes will be read; call ``release`` after each, and ``end`` after all or an error."""
        with self._lock:
            self._announced += 1
            for level, rows, columns in spans:
                if level not in self._wanted:
                    self._wanted[level] = np.zeros(self._grids[level], np.int32)
                self._wanted[level][rows.start : rows.stop, columns.start : columns.stop] += 1
            for key in [key for key in self._spare if self._is_wanted(key)]:
                self._kept[key] = self._spare.pop(key)

    def release(self, span: Span) -> None:
        """Say that an announced box has been read."""
        level, rows, columns = span
        with self._lock:
            wanted = self._wanted[level][rows.start : rows.stop, columns.start : columns.stop]
            wanted -= 1
            for row, column in np.argwhere(wanted == 0).tolist():
                key = TileKey(level, rows.start + row, columns.start + column)
                if key in self._kept:
                    self._spare[key] = self._kept.pop(key)
            self._drop_tiles()

    def end(self) -> None:
        """Say that no more boxes of one announcement will be read."""
        with self._lock:
            self._announced -= 1
            if not self._announced:
                self._wanted.clear()
                self._spare.update(self._kept)
                self._kept.clear()
                self._drop_tiles()

    def clear(self) -> None:
        """Forget all tiles."""
        with self._lock:
            self._kept.clear()
            self._spare.clear()
            self._bytes = 0
