"""Passes over points in memory, a slab at a time: no array of points × centres is ever held whole.

Points are moved to around the origin slab by slab, in the processor's cache: a moved copy of all points would
take as long to make as several iterations. An accelerator takes larger slabs, which keep all of it busy.
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
DEVICE_SLAB = 32_768  # points of a slab on an accelerator


def scan_slabs(
    X: Float[Array, "n c"],
    mean: Float[Array, "1 c"],
    step: Callable[[Carry, Array, Array, Array], tuple[Carry, tuple[Array, ...]]],
    carry: Carry,
    size: int | None = None,
) -> tuple[Carry, tuple[Array, ...]]:
    """Call ``step(carry, x, rows, fresh)`` on every slab ``x`` of ``X − mean``; return the results.

    ``rows`` are the slab's rows in X. ``fresh`` is false for rows that an earlier slab has had. The arrays
    that ``step`` returns beside the carry hold one number a point; they are put end to end, ``(n,)``.
    A slab has ``size`` points, or ``SLAB``.
    """
    n, c = X.shape
    slab = min(size or SLAB, n)
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


def relative_distances(
    x: Float[Array, "n c"], centers: Centers, *, rounded: bool = False
) -> Float[Array, "k n"]:
    """Compute squared distances to each centre, less the point's own square, which no comparison needs.

    ``rounded`` multiplies in bfloat16.
    """
    # Clusters lie along the first axis, so that the smallest over them is taken of whole vectors.
    squares = jnp.sum(centers * centers, axis=1)[:, None]
    return squares - 2 * _multiply(centers, x.T, rounded)


def find_nearest(
    x: Float[Array, "n c"], centers: Centers, *, rounded: bool = False
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """Find each point's nearest centre, and its squared distance less the point's own square."""
    return find_smallest(relative_distances(x, centers, rounded=rounded), 0)


def _multiply(a: Float[Array, "m c"], b: Float[Array, "c n"], rounded: bool) -> Float[Array, "m n"]:
    if not rounded:
        return jnp.matmul(a, b, precision="highest")
    return jnp.matmul(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), preferred_element_type=jnp.float32)


def sum_clusters(
    X: Float[Array, "n c"],
    mean: Float[Array, "1 c"],
    k: int,
    label: Callable[[Array, Array], Array],
    sum_slab: Callable[[Array, Array, int], tuple[Array, Array]],
    size: int | None = None,
) -> tuple[Float[Array, "k c"], Float[Array, " k"]]:
    """Sum the points ``X − mean`` of each of k clusters, and count them; ``label(x, rows)`` labels a slab.

    ``sum_slab`` is ``add_points`` or ``multiply_members``.
    """
    Totals = tuple[Array, Array]

    def step(totals: Totals, x: Array, rows: Array, fresh: Array) -> tuple[Totals, tuple[Array, ...]]:
        sums, counts = sum_slab(x, jnp.where(fresh, label(x, rows), k), k)
        return (totals[0] + sums, totals[1] + counts), ()

    zeros = jnp.zeros((k, X.shape[1]), mean.dtype), jnp.zeros(k, mean.dtype)
    return scan_slabs(X, mean, step, zeros, size)[0]


def add_points(
    x: Float[Array, "n c"], labels: Int[Array, " n"], k: int
) -> tuple[Float[Array, "k c"], Float[Array, " k"]]:
    """Sum and count the points of each cluster, one by one; a label of k counts for none."""
    return jax.ops.segment_sum(x, labels, k), jax.ops.segment_sum(jnp.ones(len(x), x.dtype), labels, k)


def multiply_members(
    x: Float[Array, "n c"], labels: Int[Array, " n"], k: int, *, rounded: bool = False
) -> tuple[Float[Array, "k c"], Float[Array, " k"]]:
    """Sum and count as ``add_points`` does, by products, for an accelerator.

    An accelerator adds points in any order, and the last bits would change from run to run. The products are
    of bfloat16 with float32 sums, and exact: a float32 is the sum of three bfloat16, and to multiply by 0
    or 1 rounds nothing. ``rounded`` takes the first of the three alone.
    """
    member = (jnp.arange(k)[:, None] == labels[None]).astype(jnp.bfloat16)
    sums, rest = jnp.zeros((k, x.shape[1]), jnp.float32), x
    for _ in range(1 if rounded else 3):
        # Not ``astype``, there and back: compilers leave that out.
        part = jax.lax.reduce_precision(rest, exponent_bits=8, mantissa_bits=7)
        rest = rest - part
        sums += _multiply(member, part, rounded=True)
    return sums, jnp.sum(member, axis=1, dtype=jnp.float32)
