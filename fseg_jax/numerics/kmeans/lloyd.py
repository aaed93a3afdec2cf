"""k-means in memory (Lloyd 1982), seeded by k-means++: the clusters that name F-SEG's concepts (§3.2).

Points are taken in slabs (``slabs.py``). On a CPU, points whose centre cannot have changed are left out
(``bounds.py``). On an accelerator, points of bfloat16 are multiplied as such.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fseg_jax.errors import InputError
from fseg_jax.numerics.arrays import Centers, Key
from fseg_jax.numerics.axes import normalize
from fseg_jax.numerics.kmeans.bounds import Bounds, assign, follow_centers, init_bounds
from fseg_jax.numerics.kmeans.seeding import draw_centers
from fseg_jax.numerics.kmeans.slabs import (
    DEVICE_SLAB,
    add_points,
    find_nearest,
    multiply_members,
    scan_slabs,
    sum_clusters,
)
from fseg_jax.numerics.scaling import is_safe_square, safe_scale


class KMeansResult(NamedTuple):
    """Clusters of points.

    Attributes:
        centers: the mean of each cluster's points.
        labels: each point's cluster, 0…k−1.
        inertia: the sum of squared distances of the points to their centres; in float64 where the points'
            squares are beyond float32.
        iterations: how many iterations were made.
        converged: whether the centres have converged.
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
    """Cluster points into k by Lloyd's iteration from k-means++ centres.

    A cluster that loses all its points takes the point farthest from its centre. Fewer distinct points than k
    leave clusters that coincide. For more points than memory holds, or several devices, there is
    ``kmeans.streaming``.

    >>> X = np.array([[0.0, 0.0], [0.0, 2.0], [9.0, 0.0], [9.0, 2.0]], np.float32)
    >>> result = fit(X, 2, key=jax.random.key(0))
    >>> sorted(result.centers.tolist())
    [[0.0, 1.0], [9.0, 1.0]]
    >>> float(result.inertia), bool(result.converged)
    (4.0, True)

    Args:
        X: points, n ≥ k. Those of bfloat16 stay so; on an accelerator they take a fraction of the time.
        k: how many clusters.
        key: of the first centres.
        max_iterations: after which it stops, converged or not.
        tolerance: it has converged when the centres' squared shifts sum to at most ``tolerance`` × the mean
            variance of a channel (scikit-learn's rule).
        spherical: scale points and centres to length one, so that the nearest centre is that of the greatest
            cosine.
        restarts: how many starts are made, of which the best is returned.
        start: the first centres ``(k, c)``; then nothing is drawn, and there are no restarts.

    Raises:
        InputError: if k is not from 1 to n, ``start`` has another shape, or X holds a NaN or an infinity.
    """
    n = X.shape[0]
    if not 1 <= k <= n:
        raise InputError(f"k = {k}: there are {n} points to cluster; choose k between 1 and {n}")
    X = jnp.asarray(X)
    if X.dtype != jnp.bfloat16:
        X = X.astype(jnp.promote_types(X.dtype, jnp.float32))
    if start is not None:
        start, restarts = jnp.asarray(start, jnp.promote_types(X.dtype, jnp.float32)), 1
        if start.shape != (k, X.shape[1]):
            raise InputError(f"first centres of shape {start.shape}: give (k, c) = ({k}, {X.shape[1]})")
    keys = [key, *(jax.random.fold_in(key, i) for i in range(1, restarts))]

    def fit_best(X: Array, start: Array | None) -> tuple[KMeansResult, Array]:
        fits: list[tuple[KMeansResult, Array]] = [
            _fit(X, start_key, k, max_iterations, tolerance, spherical, start) for start_key in keys
        ]
        return min(fits, key=lambda fit: float(fit[0].inertia))

    result, spread = fit_best(X, start)
    if is_safe_square(spread):
        return result
    # Points that are not finite, huge, tiny, or all the same show in their spread: one look, at the end.
    size = jnp.max(jnp.abs(X))
    if not bool(jnp.isfinite(size)):
        raise InputError("k-means: the points hold a NaN or an infinity; look at the encoder's features")
    scale = safe_scale(size)
    if scale == 1:
        return result
    result, _ = fit_best(X * scale, None if start is None else start * scale)
    if spherical:
        return result
    inertia = np.asarray(float(result.inertia) / float(scale) ** 2)
    return result._replace(centers=result.centers / scale, inertia=inertia)


