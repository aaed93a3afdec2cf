"""Scales that bring sizes near one are powers of two."""

import jax.numpy as jnp
import numpy as np
import pytest

from fseg_jax.numerics.scaling import safe_scale

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_unsafe_sizes_are_scaled_by_powers_of_two(kind):
    sizes = np.array([0, 1, 1e-9, 4e9, 1e30, 1e-30, 3.4e38, 1.2e-38, np.inf, np.nan], np.float32)
    powers = np.asarray(safe_scale(kind(sizes)))
    assert (powers[[0, 1, 2, 3, 8, 9]] == 1).all()
    assert (np.frexp(powers)[0] == 0.5).all()  # a power of two, exactly
    assert ((sizes * powers)[4:8] >= 1).all() and ((sizes * powers)[4:8] < 32).all()
