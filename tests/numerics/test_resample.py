"""Overlapping tiles, split and blended, on hand-made fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fseg_jax.numerics import resample


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
        block = resample.blend(tiles, r, c, halo, field.shape[:2])
        expected = framed[r * pitch : r * pitch + pitch + 2, c * pitch : c * pitch + pitch + 2]
        np.testing.assert_allclose(block, expected, rtol=1e-5)


@pytest.mark.parametrize("frame", [1, 3, 6])
def test_a_wider_frame_holds_what_the_neighbours_have(frame):
    field = np.random.default_rng(0).random((19, 14, 3)).astype(np.float32)
    tiles = cut(field, 8, 2)
    framed = np.pad(field, ((frame, frame + 8), (frame, frame + 8), (0, 0)), mode="edge")
    for r, c in tiles:
        block = resample.blend(tiles, r, c, 2, field.shape[:2], frame)
        expected = framed[r * 8 : r * 8 + 8 + 2 * frame, c * 8 : c * 8 + 8 + 2 * frame]
        np.testing.assert_allclose(block, expected, rtol=1e-5)


def test_blending_is_bitwise_independent_of_order_and_continuous_across_the_seam():
    r = np.random.default_rng(0)
    tiles = {(y, x): r.random((8, 8, 2)).astype(np.float32) for y in range(3) for x in range(3)}
    shuffled = {key: tiles[key] for key in sorted(tiles, key=lambda key: (key[1] * 7 + key[0] * 5) % 9)}
    left, right = (resample.blend(tiles, 1, x, 2, (12, 12)) for x in (1, 2))
    assert (left == resample.blend(shuffled, 1, 1, 2, (12, 12))).all()
    # What one block calls its frame is what the other calls its own, so that labels meet without a seam.
    np.testing.assert_allclose(left[:, -2:], right[:, :2], rtol=1e-6)


def test_a_missing_neighbour_leaves_the_tile_as_it_is():
    tile = np.random.default_rng(0).random((8, 8, 2)).astype(np.float32)
    block = resample.blend({(1, 1): tile}, 1, 1, 2, (12, 12))
    np.testing.assert_allclose(block, tile[1:7, 1:7], rtol=1e-6)


@pytest.mark.parametrize(("n", "tile"), [(5, 32), (32, 32), (33, 32), (100, 32), (9, 4)])
def test_tiles_cover_an_axis_and_count_as_one_in_all(n, tile):
    total = np.zeros(n)
    for start, share in resample.split_axis(n, tile):
        assert start + len(share) <= n and len(share) == min(n, tile) and (share > 0).all()
        total[start : start + len(share)] += share
    np.testing.assert_allclose(total, 1, rtol=1e-6)


@pytest.mark.parametrize(("k", "stride"), [(1, 4), (9, 15), (40, 16), (300, 14)])
def test_an_accelerator_labels_as_a_cpu_does(k, stride):
    r = np.random.default_rng(k)
    W = r.random((k, 2, 5, 6), np.float32) * (r.random((k, 2, 5, 6)) < 0.2) * r.random((2, 5, 6)) ** 20
    W = jnp.asarray(W, jnp.float32)
    ways = resample._argmax_of_all, resample._argmax_of_candidates
    by_all, by_candidates = (np.asarray(jax.jit(way, static_argnums=1)(W, stride)) for way in ways)
    assert by_all.any() and by_all.shape == (2, 4 * stride, 5 * stride)
    np.testing.assert_array_equal(by_all, by_candidates)
