"""Lloyd's iteration over the points whose centre can have changed, after Hamerly (2010), for a CPU.

Each point keeps an upper bound on the distance to its own centre and a lower one on that to any other. Both
follow the centres as these move, and while they do not cross, the point stays and is not looked at. What a
cluster's points sum to follows the points that changed. Centers are those of the whole iteration, but for
rounding.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fseg_jax.numerics.arrays import Centers
from fseg_jax.numerics.axes import find_smallest

SLAB = 1024  # points looked at together: their distances stay in a processor's cache
FEW = 64  # points that changed, taken together
MANY = 8  # from one point in so many that changed on, all are summed anew
SLACK = 1e-4  # relative: what rounding may take from a bound as it follows the centres
NOISE = 16  # roundings of the squares that a distance is the difference of


class Bounds(NamedTuple):
    """What is known of each point, and of each cluster: the sum and the number of its points."""

    labels: Int[Array, " n"]
    upper: Float[Array, " n"]
    lower: Float[Array, " n"]
    sums: Float[Array, "k c"]
    counts: Float[Array, " k"]


def unknown(n: int, centers: Centers) -> Bounds:
    """Before anything is known, all points belong to no cluster."""
    k = centers.shape[0]
    return Bounds(
        jnp.full(n, k, jnp.int32),
        jnp.full(n, jnp.inf, centers.dtype),
        jnp.zeros(n, centers.dtype),
        jnp.zeros_like(centers),
        jnp.zeros(k, centers.dtype),
    )


def assign(
    X: Float[Array, "n c"],
    mean: Float[Array, "1 c"],
    squares: Float[Array, " n"],
    centers: Centers,
    known: Bounds,
    summed: Callable[[Int[Array, " n"]], tuple[Float[Array, "k c"], Float[Array, " k"]]],
) -> Bounds:
    """Each point ``X − mean`` to the nearest of the centres; ``squares`` are the points' own, and ``summed``
    sums all of them by their labels.
    """

    def look(rows: Array, held: tuple) -> tuple:
        new = _bounds(X[rows] - mean, squares[rows], centers)
        return tuple(old.at[rows].set(each, mode="drop") for old, each in zip(held, new, strict=True))

    def carry_over(rows: Array, held: tuple) -> tuple:
        x, (sums, counts) = X[rows] - mean, held
        for sign, of in ((1, labels), (-1, known.labels)):
            cluster = jnp.where(rows < len(X), of[rows], len(centers))
            sums = sums.at[cluster].add(sign * x, mode="drop")
            counts = counts.at[cluster].add(sign, mode="drop")
        return sums, counts

    can_change = known.upper >= known.lower * (1 - SLACK)
    labels, upper, lower = _over(can_change, SLAB, look, (known.labels, known.upper, known.lower))
    changed = labels != known.labels
    totals = jax.lax.cond(
        MANY * jnp.sum(changed) > len(X),
        lambda: summed(labels),
        lambda: _over(changed, FEW, carry_over, (known.sums, known.counts)),
    )
    return Bounds(labels, upper, lower, *totals)


def _bounds(
    x: Float[Array, "n c"], squares: Float[Array, " n"], centers: Centers
) -> tuple[Int[Array, " n"], Float[Array, " n"], Float[Array, " n"]]:
    """Each point's nearest centre, the most that its distance can be, and the least that of the next."""
    each = scores(x, centers)
    labels, least = find_smallest(each, 0)
    others = jnp.where(jnp.arange(len(centers))[:, None] == labels[None], jnp.inf, each)
    noise = NOISE * jnp.finfo(x.dtype).eps * (squares + jnp.max(jnp.sum(centers * centers, axis=1)))
    own_distance = jnp.sqrt(jnp.maximum(squares + least + noise, 0))
    next_distance = jnp.sqrt(jnp.maximum(squares + jnp.min(others, axis=0) - noise, 0))
    return labels, own_distance, next_distance


def scores(x: Float[Array, "n c"], centers: Centers) -> Float[Array, "k n"]:
    """The squared distance of each point to each centre, less the point's own square, which no comparison
    needs.
    """
    # Clusters along the first axis: the smallest over them are whole vectors'.
    own = jnp.sum(centers * centers, axis=1)[:, None]
    return own - 2 * jnp.matmul(centers, x.T, precision="highest")


def follow(known: Bounds, shifts: Float[Array, " k"]) -> Bounds:
    """The bounds after each centre has moved by so much."""
    farthest = jnp.argmax(shifts)
    others = jnp.max(jnp.where(jnp.arange(len(shifts)) == farthest, 0, shifts))
    away = jnp.where(known.labels == farthest, others, shifts[farthest])
    return known._replace(upper=known.upper + shifts[known.labels], lower=jnp.maximum(known.lower - away, 0))


def _over(here: Bool[Array, " n"], size: int, f: Callable, held: tuple) -> tuple:
    """``held`` after ``f(rows, held)`` for the rows that are here, ``size`` at a time: the last part is
    filled up with n, which is no row.
    """
    n = len(here)
    place = jnp.where(here, jnp.cumsum(here) - 1, n + size)
    rows = jnp.full(n + size, n, jnp.int32).at[place].set(jnp.arange(n, dtype=jnp.int32), mode="drop")

    def body(state: tuple) -> tuple:
        done, held = state
        return done + size, f(jax.lax.dynamic_slice(rows, (done,), (size,)), held)

    return jax.lax.while_loop(lambda state: state[0] < jnp.sum(here), body, (jnp.asarray(0), held))[1]
