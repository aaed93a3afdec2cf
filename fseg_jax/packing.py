"""Work that only some rows need, done for those alone, in arrays of one size: nothing is compiled twice."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped


def packed(
    f: Callable[[Int[Array, " m"]], Shaped[Array, "m *row"]],
    rest: Bool[Array, " n"],
    size: int,
    result: Shaped[Array, "n *row"],
) -> Shaped[Array, "n *row"]:
    """The result with ``f(rows)`` in place of the rows that are in ``rest``, ``size`` rows at a time."""
    order, total, n = jnp.argsort(~rest, stable=True), jnp.sum(rest), rest.shape[0]

    def body(state: tuple) -> tuple:
        done, result = state
        rows = jax.lax.dynamic_slice(order, (jnp.minimum(done, n - size),), (size,))
        # The last rows of a part that is not full are done already, or need nothing: f says the same again.
        return done + size, result.at[rows].set(jnp.where(_like(rest[rows], result), f(rows), result[rows]))

    return jax.lax.while_loop(lambda state: state[0] < total, body, (0, result))[1]


def _like(rest: Bool[Array, " m"], result: Array) -> Array:
    return rest.reshape(-1, *(1,) * (result.ndim - 1))
