"""What several methods do along one axis: sizes and lengths, the first that is true, the smallest."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

X = TypeVar("X", np.ndarray, Array)

# Numbers from 2⁻³² to 2³² are ordinary: float32 holds their squares, and sums of as many as there are.
ORDINARY = 32


def ordinary_exponent(size: X) -> X:
    """The exponents, even, of the powers of two that bring sizes near one.

    They are 0 for what is ordinary, zero or not finite: scaling by these powers leaves every bit of an
    ordinary result as it is, and lets nothing finite overflow or vanish.
    """
    xp, about = size.__array_namespace__(), jnp.finfo(size.dtype)
    bias = about.maxexp - 1
    exponent = ((size.view(_integer(size.dtype)) >> about.nmant) & (2 * bias + 1)) - bias
    far = (abs(exponent) > ORDINARY) & (exponent > -bias) & (exponent <= bias)
    return xp.where(far, -(exponent // 2) * 2, 0)


def power_of_two(exponent: X, dtype: np.dtype | type) -> X:
    """Two to the exponents, exactly; those beyond what ``dtype`` holds are moved to what it does."""
    xp, about = exponent.__array_namespace__(), jnp.finfo(dtype)
    bias = about.maxexp - 1
    biased = xp.clip(exponent, 2 - bias, bias - 1).astype(_integer(dtype)) + bias
    return (biased << about.nmant).view(np.dtype(dtype))


def to_ordinary(size: X) -> X:
    """The powers of two that bring sizes near one; 1 for what is ordinary, zero or not finite."""
    return power_of_two(ordinary_exponent(size), size.dtype)


def is_ordinary_square(x: float | Float[Array, ""]) -> bool:
    """Whether a square, or a mean of squares, is of ordinary numbers."""
    return 2.0 ** (-2 * ORDINARY) <= float(x) <= 2.0 ** (2 * ORDINARY)


def _integer(dtype: np.dtype | type) -> np.dtype:
    return np.dtype(f"i{np.dtype(dtype).itemsize}")


def unit(x: X) -> X:
    """Rows ``(…, c)`` scaled to length one, zeros left as they are; of NumPy or of JAX, and the same back."""
    xp = x.__array_namespace__()
    x = x * to_ordinary(xp.max(xp.abs(x), axis=-1, keepdims=True))
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
