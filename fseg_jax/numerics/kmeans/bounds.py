"""Lloyd's iteration over the points whose centre can have changed, after Hamerly (2010), for a CPU.

Each point keeps an upper bound on the distance to its own centre and a lower bound on that to any other. Both
follow the centres as these move. While they do not cross, the point keeps its label and is not looked at. A
cluster's sum follows the points that changed. The centres are those of the whole iteration, but for rounding.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fseg_jax.numerics.arrays import Centers
from fseg_jax.numerics.axes import find_smallest
from fseg_jax.numerics.kmeans import slabs

State = TypeVar("State", bound=tuple[Array, ...])

CHANGED_SLAB = 64  # points that changed, taken together
RESUM_SHARE = 8  # all points are summed anew once more than one in so many has changed
SLACK = 1e-4  # relative: what rounding may take from a bound as it follows the centres
NOISE = 16  # machine epsilons of the squares whose difference a distance is


class Bounds(NamedTuple):
    """Bounds on each point's distances, and sums over each cluster.

    Attributes:
        labels: each point's cluster; k before it has one.
        upper: the most that the distance to its own centre can be.
        lower: the least that the distance to any other centre can be.
        sums: the sum of each cluster's points.
        counts: the number of each cluster's points.
    """

    labels: Int[Array, " n"]
    upper: Float[Array, " n"]
    lower: Float[Array, " n"]
    sums: Float[Array, "k c"]
    counts: Float[Array, " k"]


def init_bounds(n: int, centers: Centers) -> Bounds:
    """Make the bounds of n points that no cluster has yet."""
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
    sum_all: Callable[[Int[Array, " n"]], tuple[Float[Array, "k c"], Float[Array, " k"]]],
) -> Bounds:
    """Assign each point ``X − mean`` to the nearest of the centres.

    Args:
        X: the points.
        mean: subtracted from the points.
        squares: the squared length of each ``X − mean``.
        centers: the centres, less the mean.
        known: the bounds so far.
        sum_all: sums and counts all points by their labels.
    """

    def compare(rows: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        new = _bound_distances(X[rows] - mean, squares[rows], centers)
        labels, upper, lower = (old.at[rows].set(x, mode="drop") for old, x in zip(state, new, strict=True))
        return labels, upper, lower

    def carry_over(rows: Array, totals: tuple[Array, Array]) -> tuple[Array, Array]:
        x, (sums, counts) = X[rows] - mean, totals
        for sign, source in ((1, labels), (-1, known.labels)):
            cluster = jnp.where(rows < len(X), source[rows], len(centers))
            sums = sums.at[cluster].add(sign * x, mode="drop")
            counts = counts.at[cluster].add(sign, mode="drop")
        return sums, counts

    can_change = known.upper >= known.lower * (1 - SLACK)
    labels, upper, lower = _update_masked(
        can_change, slabs.SLAB, compare, (known.labels, known.upper, known.lower)
    )
    changed = labels != known.labels
    sums, counts = jax.lax.cond(
        RESUM_SHARE * jnp.sum(changed) > len(X),
        lambda: sum_all(labels),
        lambda: _update_masked(changed, CHANGED_SLAB, carry_over, (known.sums, known.counts)),
    )
    return Bounds(labels, upper, lower, sums, counts)


def _bound_distances(
    x: Float[Array, "n c"], squares: Float[Array, " n"], centers: Centers
) -> tuple[Int[Array, " n"], Float[Array, " n"], Float[Array, " n"]]:
    """Find each point's nearest centre, and bound its distance from above, that of the next from below."""
    relative = slabs.relative_distances(x, centers)
    labels, least = find_smallest(relative, 0)
    others = jnp.where(jnp.arange(len(centers))[:, None] == labels[None], jnp.inf, relative)
    noise = NOISE * jnp.finfo(x.dtype).eps * (squares + jnp.max(jnp.sum(centers * centers, axis=1)))
    upper = jnp.sqrt(jnp.maximum(squares + least + noise, 0))
    lower = jnp.sqrt(jnp.maximum(squares + jnp.min(others, axis=0) - noise, 0))
    return labels, upper, lower


def follow_centers(known: Bounds, shifts: Float[Array, " k"]) -> Bounds:
    """Widen the bounds after each centre has moved by the distance ``shifts``."""
    farthest = jnp.argmax(shifts)
    others = jnp.max(jnp.where(jnp.arange(len(shifts)) == farthest, 0, shifts))
    away = jnp.where(known.labels == farthest, others, shifts[farthest])
    return known._replace(upper=known.upper + shifts[known.labels], lower=jnp.maximum(known.lower - away, 0))


def _update_masked(
    mask: Bool[Array, " n"], size: int, f: Callable[[Array, State], State], state: State
) -> State:
    """Call ``f(rows, state)`` for the masked rows, ``size`` at a time; n, which is no row, fills the last."""
    n = len(mask)
    place = jnp.where(mask, jnp.cumsum(mask) - 1, n + size)
    rows = jnp.full(n + size, n, jnp.int32).at[place].set(jnp.arange(n, dtype=jnp.int32), mode="drop")

    def body(loop: tuple[Array, State]) -> tuple[Array, State]:
        done, state = loop
        return done + size, f(jax.lax.dynamic_slice(rows, (done,), (size,)), state)

    return jax.lax.while_loop(lambda loop: loop[0] < jnp.sum(mask), body, (jnp.asarray(0), state))[1]
