"""Overlapping tiles, split and blended, on hand-made fields."""

import numpy as np
import pytest

from fseg_jax.numerics import blending

Tiles = dict[tuple[int, int], np.ndarray]


def blend(
    tiles: Tiles, row: int, column: int, halo: int, shape: tuple[int, int], frame: int = 1
) -> np.ndarray:
    """One tile, blended with the others."""
    return blend_all(tiles, [(row, column)], halo, shape, frame)[0]


def blend_all(tiles: Tiles, chosen: list, halo: int, shape: tuple[int, int], frame: int) -> np.ndarray:
    t, _, k = next(iter(tiles.values())).shape
    pitch, slots = t - 2 * halo, {tile: slot for slot, tile in enumerate(tiles)}
    ring = blending.store_tiles(
        blending.make_ring(len(tiles), t, k), np.stack(list(tiles.values())), 0, halo=halo
    )
    steps = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    near = [[slots.get((row + y, column + x), len(tiles)) for y, x in steps] for row, column in chosen]
    rows, columns = (
        np.stack([blending.clip_to_grid(tile[axis], pitch, frame, shape[axis]) for tile in chosen])
        for axis in (0, 1)
    )
    block = blending.blend_tiles(ring, np.array(near, np.int32), rows, columns, halo=halo, frame=frame)
    return np.asarray(block)


def blend_plainly(
    tiles: Tiles, row: int, column: int, halo: int, shape: tuple[int, int], frame: int
) -> np.ndarray:
    """The mean of all tiles over a canvas of the whole grid, each counting by a ramp, and a box of it."""
    t, _, k = next(iter(tiles.values())).shape
    pitch = t - 2 * halo
    ramp = np.minimum((np.minimum(np.arange(t), np.arange(t)[::-1]) + 0.5) / (2 * halo), 1).astype(np.float32)
    share = (ramp[:, None] * ramp)[..., None]
    side = (max(shape) // pitch + 4) * pitch  # a row of tiles to each side of the grid
    total, weight = np.zeros((side, side, k), np.float32), np.zeros((side, side, 1), np.float32)
    for y, x in sorted(tiles):
        if abs(y - row) <= 1 and abs(x - column) <= 1:
            at = np.s_[(y + 1) * pitch - halo :, (x + 1) * pitch - halo :]
            total[at][:t, :t] += share * tiles[y, x]
            weight[at][:t, :t] += share
    mean = np.divide(total, weight, out=total, where=weight > 0)
    rows, columns = (
        np.clip(np.arange(n * pitch - frame, (n + 1) * pitch + frame), 0, size - 1) + pitch
        for n, size in zip((row, column), shape, strict=True)
    )
    return mean[rows][:, columns]


@pytest.mark.parametrize(("tokens", "halo", "frame", "k"), [(8, 2, 1, 3), (14, 1, 5, 20), (12, 3, 7, 1)])
def test_tiles_are_blended_to_the_bit_of_plain_arithmetic_in_any_batch(tokens, halo, frame, k):
    r = np.random.default_rng(0)
    pitch = tokens - 2 * halo
    tiles = {
        (y, x): r.random((tokens, tokens, k), np.float32)
        for y in range(4)
        for x in range(5)
        if r.random() < 0.8
    }
    shape = (4 * pitch - 1, 5 * pitch - 2)
    chosen = sorted(tiles)
    plain = np.stack([blend_plainly(tiles, *tile, halo, shape, frame) for tile in chosen])
    assert np.array_equal(blend_all(tiles, chosen, halo, shape, frame), plain)
    assert np.array_equal(blend(tiles, *chosen[3], halo, shape, frame), plain[3])


def cut(field: np.ndarray, pitch: int, halo: int) -> dict[tuple[int, int], np.ndarray]:
    """Tiles of one global field, as if every tile saw the same thing."""
    padded = np.pad(field, ((halo, halo + pitch), (halo, halo + pitch), (0, 0)), mode="edge")
    rows, columns = (-(-n // pitch) for n in field.shape[:2])
    t = pitch + 2 * halo
    return {
        (r, c): padded[r * pitch : r * pitch + t, c * pitch : c * pitch + t]
        for r in range(rows)
        for c in range(columns)
    }


@pytest.mark.parametrize(("pitch", "halo"), [(6, 1), (4, 2), (8, 2)])
def test_blending_agreeing_tiles_changes_nothing(pitch, halo):
    field = np.random.default_rng(0).random((19, 14, 3)).astype(np.float32)
    tiles = cut(field, pitch, halo)
    framed = np.pad(field, ((1, 1 + pitch), (1, 1 + pitch), (0, 0)), mode="edge")
    for (r, c), _ in tiles.items():
        block = blend(tiles, r, c, halo, field.shape[:2])
        expected = framed[r * pitch : r * pitch + pitch + 2, c * pitch : c * pitch + pitch + 2]
        np.testing.assert_allclose(block, expected, rtol=1e-5)


@pytest.mark.parametrize("frame", [1, 3, 6])
def test_a_wider_frame_holds_what_the_neighbours_have(frame):
    field = np.random.default_rng(0).random((19, 14, 3)).astype(np.float32)
    tiles = cut(field, 8, 2)
    framed = np.pad(field, ((frame, frame + 8), (frame, frame + 8), (0, 0)), mode="edge")
    for r, c in tiles:
        block = blend(tiles, r, c, 2, field.shape[:2], frame)
        expected = framed[r * 8 : r * 8 + 8 + 2 * frame, c * 8 : c * 8 + 8 + 2 * frame]
        np.testing.assert_allclose(block, expected, rtol=1e-5)


def test_blending_is_bitwise_independent_of_order_and_continuous_across_the_seam():
    r = np.random.default_rng(0)
    tiles = {(y, x): r.random((8, 8, 2)).astype(np.float32) for y in range(3) for x in range(3)}
    shuffled = {key: tiles[key] for key in sorted(tiles, key=lambda key: (key[1] * 7 + key[0] * 5) % 9)}
    left, right = (blend(tiles, 1, x, 2, (12, 12)) for x in (1, 2))
    assert (left == blend(shuffled, 1, 1, 2, (12, 12))).all()
    # What one block calls its frame is what the other calls its own, so that labels meet without a seam.
    np.testing.assert_allclose(left[:, -2:], right[:, :2], rtol=1e-6)


def test_a_missing_neighbour_leaves_the_tile_as_it_is():
    tile = np.random.default_rng(0).random((8, 8, 2)).astype(np.float32)
    block = blend({(1, 1): tile}, 1, 1, 2, (12, 12))
    np.testing.assert_allclose(block, tile[1:7, 1:7], rtol=1e-6)


@pytest.mark.parametrize(("n", "tile"), [(5, 32), (32, 32), (33, 32), (100, 32), (9, 4)])
def test_tiles_cover_an_axis_and_count_as_one_in_all(n, tile):
    total = np.zeros(n)
    for start, share in blending.split_axis(n, tile):
        assert start + len(share) <= n and len(share) == min(n, tile) and (share > 0).all()
        total[start : start + len(share)] += share
    np.testing.assert_allclose(total, 1, rtol=1e-6)
