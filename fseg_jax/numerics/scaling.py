"""Powers of two that bring numbers of any size near one, so that their squares neither overflow nor vanish.

Scaling by a power of two changes no digit of a result.
"""

from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

X = TypeVar("X", np.ndarray, Array)

# Numbers from 2⁻³² to 2³² are safe: float32 holds their squares, and sums of as many as there are.
SAFE_EXPONENT = 32


def safe_exponent(size: X) -> X:
    """Find the even exponents of the powers of two that bring sizes near one.

    They are 0 for sizes that are safe, zero or not finite. So a safe result keeps every bit, and nothing
    finite overflows or vanishes.
    """
    xp, info = size.__array_namespace__(), jnp.finfo(size.dtype)
    bias = info.maxexp - 1
    exponent = ((size.view(_int_like(size.dtype)) >> info.nmant) & (2 * bias + 1)) - bias
    far = (abs(exponent) > SAFE_EXPONENT) & (exponent > -bias) & (exponent <= bias)
    result: X = xp.where(far, -(exponent // 2) * 2, 0)
    return result


def exact_exp2(exponent: X, dtype: np.dtype[Any] | type) -> X:
    """Compute two to the exponents without rounding; exponents beyond the range of ``dtype`` are clipped."""
    xp, info = exponent.__array_namespace__(), jnp.finfo(dtype)
    bias = info.maxexp - 1
    biased = xp.clip(exponent, 2 - bias, bias - 1).astype(_int_like(dtype)) + bias
    result: X = (biased << info.nmant).view(np.dtype(dtype))
    return result


def safe_scale(size: X) -> X:
    """Find the powers of two that bring sizes near one; 1 for sizes that are safe, zero or not finite."""
    return exact_exp2(safe_exponent(size), size.dtype)


def is_safe_square(x: float | Float[Array, ""]) -> bool:
    """Test whether a square, or a mean of squares, is of safe numbers."""
    return 2.0 ** (-2 * SAFE_EXPONENT) <= float(x) <= 2.0 ** (2 * SAFE_EXPONENT)


def _int_like(dtype: np.dtype[Any] | type) -> np.dtype[Any]:
    return np.dtype(f"i{np.dtype(dtype).itemsize}")
