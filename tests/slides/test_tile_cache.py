"""Tiles are decoded once while boxes that share them are read, by one thread or by many."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile

from fseg_jax.slides import tiff_tiles, tile_cache
from fseg_jax.slides.reader import compute_shape, open_slide, read_batches
from fseg_jax.slides.tile_cache import Span, TileCache, TileKey
from fseg_jax.slides.tiles import make_grid

SPAN = Span(0, range(4), range(4))
KEYS = [TileKey(0, row, column) for row in SPAN.rows for column in SPAN.columns]
SIZE = 8 * 8 * 3


def make_tile(key: TileKey) -> np.ndarray:
    return np.full((8, 8, 3), 64 * key.level + 8 * key.row + key.column, np.uint8)


@pytest.mark.smoke
@pytest.mark.parametrize("together", [1, 5])
def test_threads_that_want_a_tile_at_once_decode_it_once(together: int) -> None:
    cache, decoded = TileCache({0: (4, 4)}), []

    def decode(keys: Sequence[TileKey]) -> Iterator[np.ndarray]:
        for key in keys:
            decoded.append(key)
            time.sleep(0.002)
            yield make_tile(key)

    start = threading.Barrier(8)

    def read(first: int) -> dict[TileKey, np.ndarray]:
        start.wait()
        return cache.read_tiles(Span(0, range(first % 4, 4), range(4)), decode, together)

    with ThreadPoolExecutor(8) as pool:
        for first, tiles in enumerate(pool.map(read, range(8))):
            assert set(tiles) == {key for key in KEYS if key.row >= first % 4}
            for key, tile in tiles.items():
                np.testing.assert_array_equal(tile, make_tile(key))
    assert sorted(decoded) == KEYS


def test_an_error_reaches_all_who_wait_and_is_not_kept() -> None:
    cache, start = TileCache({0: (4, 4)}), threading.Barrier(4)
    fails = True

    def decode(keys: Sequence[TileKey]) -> Iterator[np.ndarray]:
        time.sleep(0.02)
        if fails:
            raise OSError("bad tile")
        return map(make_tile, keys)

    def read() -> dict[TileKey, np.ndarray]:
        start.wait()
        return cache.read_tiles(Span(0, range(1), range(1)), decode)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(read) for _ in range(4)]:
            with pytest.raises(OSError, match="bad tile"):
                future.result()
    fails = False
    assert len(cache.read_tiles(SPAN, decode)) == 16


def test_tiles_are_kept_for_announced_boxes_and_else_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tile_cache, "_KEPT", 3 * SIZE)
    monkeypatch.setattr(tile_cache, "_MOST", 12 * SIZE)
    monkeypatch.setattr(tile_cache, "_FEWEST", 0)
    decoded: list[TileKey] = []

    def decode(keys: Sequence[TileKey]) -> list[np.ndarray]:
        decoded.extend(keys)
        return list(map(make_tile, keys))

    cache = TileCache({0: (4, 4), 1: (2, 2)})
    # Two rows and two columns of tiles, each box sharing a row of tiles with the one below it.
    boxes = [
        Span(0, range(row, row + 2), range(column, column + 2)) for row in (0, 1, 2) for column in (0, 2)
    ]
    cache.read_tiles(Span(1, range(1), range(2)), decode)
    cache.announce(boxes)
    for box in boxes:
        cache.read_tiles(box, decode)
        cache.release(box)
        assert cache._bytes <= 6 * SIZE
    cache.end()
    assert sorted(decoded) == [*KEYS, TileKey(1, 0, 0), TileKey(1, 0, 1)]
    assert cache._bytes <= 3 * SIZE
    cache.read_tiles(Span(1, range(1), range(1)), decode)  # that one went before those of the boxes
    assert len(decoded) == 19
    cache.announce([SPAN])
    cache.read_tiles(SPAN, decode)
    assert cache._bytes <= 12 * SIZE  # even if they are wanted
    cache.end()
    assert cache._bytes <= 3 * SIZE


def test_an_error_is_of_its_tile_alone() -> None:
    """Who waits for another tile that was asked for with it decodes that one."""
    cache, has_begun = TileCache({0: (4, 4)}), threading.Event()

    def decode_none(keys: Sequence[TileKey]) -> Iterator[np.ndarray]:
        has_begun.set()
        time.sleep(0.05)
        raise OSError("bad tile")
        yield

    with ThreadPoolExecutor(1) as pool:
        failing = pool.submit(cache.read_tiles, Span(0, range(1), range(2)), decode_none, 2)
        has_begun.wait()
        assert len(cache.read_tiles(Span(0, range(1), range(1, 2)), lambda keys: map(make_tile, keys))) == 1
        with pytest.raises(OSError, match="bad tile"):
            failing.result()


def test_tiles_that_lie_there_are_kept_for_boxes_announced_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tile_cache, "_KEPT", 16 * SIZE)
    monkeypatch.setattr(tile_cache, "_FEWEST", 0)
    decoded: list[TileKey] = []

    def decode(keys: Sequence[TileKey]) -> list[np.ndarray]:
        decoded.extend(keys)
        return list(map(make_tile, keys))

    cache, first = TileCache({0: (4, 4), 1: (4, 4)}), Span(0, range(1), range(1))
    cache.read_tiles(first, decode)
    cache.announce([first])
    cache.read_tiles(Span(1, range(4), range(4)), decode)
    cache.read_tiles(first, decode)
    assert len(decoded) == 17
    cache.end()


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("mpp", [1.0, 1.002, 0.5])
def test_tiles_with_halos_decode_nothing_twice(
    threads: int, mpp: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept is less than a row of boxes, and those that are being read."""
    path = tmp_path / "a.ome.tif"
    image = np.random.default_rng(0).integers(0, 256, (900, 1100, 3), np.uint8)
    size = {f"PhysicalSize{axis}": 0.5 for axis in "XY"}
    tifffile.imwrite(
        path, image, tile=(64, 64), photometric="rgb", compression="zlib", metadata={"axes": "YXS", **size}
    )
    decoded: list[tuple[int, int]] = []
    decode = tiff_tiles.TiffTiles.decode_tile
    monkeypatch.setattr(
        tiff_tiles.TiffTiles,
        "decode_tile",
        lambda self, row, column: decoded.append((row, column)) or decode(self, row, column),
    )
    monkeypatch.setattr(tile_cache, "_KEPT", 8 * 64 * 64 * 3)
    monkeypatch.setattr(tile_cache, "_MOST", (45 + 36 * threads) * 64 * 64 * 3)
    with open_slide(path) as slide:
        grid = make_grid(*compute_shape(slide, mpp), 16, 128)
        boxes = [grid.locate_tile(y, x) for y in range(grid.rows) for x in range(grid.columns)]
        for _ in read_batches(slide, boxes, mpp, batch=4, threads=threads):
            pass
    assert sorted(decoded) == [(row, column) for row in range(15) for column in range(18)]
