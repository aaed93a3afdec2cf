"""The precision of products, which is chosen as a network is traced.

Unless told otherwise, JAX has a GPU round operands of float32 to TF32, and a TPU to bfloat16.
"""

from contextlib import AbstractContextManager, nullcontext

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

_TF32 = "tensorfloat32"  # JAX's name of it


def trace_products(name: str) -> AbstractContextManager[None]:
    """Give float32 products that are traced within the context the precision of this name."""
    return jax.default_matmul_precision(_TF32) if name == "tf32" else nullcontext()


def choose_precision(dtype: DTypeLike) -> lax.Precision | None:
    """Choose the precision of a product with operands of a dtype, as ``trace_products`` says."""
    if jnp.dtype(dtype) != jnp.float32:
        return None
    asked = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return lax.Precision.HIGH if asked == _TF32 else lax.Precision.HIGHEST
