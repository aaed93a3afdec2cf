"""Layers as an accelerator computes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import compute_outputs, read_fixture, relative_error
from scipy.special import ndtr

from fseg_jax.encoders.layers import gelu


def test_gelu_of_bfloat16_is_exact_but_for_a_quarter_of_its_rounding():
    x = np.unique(np.concatenate([np.linspace(-9, 9, 4001), [-300, 300]]).astype(jnp.bfloat16)).astype(float)
    exact = x * ndtr(x)
    error = np.abs(np.asarray(jax.jit(gelu)(jnp.asarray(x, jnp.bfloat16)), np.float64) - exact)
    assert (error <= np.maximum(np.abs(exact) * 2.0**-9, 8e-6) / 4).all()


@pytest.mark.parametrize("name", ["vit_layer_scale_patch16_resampled", "swin_timm"])
def test_bfloat16_stays_with_float32_as_an_accelerator_rounds(name, monkeypatch):
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arrays, default, **_: default(*arrays))
    theirs = read_fixture(name)
    for stage, output in compute_outputs(theirs.network(jnp.bfloat16), theirs.x).items():
        assert relative_error(output, theirs.stages[stage]) <= 2e-2, stage
