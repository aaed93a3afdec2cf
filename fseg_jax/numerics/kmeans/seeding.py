"""First centres: k-means++ for points in memory; k-means‖ and Ward's merging for a sample of many points."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fseg_jax.numerics.arrays import Centers, Key
from fseg_jax.numerics.scaling import safe_scale

ROUNDS = 8  # rounds of k-means‖ in which candidates are drawn
SAMPLE, SAMPLE_OF_CENTER = 32_768, 128  # points that k-means++ draws from


def plus_plus(X: Float[Array, "n c"], k: int, key: Key) -> Centers:
    """Draw k of the points as first centres, each far from those before (k-means++).

    This is the greedy variant of Arthur & Vassilvitskii (2007), as in scikit-learn: each next centre is the
    best of 2 + ⌊ln k⌋ points, drawn with a probability proportional to the squared distance to the nearest
    centre so far. Of more than ``SAMPLE`` points, or ``SAMPLE_OF_CENTER`` for each centre, so many are drawn
    first: a pass over all points for every centre would take as long as Lloyd's iteration.
    """
    scale = safe_scale(jnp.max(jnp.abs(X)))
    centers: Array = draw_centers(X * scale, k, key)
    return centers / scale


@partial(jax.jit, static_argnames="k")
def draw_centers(X: Float[Array, "n c"], k: int, key: Key) -> Centers:
    """Draw first centres as ``plus_plus`` does, of points whose squares float32 holds."""
    most = max(SAMPLE, SAMPLE_OF_CENTER * k)
    if len(X) > most:
        X = X[jax.random.randint(jax.random.fold_in(key, k), (most,), 0, len(X))]
    X = X.astype(jnp.promote_types(X.dtype, jnp.float32))
    n, c = X.shape
    trials = 2 + int(np.log(k))
    mean = jnp.mean(X, axis=0, keepdims=True)
    X = X - mean
    squares = jnp.sum(X * X, axis=1)

    def distances(points: Float[Array, "t c"]) -> Float[Array, "t n"]:
        products = jnp.matmul(points, X.T, precision="highest")
        point_squares = jnp.sum(points * points, axis=1)[:, None]
        return jnp.maximum(squares[None] + point_squares - 2 * products, 0)

    def add(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        centers, nearest = state
        candidates = X[_draw_points(jax.random.fold_in(key, i), nearest, trials)]
        after = jnp.minimum(nearest[None], distances(candidates))
        best = jnp.argmin(jnp.sum(after, axis=1))
        return centers.at[i].set(candidates[best]), after[best]

    first = X[jax.random.randint(jax.random.fold_in(key, 0), (), 0, n)]
    centers: Array = jnp.zeros((k, c), X.dtype).at[0].set(first)
    centers, _ = jax.lax.fori_loop(1, k, add, (centers, distances(first[None])[0]))
    return centers + mean


def _draw_points(key: Key, odds: Float[Array, " n"], count: int) -> Int[Array, " t"]:
    """Draw points with replacement, with probabilities proportional to ``odds``.

    They are what ``jax.random.categorical`` draws, whose ``argmax`` takes three times as long on a CPU as the
    two reductions here.
    """
    noisy = jnp.log(odds)[None] + jax.random.gumbel(key, (count, len(odds)), odds.dtype)
    greatest = jnp.max(noisy, axis=1, keepdims=True)
    places = jnp.arange(len(odds))[None]
    return jnp.min(jnp.where(noisy == greatest, places, len(odds) - 1), axis=1)


@partial(jax.jit, static_argnames="count")
def draw_candidates(X: Float[Array, "m c"], key: Key, count: int) -> Float[Array, "t c"]:
    """Draw ``count`` of the points as candidates for centres, many in each of a few rounds.

    This is k-means‖ (Bahmani et al. 2012): the probability of a point is proportional to its squared distance
    to the nearest candidate of the rounds before.
    """
    m = X.shape[0]
    per_round = max(1, -(-(count - 1) // ROUNDS))
    squares = jnp.sum(X * X, axis=1)
    first = jax.random.randint(jax.random.fold_in(key, 0), (1,), 0, m)

    def draw(state: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], Array]:
        nearest, drawn = state
        drawn_squares = jnp.sum(X[drawn] ** 2, axis=1)[:, None]
        products = jnp.matmul(X[drawn], X.T, precision="highest")
        nearest = jnp.minimum(nearest, jnp.min(squares[None] + drawn_squares - 2 * products, axis=0))
        nearest = jnp.maximum(nearest, 0).at[drawn].set(0)  # drawn once, whatever was rounded
        # The largest of log p + Gumbel noise are a draw without replacement.
        noise = jax.random.gumbel(jax.random.fold_in(key, i), (m,), X.dtype)
        _, drawn = jax.lax.top_k(jnp.log(nearest) + noise, per_round)
        return (nearest, drawn), drawn

    start = (jnp.full(m, jnp.inf, X.dtype), jnp.broadcast_to(first, (per_round,)))
    _, rounds = jax.lax.scan(draw, start, jnp.arange(1, ROUNDS + 1))
    return X[jnp.concatenate([first, rounds.reshape(-1)])[:count]]


def merge_ward(
    points: Float[np.ndarray, "t c"], weights: Int[np.ndarray, " t"], ks: Sequence[int]
) -> dict[int, Float[np.ndarray, "_ c"]]:
    """Merge weighted points two by two, each time the pair that adds the least inertia (Ward 1963).

    Returns the merged points' means whenever one of ``ks`` is reached; t ≥ every k.
    """
    order = np.argsort(-weights, kind="stable")
    x, w = points[order].astype(np.float64), np.maximum(weights[order], 1e-9).astype(np.float64)
    squares = (x**2).sum(1)
    cost = squares[:, None] + squares[None] - 2 * (x @ x.T)
    cost = np.maximum(cost, 0) * (w[:, None] * w[None] / (w[:, None] + w[None]))
    np.fill_diagonal(cost, np.inf)
    alive = np.ones(len(x), bool)
    means = {len(x): x.astype(np.float32)} if len(x) in ks else {}
    for k in range(len(x) - 1, min(ks) - 1, -1):
        i, j = sorted(divmod(int(cost.argmin()), len(x)))
        x[i] = (w[i] * x[i] + w[j] * x[j]) / (w[i] + w[j])
        # Lance and Williams: the costs of the merged point follow from those of its two parts.
        with np.errstate(invalid="ignore"):
            row = (cost[i] * (w[i] + w) + cost[j] * (w[j] + w) - cost[i, j] * w) / (w[i] + w[j] + w)
        w[i] += w[j]
        alive[j] = False
        row[~alive] = np.inf
        row[i] = np.inf
        cost[i], cost[:, i] = row, row
        cost[j], cost[:, j] = np.inf, np.inf
        if k in ks:
            means[k] = x[alive].astype(np.float32)
    return means
