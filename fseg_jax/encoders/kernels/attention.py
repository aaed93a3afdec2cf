"""Attention over the tokens of an image, by the fastest way on each platform and in bounded memory.

A GPU takes cuDNN's fused kernel where it has one. Elsewhere scores are held for some queries at a time: at
4,096 tokens, those of all queries are most of a transformer's memory.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from fseg_jax.encoders.kernels.products import choose_precision

MOST_QUERIES = 512  # whose scores are held at once
BLOCK = 128  # queries at a time where there are more
_CUDNN_CHANNELS = 128  # of a head, at most


def attend(
    q: Float[Array, "b m heads d"],
    k: Float[Array, "b n heads d"],
    v: Float[Array, "b n heads d"],
    dtype: DTypeLike,
    mask: Bool[Array, "b n"] | None = None,
) -> Float[Array, "b m heads d"]:
    """Compute softmax(q·kᵀ / √d) · v over the tokens of ``mask``, in ``dtype``.

    Operands of products are ``dtype``, scores and softmax are float32.
    """
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    if mask is None and q.shape == k.shape and has_cudnn(jnp.dtype(dtype), q.shape[-1]):
        by_cudnn = partial(jax.nn.dot_product_attention, implementation="cudnn")
        fused: Array = lax.platform_dependent(q, k, v, cuda=by_cudnn, default=attend_in_blocks)
        return fused
    return attend_in_blocks(q, k, v, mask)


@cache
def has_cudnn(dtype: jnp.dtype, channels: int) -> bool:
    """Whether this process's GPU has cuDNN's attention for heads of these channels: compile one, to see."""
    if jax.default_backend() != "gpu" or dtype != jnp.bfloat16 or channels % 8 or channels > _CUDNN_CHANNELS:
        return False
    x = jax.ShapeDtypeStruct((1, 16, 1, channels), dtype)
    try:
        jax.jit(partial(jax.nn.dot_product_attention, implementation="cudnn")).lower(x, x, x).compile()
    except (RuntimeError, ValueError):  # no cuDNN, one that is too old, or a GPU that is
        return False
    return True


def attend_in_blocks(
    q: Float[Array, "b m heads d"],
    k: Float[Array, "b n heads d"],
    v: Float[Array, "b n heads d"],
    mask: Bool[Array, "b n"] | None = None,
) -> Float[Array, "b m heads d"]:
    """Attend as ``attend`` does, some queries at a time where there are many."""
    m = q.shape[1]
    rows = None if mask is None else mask[:, None]  # the same keys for every query
    # Heads before tokens: each product is of whole matrices, and takes a CPU two fifths of the time.
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    if m <= MOST_QUERIES:
        return jnp.swapaxes(attend_whole(q, k, v, rows), 1, 2)
    blocks = -(-m // BLOCK)
    q = jnp.pad(q, ((0, 0), (0, 0), (0, blocks * BLOCK - m), (0, 0)))
    q = jnp.moveaxis(q.reshape(*q.shape[:2], blocks, BLOCK, -1), 2, 0)
    attended = lax.map(lambda block: attend_whole(block, k, v, rows), q)
    attended = jnp.moveaxis(attended, 0, 2)
    attended = attended.reshape(*attended.shape[:2], blocks * BLOCK, -1)[:, :, :m]
    return jnp.swapaxes(attended, 1, 2)


def attend_whole(
    q: Float[Array, "b heads m d"],
    k: Float[Array, "b heads n d"],
    v: Float[Array, "b heads n d"],
    mask: Bool[Array, "b #m n"] | None,
) -> Float[Array, "b heads m d"]:
    """Attend with heads before tokens, all scores at once; ``mask`` is of the keys that a query sees."""
    multiply = partial(jnp.einsum, precision=choose_precision(q.dtype), preferred_element_type=jnp.float32)
    scores = multiply("bhmd,bhnd->bhmn", q, k) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask[:, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return multiply("bhmn,bhnd->bhmd", weights, v).astype(q.dtype)
