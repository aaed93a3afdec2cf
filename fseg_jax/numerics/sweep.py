"""A pass of coordinate descent over the rows of a factor: as a loop, and as one kernel for a TPU.

Minimise ½ tr(Fᵀ·G·F) − tr(Nᵀ·F) over F ≥ 0, row by row (``nmf.py``). With a unit diagonal, row j becomes
max(target_j − step_j·F, 0), where it meets the rows before it updated. A row's work is too little for an
accelerator to be worth a call: the kernel holds some columns of F in fast memory, updates all rows, and
writes them once. Columns do not depend on each other.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

MOST_ROWS = 64  # that the kernel is written out for
_COLUMNS = 1024  # of a block


def sweep_in_loop(
    target: Float[Array, "k m"], step: Float[Array, "k k"], F: Float[Array, "k m"], passes: int
) -> Float[Array, "k m"]:
    """Update every row of F, one after another, some times over."""

    def row(i: Array, F: Array) -> Array:
        j = i % F.shape[0]
        along = jnp.matmul(step[j][None], F, precision="highest")[0]
        return F.at[j].set(jnp.maximum(target[j] - along, 0))

    swept: Array = jax.lax.fori_loop(0, passes * F.shape[0], row, F)
    return swept


def sweep_in_kernel(
    target: Float[Array, "k m"],
    step: Float[Array, "k k"],
    F: Float[Array, "k m"],
    passes: int,
    *,
    interpret: bool = False,
) -> Float[Array, "k m"]:
    """Update as ``sweep_in_loop`` does, by a Pallas kernel for a TPU; ``interpret`` runs it anywhere.

    With more than ``MOST_ROWS`` rows it is the loop.
    """
    k, m = F.shape
    if k > MOST_ROWS or not passes:
        return sweep_in_loop(target, step, F, passes)
    columns = m if m <= _COLUMNS else _COLUMNS
    block = pl.BlockSpec((k, columns), lambda i: (0, i))
    call = pl.pallas_call(
        partial(_update_rows, passes=passes),
        grid=(-(-m // columns),),
        in_specs=[pl.BlockSpec((k, k), lambda i: (0, 0)), block, block],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(F.shape, F.dtype),
        interpret=interpret,
    )
    swept: Array = call(step.T, target, F)
    return swept


Ref = Any  # a place in the kernel's memory


def _update_rows(steps_ref: Ref, target_ref: Ref, F_ref: Ref, out_ref: Ref, *, passes: int) -> None:
    steps, target = steps_ref[...], target_ref[...]

    def update(_: int | Array, F: Array) -> Array:
        place = jax.lax.broadcasted_iota(jnp.int32, F.shape, 0)
        for j in range(F.shape[0]):
            along = jnp.sum(steps[:, j : j + 1] * F, axis=0, keepdims=True)
            F = jnp.where(place == j, jnp.maximum(target[j : j + 1] - along, 0), F)
        return F

    out_ref[...] = jax.lax.fori_loop(0, passes, update, F_ref[...])
