"""Passes over points in memory, a slab at a time: no array of points × centres is ever held whole.

Points are moved to around the origin slab by slab, in the processor's cache: a moved copy of all points would
take as long to make as several iterations.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fseg_jax.numerics.arrays import Centers
from fseg_jax.numerics.axes import find_smallest

Carry = TypeVar("Carry")

SLAB = 1024  # points of a slab: their distances stay in a processor's cache


def scan_slabs(
    X: Float[Array, "n c"],
    mean: Float[Array, "1 c"],
    step: Callable[[Carry, Array, Array, Array], tuple[Carry, tuple[Array, ...]]],
    carry: Carry,
) -> tuple[Carry, tuple[Array, ...]]:
    """Call ``step(carry, x, rows, fresh)`` on every slab ``x`` of ``X − mean``; return the results.

    ``rows`` are the slab's rows in X. ``fresh`` is false for rows that an earlier slab has had. The arrays
    that ``step`` returns beside the carry hold one number a point; they are put end to end, ``(n,)``.
    """
    n, c = X.shape
    slab = min(SLAB, n)
    slabs = -(-n // slab)

    def scan_step(carry: Carry, start: Array) -> tuple[Carry, tuple[Array, ...]]:
        # The last slab is moved back to end with the points; what it shares with the one before is not fresh.
        begin = jnp.minimum(start, n - slab)
        rows = begin + jnp.arange(slab)
        return step(carry, jax.lax.dynamic_slice(X, (begin, 0), (slab, c)) - mean, rows, rows >= start)

    carry, parts = jax.lax.scan(scan_step, carry, jnp.arange(slabs) * slab)
    # Slabs lie end to end but for the last, whose head repeats what came before.
    tail = n - (slabs - 1) * slab
    return carry, tuple(jnp.concatenate([x[:-1].reshape(-1), x[-1, slab - tail :]]) for x in parts)


def relative_distances(x: Float[Array, "n c"], centers: Centers) -> Float[Array, "k n"]:
    """Compute squared distances to each centre, less the point's own square, which no comparison needs."""
    # Clusters lie along the first axis, so that the smallest over them is taken of whole vectors.
    squares = jnp.sum(centers * centers, axis=1)[:, None]
    return squares - 2 * jnp.matmul(centers, x.T, precision="highest")


def find_nearest(x: Float[Array, "n c"], centers: Centers) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """Find each point's nearest centre, and its squared distance less the point's own square."""
    return find_smallest(relative_distances(x, centers), 0)


def sum_clusters(
    X: Float[Array, "n c"], mean: Float[Array, "1 c"], k: int, label: Callable[[Array, Array], Array]
) -> tuple[Float[Array, "k c"], Float[Array, " k"]]:
    """Sum the points ``X − mean`` of each of k clusters, and count them; ``label(x, rows)`` labels a slab."""
    Totals = tuple[Array, Array]

    def step(totals: Totals, x: Array, rows: Array, fresh: Array) -> tuple[Totals, tuple[Array, ...]]:
        sums, counts = _sum_slab(x, jnp.where(fresh, label(x, rows), k), k)
        return (totals[0] + sums, totals[1] + counts), ()

    return scan_slabs(X, mean, step, (jnp.zeros((k, X.shape[1]), X.dtype), jnp.zeros(k, X.dtype)))[0]


def _sum_slab(
    x: Float[Array, "n c"], labels: Int[Array, " n"], k: int
) -> tuple[Float[Array, "k c"], Float[Array, " k"]]:
    """Sum and count the points of each cluster; a label of k counts for none."""

    def add_points(x: Array, labels: Array) -> tuple[Array, Array]:
        ones = jnp.ones(len(x), x.dtype)
        return jax.ops.segment_sum(x, labels, k), jax.ops.segment_sum(ones, labels, k)

    def multiply(x: Array, labels: Array) -> tuple[Array, Array]:
        member = (jnp.arange(k)[:, None] == labels[None]).astype(x.dtype)
        return jnp.matmul(member, x, precision="highest"), jnp.sum(member, axis=1)

    # An accelerator adds points in any order, and the last bits would change from run to run: there, a
    # product.
    sums, counts = jax.lax.platform_dependent(x, labels, cpu=add_points, default=multiply)
    return sums, counts
