"""What is done along one axis, beside NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fseg_jax.numerics.axes import find_first, find_smallest, normalize

SHAPES = st.sampled_from([(1, 1), (1, 6), (5, 1), (4, 7)])  # a program each


@settings(max_examples=50, deadline=None)
@given(arrays(np.bool_, SHAPES), st.sampled_from((0, 1)))
def test_first_is_argmax_and_the_length_where_none_is_true(mask, axis):
    index = np.asarray(find_first(jnp.asarray(mask), axis))
    expected = np.where(mask.any(axis), mask.argmax(axis), mask.shape[axis])
    assert index.shape[axis] == 1
    np.testing.assert_array_equal(index.squeeze(axis), expected)


@settings(max_examples=50, deadline=None)
@given(arrays(np.int8, SHAPES), st.sampled_from((0, 1)))
def test_smallest_is_argmin_and_the_first_of_several(x, axis):
    x = x.astype(np.float32)
    at, least = find_smallest(jnp.asarray(x), axis)
    np.testing.assert_array_equal(at, x.argmin(axis))
    np.testing.assert_array_equal(least, x.min(axis))


def test_smallest_of_nan_is_a_place_there_is():
    at, least = find_smallest(jnp.full((2, 3), jnp.nan), 1)
    assert at.tolist() == [2, 2] and np.isnan(least).all()


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_a_normalized_row_has_length_one_stays_of_its_kind_and_leaves_zeros(kind):
    x = kind(np.array([[[3.0, 4.0], [0.0, 0.0]]], np.float32))
    scaled = normalize(x)
    assert type(scaled) is type(x) and scaled.dtype == x.dtype
    np.testing.assert_allclose(scaled, [[[0.6, 0.8], [0.0, 0.0]]], rtol=1e-6)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_a_normalized_row_has_length_one_whatever_the_size(kind):
    x = np.array([[3.0, 4.0], [3e30, 4e30], [3e-30, 4e-30], [1e38, 0.0], [2e-38, 0.0]], np.float32)
    expected = [[0.6, 0.8], [0.6, 0.8], [0.6, 0.8], [1.0, 0.0], [1.0, 0.0]]
    np.testing.assert_allclose(normalize(kind(x)), expected, rtol=1e-6)
