"""Work that only some rows need, done for those alone, in arrays of one size: nothing is compiled twice."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

Result = TypeVar("Result", bound=Array | tuple[Array, ...])

MIN_ROWS = 64  # rows at a time, at least


def recompute_rows(
    f: Callable[[Int[Array, " m"]], Result], mask: Bool[Array, " n"], result: Result, *, share: float = 0.0
) -> Result:
    """Replace the masked rows of a result, an array ``(n, …)`` or several, with ``f(rows)``.

    ``f`` gets ``share`` of all rows at a time, and ``MIN_ROWS`` at least.
    """
    n = mask.shape[0]
    size = min(n, max(int(n * share), MIN_ROWS))
    order, total = jnp.argsort(~mask, stable=True), jnp.sum(mask)

    def body(state: tuple[Int[Array, ""], Result]) -> tuple[Int[Array, ""], Result]:
        done, result = state
        # The last part is moved back to end with the rows: rows that it shares with the part before come out
        # the same.
        rows = jax.lax.dynamic_slice(order, (jnp.minimum(done, n - size),), (size,))
        at = jnp.where(mask[rows], rows, n)
        updated = jax.tree.map(lambda old, new: old.at[at].set(new, mode="drop"), result, f(rows))
        return done + size, updated

    state: tuple[Int[Array, ""], Result] = jax.lax.while_loop(
        lambda state: state[0] < total, body, (jnp.asarray(0), result)
    )
    return state[1]
