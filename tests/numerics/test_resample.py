"""The labels of pixels: an accelerator's way beside a CPU's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fseg_jax.numerics import resample


@pytest.mark.parametrize(("k", "stride"), [(1, 4), (9, 15), (40, 16), (300, 14)])
def test_an_accelerator_labels_as_a_cpu_does(k, stride):
    r = np.random.default_rng(k)
    W = r.random((k, 2, 5, 6), np.float32) * (r.random((k, 2, 5, 6)) < 0.2) * r.random((2, 5, 6)) ** 20
    W = jnp.asarray(W, jnp.float32)
    ways = resample._argmax_of_all, resample._argmax_of_candidates
    by_all, by_candidates = (np.asarray(jax.jit(way, static_argnums=1)(W, stride)) for way in ways)
    assert by_all.any() and by_all.shape == (2, 4 * stride, 5 * stride)
    np.testing.assert_array_equal(by_all, by_candidates)
