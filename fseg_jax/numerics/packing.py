"""Work that only some rows need, done for those alone, in arrays of one size: nothing is compiled twice."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

Result = TypeVar("Result", bound=Array | tuple[Array, ...])

LEAST = 64  # rows at a time


def packed(
    f: Callable[[Int[Array, " m"]], Result], rest: Bool[Array, " n"], result: Result, *, share: float = 0.0
) -> Result:
    """The result, an array ``(n, …)`` or several, with ``f(rows)`` in place of the rows that are in ``rest``:
    of all rows ``share`` at a time, and ``LEAST`` at the least.
    """
    n = rest.shape[0]
    size = min(n, max(int(n * share), LEAST))
    order, total = jnp.argsort(~rest, stable=True), jnp.sum(rest)

    def body(state: tuple) -> tuple:
        done, result = state
        # The last part is moved back to end with the rows: what it shares with others comes out the same.
        rows = jax.lax.dynamic_slice(order, (jnp.minimum(done, n - size),), (size,))
        at = jnp.where(rest[rows], rows, n)
        put = jax.tree.map(lambda old, new: old.at[at].set(new, mode="drop"), result, f(rows))
        return done + size, put

    return jax.lax.while_loop(lambda state: state[0] < total, body, (0, result))[1]