class _State(NamedTuple):
    """The state of Lloyd's iteration; ``shift`` is the sum of the centres' last squared shifts."""

    i: Int[Array, ""]
    centers: Centers
    shift: Float[Array, ""]
    known: Bounds | None


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
    """Cluster once; return the result, and the points' mean squared distance from their mean."""
    dtype = jnp.promote_types(X.dtype, jnp.float32)
    if spherical:
        X = normalize(X.astype(dtype)).astype(X.dtype)
        start = None if start is None else normalize(start)
    # Distances by expansion lose less when the points lie around the origin.
    mean = jnp.mean(X, axis=0, keepdims=True, dtype=dtype)
    centers = (draw_centers(X, k, key) if start is None else start) - mean
    settings = _Settings(max_iterations, spherical)
    # On an accelerator looking at some of the points takes longer than looking at all.
    end, spread = jax.lax.platform_dependent(
        X,
        mean,
        centers,
        jnp.asarray(tolerance, dtype),
        cpu=partial(_iterate, settings, on_cpu=True),
        default=partial(_iterate, settings, on_cpu=False),
    )
    return end._replace(centers=end.centers + mean), spread


class _Settings(NamedTuple):
    """What does not change in Lloyd's iteration."""

    max_iterations: int
    spherical: bool


def _iterate(
    settings: _Settings,
    X: Float[Array, "n c"],
    mean: Float[Array, "1 c"],
    centers: Centers,
    tolerance: Float[Array, ""],
    *,
    on_cpu: bool,
) -> tuple[KMeansResult, Float[Array, ""]]:
    """Iterate from centres, less the mean; return the same of the last, and the points' mean square."""
    k, size = len(centers), None if on_cpu else DEVICE_SLAB
    rounded = X.dtype == jnp.bfloat16 and not on_cpu
    sum_slab = add_points if on_cpu else partial(multiply_members, rounded=rounded)
    nearest = partial(find_nearest, rounded=rounded)
    _, (squares,) = scan_slabs(X, mean, lambda _, x, *rows: (None, (jnp.sum(x * x, axis=1),)), None, size)
    spread = jnp.mean(squares)
    threshold = tolerance * spread / X.shape[1]

    def sum_all(labels: Array) -> tuple[Array, Array]:
        return sum_clusters(X, mean, k, lambda x, rows: labels[rows], sum_slab, size)

    def step(state: _State) -> _State:
        centers, known = state.centers, state.known
        if known is not None:
            known = assign(X, mean, squares, centers, known, sum_all)
            totals = known.sums, known.counts
        else:
            totals = sum_clusters(X, mean, k, lambda x, rows: nearest(x, centers)[0], sum_slab, size)
        moved = _move(X, mean, squares, centers, *totals, nearest, size)
        if settings.spherical:
            moved = normalize(moved + mean) - mean
        shifts = jnp.sum((moved - centers) ** 2, axis=1)
        if known is not None:
            known = follow_centers(known, jnp.sqrt(shifts))
        return _State(state.i + 1, moved, jnp.sum(shifts), known)

    known = init_bounds(len(X), centers) if on_cpu else None
    infinity = jnp.asarray(jnp.inf, centers.dtype)
    i, centers, shift, known = jax.lax.while_loop(
        lambda state: (state.i < settings.max_iterations) & (state.shift > threshold),
        step,
        _State(jnp.asarray(0), centers, infinity, known),
    )
    if known is not None:
        labels = assign(X, mean, squares, centers, known, sum_all).labels
    else:
        _, (labels,) = scan_slabs(X, mean, lambda _, x, *rows: (None, nearest(x, centers)[:1]), None, size)

    def add_inertia(inertia: Array, x: Array, rows: Array, fresh: Array) -> tuple[Array, tuple[Array, ...]]:
        distances = jnp.sum((x - centers[labels[rows]]) ** 2, axis=1)  # not by expansion: exact
        return inertia + jnp.sum(jnp.where(fresh, distances, 0)), ()

    inertia, _ = scan_slabs(X, mean, add_inertia, jnp.zeros((), centers.dtype), size)
    return KMeansResult(centers, labels, inertia, i, shift <= threshold), spread


def _move(
    X: Float[Array, "n c"],
    mean: Float[Array, "1 c"],
    squares: Float[Array, " n"],
    centers: Centers,
    sums: Float[Array, "k c"],
    counts: Float[Array, " k"],
    nearest: Callable[[Array, Centers], tuple[Array, Array]],
    size: int | None,
) -> Centers:
    """Move each centre to the mean of its points, or onto one of the farthest points if it has none."""
    means = sums / jnp.maximum(counts, 1)[:, None]
    empty = counts == 0

    def reseed() -> Centers:
        _, (least,) = scan_slabs(X, mean, lambda _, x, *rows: (None, nearest(x, centers)[1:]), None, size)
        _, farthest = jax.lax.top_k(squares + least, len(centers))
        rank = jnp.cumsum(empty) - 1  # the first empty cluster takes the farthest point, and so on
        return jnp.where(empty[:, None], X[farthest[jnp.maximum(rank, 0)]] - mean, means)

    moved: Array = jax.lax.cond(jnp.any(empty), reseed, lambda: means)
    return moved
