"""Attention: JAX's own, whatever the number of queries at a time, and in bounded memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fseg_jax.encoders.kernels import attention

KEYS = jax.random.split(jax.random.key(0), 3)
Q, K, V = (3 * jax.random.normal(key, (2, 37, 3, 8)) for key in KEYS)
MASK = jnp.arange(37)[None] < jnp.array([[37], [20]])


@pytest.fixture
def few_at_a_time(monkeypatch):
    monkeypatch.setattr(attention, "MOST_QUERIES", 0)
    monkeypatch.setattr(attention, "BLOCK", 16)


@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 1e-5), (jnp.bfloat16, 8e-3)])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all tokens", "some tokens"])
@pytest.mark.usefixtures("few_at_a_time")
def test_in_blocks_it_is_jaxs(dtype, error, mask):
    jaxs = jax.nn.dot_product_attention(Q, K, V, mask=None if mask is None else mask[:, None, None])
    ours = attention.attend(Q, K, V, dtype, mask)
    assert ours.dtype == dtype
    assert jnp.linalg.norm(ours - jaxs) <= error * jnp.linalg.norm(jaxs)


@pytest.mark.usefixtures("few_at_a_time")
def test_one_query_attends_to_all_tokens():
    np.testing.assert_allclose(
        attention.attend(Q[:, :1], K, V, jnp.float32),
        jax.nn.dot_product_attention(Q[:, :1], K, V),
        rtol=1e-4,
        atol=1e-5,
    )


def test_scores_of_many_tokens_are_never_held_at_once():
    x = jax.ShapeDtypeStruct((1, 4096, 16, 64), jnp.bfloat16)
    program = jax.jit(lambda q, k, v: attention.attend(q, k, v, jnp.bfloat16)).lower(x, x, x).compile()
    scores = 16 * 4096**2 * 4
    assert program.memory_analysis().temp_size_in_bytes <= scores / 8


def test_a_gpu_without_cudnn_is_asked_once_and_attends_all_the_same(monkeypatch):
    """This process has no cuDNN: on a GPU it would take the way that every platform has."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    attention.has_cudnn.cache_clear()
    try:
        assert not attention.has_cudnn(jnp.dtype(jnp.bfloat16), 8)
        assert not attention.has_cudnn(jnp.dtype(jnp.float32), 8)
        assert attention.attend(Q, K, V, jnp.bfloat16).shape == Q.shape
    finally:
        attention.has_cudnn.cache_clear()
