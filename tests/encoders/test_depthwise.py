"""Depthwise convolutions as shifted products against XLA's own, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fseg_jax.encoders.efficientnet import Depthwise
from fseg_jax.encoders.layers import Conv


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["symmetric", "SAME"])
@pytest.mark.parametrize("side", [7, 12])
def test_equals_the_grouped_convolution(kernel, stride, padding, side):
    given = {"stride": stride, "padding": padding if padding == "SAME" else kernel // 2, "groups": 6}
    ours = Depthwise(6, 6, kernel, bias=False, rngs=nnx.Rngs(0), **given)
    theirs = Conv(6, 6, kernel, bias=False, rngs=nnx.Rngs(0), **given)
    x = jax.random.normal(jax.random.key(1), (2, side, side + 1, 6))
    y, pull = jax.vjp(ours, x)
    z, pull_theirs = jax.vjp(theirs, x)
    assert y.shape == z.shape
    np.testing.assert_allclose(y, z, atol=1e-5)
    np.testing.assert_allclose(pull(jnp.cos(z))[0], pull_theirs(jnp.cos(z))[0], atol=1e-5)
