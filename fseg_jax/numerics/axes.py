"""What several methods do along one axis: unit length, the first true entry, the smallest entry."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fseg_jax.numerics.scaling import safe_scale

X = TypeVar("X", np.ndarray, Array)


def normalize(x: X) -> X:
    """Scale rows ``(…, c)`` to length one, zeros left as they are; NumPy in, NumPy out, and JAX likewise.

    >>> normalize(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    xp = x.__array_namespace__()
    x = x * safe_scale(xp.max(xp.abs(x), axis=-1, keepdims=True))
    result: X = x / xp.maximum(xp.linalg.vector_norm(x, axis=-1, keepdims=True), 1e-12)
    return result


def find_first(mask: Bool[Array, "..."], axis: int) -> Int[Array, "..."]:
    """Find the first true entry along an axis, which stays with length 1; the axis's length if there is none.

    These are plain reductions, which a CPU does in vectors; ``argmax`` is a reduction of pairs.
    """
    index = jax.lax.broadcasted_iota(jnp.int32, mask.shape, axis)
    return jnp.min(jnp.where(mask, index, mask.shape[axis]), axis, keepdims=True)


def find_smallest(x: Float[Array, "..."], axis: int) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
    """Find the index of the smallest entry along an axis, the first among equals, and its value.

    The axis is left out of both.
    """
    least = jnp.min(x, axis, keepdims=True)
    index = jnp.minimum(find_first(x == least, axis), x.shape[axis] - 1)  # NaN equals nothing
    return index.squeeze(axis), least.squeeze(axis)
