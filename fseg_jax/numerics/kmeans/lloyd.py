"""k-means (Lloyd 1982) seeded by k-means++ (Arthur & Vassilvitskii 2007): the clusters that name F-SEG's
concepts (§3.2).

No array of points × centres is ever held whole: points are taken in slabs. On a CPU those whose centre cannot
have changed are left out (``bounds.py``).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fseg_jax.errors import InputError
from fseg_jax.numerics.arrays import Centers, Key
from fseg_jax.numerics.axes import find_smallest, normalize
from fseg_jax.numerics.kmeans import bounds as kmeans_bounds
from fseg_jax.numerics.scaling import is_safe_square, safe_scale


class KMeansResult(NamedTuple):
    """What ``fit`` found: ``inertia`` is the sum of squared distances of the points to their centres, in
    float64 where the points are not of ordinary size (``scaling.SAFE_EXPONENT``), and float32 may not hold
    it.
    """

    centers: Centers
    labels: Int[Array, " n"]
    inertia: Float[Array | np.ndarray, ""]
    iterations: Int[Array, ""]
    converged: Bool[Array, ""]


def fit(
    X: Float[Array | np.ndarray, "n c"],
    k: int,
    *,
    key: Key,
    max_iterations: int = 300,
    tolerance: float = 1e-4,
    spherical: bool = False,
    restarts: int = 1,
    start: Centers | np.ndarray | None = None,
) -> KMeansResult:
    """Cluster points into k by Lloyd's iteration from k-means++ centres: of ``restarts``, the best; or from
    the centres of ``start (k, c)``.

    ``X (n, c)`` float, n ≥ k. It stops when the centres' squared shifts sum to at most ``tolerance`` × the
    mean variance of a channel (scikit-learn's rule), after ``max_iterations`` at the latest. A cluster that
    loses all its points takes the point farthest from its centre. Fewer distinct points than k leave
    clusters that coincide. ``spherical`` scales points and centres to length one, so that the nearest centre
    is that of the greatest cosine. For more points than memory holds, or several devices, there is
    ``kmeans.streaming``. Raises ``InputError`` if k is no number of clusters for n points, or X holds a
    NaN or an infinity.
    """
    n = X.shape[0]
    if not 1 <= k <= n:
        raise InputError(f"k = {k}: there are {n} points to cluster; choose k between 1 and {n}")
    X = jnp.asarray(X)
    X = X.astype(jnp.promote_types(X.dtype, jnp.float32))
    if start is not None:
        start, restarts = jnp.asarray(start, X.dtype), 1  # nothing is drawn
        if start.shape != (k, X.shape[1]):
            raise InputError(f"first centres of shape {start.shape}: give (k, c) = ({k}, {X.shape[1]})")
    keys = [key, *(jax.random.fold_in(key, i) for i in range(1, restarts))]

    def best(X: Array, start: Array | None) -> tuple[KMeansResult, Array]:
        results = [_fit(X, each, k, max_iterations, tolerance, spherical, start) for each in keys]
        return min(results, key=lambda result: float(result[0].inertia))

    found, spread = best(X, start)
    if is_safe_square(spread):
        return found
    # One look at the end: points that are not finite, huge or tiny, or all the same show in their spread.
    size = jnp.max(jnp.abs(X))
    if not bool(jnp.isfinite(size)):
        raise InputError("k-means: the points hold a NaN or an infinity; look at the encoder's features")
    scale = safe_scale(size)
    if scale == 1:
        return found
    found, _ = best(X * scale, None if start is None else start * scale)
    if spherical:
        return found
    inertia = np.asarray(float(found.inertia) / float(scale) ** 2)
    return found._replace(centers=found.centers / scale, inertia=inertia)


@partial(jax.jit, static_argnames=("k", "max_iterations", "spherical"))
def _fit(
    X: Float[Array, "n c"],
    key: Key,
    k: int,
    max_iterations: int,
    tolerance: float | Float[Array, ""],
    spherical: bool = False,
    start: Centers | None = None,
) -> tuple[KMeansResult, Float[Array, ""]]:
    """The result, and the points' mean squared distance from their mean."""
    if spherical:
        X = normalize(X)
        start = None if start is None else normalize(start)
    # Distances by expansion lose less when the points lie around the origin. They are moved slab by slab, in
    # the cache: a copy of all would take as long as several iterations.
    mean = jnp.mean(X, axis=0, keepdims=True)
    _, (squares,) = _by_slabs(X, mean, lambda _, x, *rows: (None, (jnp.sum(x * x, axis=1),)), None)
    spread = jnp.mean(squares)
    threshold = tolerance * spread / X.shape[1]

    def lloyd(bounded: bool, X: Array, centers: Centers) -> tuple[Array, Centers, Array, Array]:
        def summed(labels: Array) -> tuple[Array, Array]:
            return _totals(X, mean, k, lambda x, rows: labels[rows])

        def body(state: tuple) -> tuple:
            i, centers, _, known = state
            if bounded:
                known = kmeans_bounds.assign(X, mean, squares, centers, known, summed)
                totals = known.sums, known.counts
            else:
                totals = _totals(X, mean, k, lambda x, rows: _nearest(x, centers)[0])
            moved = _move(X, mean, squares, centers, *totals)
            if spherical:
                moved = normalize(moved + mean) - mean
            shifts = jnp.sum((moved - centers) ** 2, axis=1)
            if bounded:
                known = kmeans_bounds.follow(known, jnp.sqrt(shifts))
            return i + 1, moved, jnp.sum(shifts), known

        known: Any = kmeans_bounds.unknown(len(X), centers) if bounded else None
        i, centers, shift, known = jax.lax.while_loop(
            lambda state: (state[0] < max_iterations) & (state[2] > threshold),
            body,
            (jnp.asarray(0), centers, jnp.asarray(jnp.inf, X.dtype), known),
        )
        if bounded:
            labels = kmeans_bounds.assign(X, mean, squares, centers, known, summed).labels
        else:
            _, (labels,) = _by_slabs(X, mean, lambda _, x, *rows: (None, _nearest(x, centers)[:1]), None)
        return i, centers, labels, shift <= threshold

    centers = (_plus_plus(X, k, key) if start is None else start) - mean
    # Elsewhere looking at some of the points takes longer than looking at all.
    i, centers, labels, converged = jax.lax.platform_dependent(
        X, centers, cpu=partial(lloyd, True), default=partial(lloyd, False)
    )

    def left(inertia: Array, x: Array, rows: Array, fresh: Array) -> tuple:
        distances = jnp.sum((x - centers[labels[rows]]) ** 2, axis=1)  # not by expansion: exact
        return inertia + jnp.sum(jnp.where(fresh, distances, 0)), ()

    inertia, _ = _by_slabs(X, mean, left, jnp.zeros((), X.dtype))
    return KMeansResult(centers + mean, labels, inertia, i, converged), spread


def _move(
    X: Float[Array, "n c"],
    mean: Float[Array, "1 c"],
    squares: Float[Array, " n"],
    centers: Centers,
    sums: Float[Array, "k c"],
    counts: Float[Array, " k"],
) -> Centers:
    """The mean of each cluster's points; an empty cluster moves onto one of the points farthest from their
    centres.
    """
    means = sums / jnp.maximum(counts, 1)[:, None]
    empty = counts == 0

    def reseed() -> Centers:
        _, (least,) = _by_slabs(X, mean, lambda _, x, *rows: (None, _nearest(x, centers)[1:]), None)
        _, farthest = jax.lax.top_k(squares + least, len(centers))
        rank = jnp.cumsum(empty) - 1  # the first empty cluster takes the farthest point, and so on
        return jnp.where(empty[:, None], X[farthest[jnp.maximum(rank, 0)]] - mean, means)

    return jax.lax.cond(jnp.any(empty), reseed, lambda: means)


def _totals(
    X: Float[Array, "n c"], mean: Float[Array, "1 c"], k: int, label: Callable
) -> tuple[Array, Array]:
    """What the points of each of k clusters sum to, and their number; ``label(x, rows)`` says whose they
    are.
    """

    def one(totals: tuple, x: Array, rows: Array, fresh: Array) -> tuple:
        parts = _sums(x, jnp.where(fresh, label(x, rows), k), k)
        return (totals[0] + parts[0], totals[1] + parts[1]), ()

    return _by_slabs(X, mean, one, (jnp.zeros((k, X.shape[1]), X.dtype), jnp.zeros(k, X.dtype)))[0]


def _nearest(x: Float[Array, "n c"], centers: Centers) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """Each point's nearest centre, and its squared distance less the point's own square."""
    return find_smallest(kmeans_bounds.scores(x, centers), 0)


def _by_slabs(X: Float[Array, "n c"], mean: Float[Array, "1 c"], one: Callable, carry: Any) -> tuple:
    """``one(carry, x, rows, fresh)`` over slabs of the points around the origin, and what it said of each
    point.
    """
    n, c = X.shape
    slab = min(kmeans_bounds.SLAB, n)
    slabs = -(-n // slab)

    def step(carry: Any, start: Array) -> tuple:
        # The last slab is moved back to end with the data; what it shares with the one before is not fresh.
        begin = jnp.minimum(start, n - slab)
        rows = begin + jnp.arange(slab)
        return one(carry, jax.lax.dynamic_slice(X, (begin, 0), (slab, c)) - mean, rows, rows >= start)

    each: tuple
    carry, each = jax.lax.scan(step, carry, jnp.arange(slabs) * slab)
    # Slabs lie end to end but for the last, whose head repeats what came before.
    tail = n - (slabs - 1) * slab
    return carry, tuple(jnp.concatenate([x[:-1].reshape(-1), x[-1, slab - tail :]]) for x in each)


def _sums(
    x: Float[Array, "n c"], labels: Int[Array, " n"], k: int
) -> tuple[Float[Array, "k c"], Float[Array, " k"]]:
    """The sums and the numbers of the points of each cluster; a label of k counts for none."""

    def one_by_one(x: Array, labels: Array) -> tuple[Array, Array]:
        ones = jnp.ones(len(x), x.dtype)
        return jax.ops.segment_sum(x, labels, k), jax.ops.segment_sum(ones, labels, k)

    def product(x: Array, labels: Array) -> tuple[Array, Array]:
        member = (jnp.arange(k)[:, None] == labels[None]).astype(x.dtype)
        return jnp.matmul(member, x, precision="highest"), jnp.sum(member, axis=1)

    # Elsewhere points are added in any order, and the last bits would change from run to run.
    return jax.lax.platform_dependent(x, labels, cpu=one_by_one, default=product)


def plus_plus(X: Float[Array, "n c"], k: int, key: Key) -> Centers:
    """Choose k of the points as first centres, each far from those before (greedy k-means++, as in
    scikit-learn).

    ``X (n, c)`` → ``(k, c)``. Each next centre is the best of 2 + ⌊ln k⌋ points drawn with a probability
    proportional to the squared distance to the nearest centre so far.
    """
    scale = safe_scale(jnp.max(jnp.abs(X)))
    return _plus_plus(X * scale, k, key) / scale


@partial(jax.jit, static_argnames="k")
def _plus_plus(X: Float[Array, "n c"], k: int, key: Key) -> Centers:
    n, c = X.shape
    trials = 2 + int(np.log(k))
    mean = jnp.mean(X, axis=0, keepdims=True)
    X = X - mean
    squares = jnp.sum(X * X, axis=1)

    def distances(points: Float[Array, "t c"]) -> Float[Array, "t n"]:
        products = jnp.matmul(points, X.T, precision="highest")
        own = jnp.sum(points * points, axis=1)[:, None]
        return jnp.maximum(squares[None] + own - 2 * products, 0)

    def add(i: Array, state: tuple) -> tuple:
        centers, nearest = state
        drawn = jax.random.categorical(jax.random.fold_in(key, i), jnp.log(nearest), shape=(trials,))
        candidates = X[drawn]
        after = jnp.minimum(nearest[None], distances(candidates))
        best = jnp.argmin(jnp.sum(after, axis=1))
        return centers.at[i].set(candidates[best]), after[best]

    first = X[jax.random.randint(jax.random.fold_in(key, 0), (), 0, n)]
    centers = jnp.zeros((k, c), X.dtype).at[0].set(first)
    centers, _ = jax.lax.fori_loop(1, k, add, (centers, distances(first[None])[0]))
    return centers + mean
