"""Tokens of one tissue: how deep they lie, how much they differ from their neighbours, and which are pure."""

import numpy as np
import pytest

from fseg_jax.pipeline.pure_tokens import find_deep, find_pure, measure_change
from fseg_jax.slides.tissue import Tissue

pytestmark = pytest.mark.smoke


def test_deep_is_40_microns_from_the_nearest_glass_and_the_frame_is_no_border():
    rng = np.random.default_rng(0)
    mask = np.ones((60, 50), bool)
    mask[rng.integers(0, 60, 4), rng.integers(0, 50, 4)] = False
    deep = find_deep(Tissue(mask, 4.0))
    places = np.argwhere(np.ones_like(mask))
    nearest = np.linalg.norm(places[:, None] - np.argwhere(~mask)[None], axis=-1).min(1)
    np.testing.assert_array_equal(deep.mask, (nearest * 4 >= 40).reshape(mask.shape))
    assert deep.mpp == 4 and deep.mask[0].any() and deep.mask[:, -1].any()
    assert find_deep(Tissue(np.ones((3, 3), bool), 4.0)).mask.all()


def test_change_is_the_mean_distance_to_the_neighbours_as_unit_vectors():
    A = np.random.default_rng(0).random((4, 5, 7), np.float32)
    unit = A / np.linalg.norm(A, axis=-1, keepdims=True)
    change = measure_change(A)
    for y, x in np.ndindex(4, 5):
        near = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        near = [(i, j) for i, j in near if 0 <= i < 4 and 0 <= j < 5]
        expected = np.mean([np.linalg.norm(unit[y, x] - unit[place]) for place in near])
        assert change[y, x] == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(measure_change(A * np.float32(1e20)), change, rtol=1e-5)
    assert measure_change(A[:1, :1]) == 0


def test_pure_is_the_calmer_half_of_what_is_deep():
    rng = np.random.default_rng(0)
    deep, change = rng.random((20, 20)) < 0.5, rng.random((20, 20))
    pure = find_pure(deep, change)
    assert not (pure & ~deep).any()
    assert pure.sum() == -(-deep.sum() // 2)
    assert change[pure].max() < change[deep & ~pure].min()
    assert not find_pure(np.zeros(4, bool), change[0, :4]).any()
