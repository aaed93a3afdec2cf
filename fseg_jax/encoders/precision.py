"""The precisions that an encoder's products can have, by name.

``float32`` is float32 on every device: a GPU rounds such operands to TF32 and a TPU to bfloat16 unless told
otherwise. ``tf32`` lets them: operands of 10 bits after the point on a GPU, of three parts of bfloat16 on a
TPU, float32 on a CPU. ``bfloat16`` stores kernels in bfloat16 and sums in float32.
"""

import logging
from functools import cache

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fseg_jax.encoders.kernels.processor import detect_processor
from fseg_jax.errors import InputError

# The dtype that kernels are stored in, by precision.
DTYPES: dict[str, DTypeLike] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "tf32": jnp.float32}

_log = logging.getLogger(__name__)


def parse_dtype(name: str) -> DTypeLike:
    """Look up the dtype of a precision's kernels; warn, once, where it is the slower one on this processor.

    Raises:
        InputError: the name is no precision of encoders.
    """
    if name not in DTYPES:
        raise InputError(f"no dtype {name!r} for an encoder: give one of {', '.join(DTYPES)}")
    if name == "bfloat16" and jax.default_backend() == "cpu" and not detect_processor().multiplies_bfloat16:
        _warn_slow(detect_processor().instruction_set)
    return DTYPES[name]


@cache
def _warn_slow(instruction_set: str) -> None:
    _log.warning(
        "bfloat16 takes longer than float32 on this processor (%s): float32 is the faster here",
        instruction_set,
    )
