"""What several methods do along one axis: lengths, the first that is true, the smallest."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

X = TypeVar("X", np.ndarray, Array)


def unit(x: X) -> X:
    """Rows ``(…, c)`` scaled to length one, zeros left as they are; of NumPy or of JAX, and the same back."""
    xp = x.__array_namespace__()
    return x / xp.maximum(xp.linalg.vector_norm(x, axis=-1, keepdims=True), 1e-12)


def first(here: Bool[Array, "..."], axis: int) -> Int[Array, "..."]:
    """Where the first true lies along an axis, which stays with a length of 1; the axis's length if none is.

    Plain reductions, which a CPU does in vectors, where ``argmax`` is one of pairs.
    """
    place = jax.lax.broadcasted_iota(jnp.int32, here.shape, axis)
    return jnp.min(jnp.where(here, place, here.shape[axis]), axis, keepdims=True)


def smallest(x: Float[Array, "..."], axis: int) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
    """Where the smallest lies along an axis, the first of several, and its value: the axis is left out."""
    least = jnp.min(x, axis, keepdims=True)
    at = jnp.minimum(first(x == least, axis), x.shape[axis] - 1)  # of NaN none is the least
    return at.squeeze(axis), least.squeeze(axis)
