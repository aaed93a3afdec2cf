"""k-means over points that need not fit into memory, for several k in one reading, over any number of devices
and hosts.

Centres start from k-means‖ and Lloyd on a sample drawn by the key, the best of some restarts, and are then
moved over all points: by Lloyd's iteration, or by mini-batches (Sculley 2010). A pass (``shards.py``)
serves all k. Its products are of bfloat16 while centres move; the last update and the last assignment are in
float32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Int

from fseg_jax.errors import InputError
from fseg_jax.numerics.arrays import Key
from fseg_jax.numerics.axes import normalize
from fseg_jax.numerics.kmeans.shards import Points, Rows, Sums, take
from fseg_jax.numerics.scaling import safe_scale

SAMPLE = 32_768  # points that centres start from, or 128 a centre
LLOYD_PASSES, MINI_BATCH_PASSES, START_PASSES = 100, 5, 50
OVERSAMPLING, ROUNDS = 4, 8  # of k-means‖: candidates a centre, and in how many rounds they are drawn
SAMPLING, PASS = 2**30, 2**30 + 1  # what the key is folded with, beside each k

ALGORITHMS = ("lloyd", "minibatch")
Report = Callable[[int, float], None]  # passes over the points so far, the largest shift over its threshold


class StreamResult(NamedTuple):
    """What ``fit`` found for one k: ``KMeansResult`` with the squared distance of each point to its centre,
    in float64 where the points are not of ordinary size.
    """

    centers: Float[np.ndarray, "k c"]
    labels: Int[np.ndarray, " n"]
    distances: Float[np.ndarray, " n"]
    inertia: float
    iterations: int
    converged: bool


@dataclass(frozen=True)
class _Scaled:
    """Points that are not of ordinary size, made so as they are read."""

    rows: Rows
    scale: np.float32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.shape

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        return np.asarray(self.rows[rows], np.float32) * self.scale


def fit(
    rows: Rows,
    ks: Sequence[int],
    *,
    key: Key,
    algorithm: str = "lloyd",
    spherical: bool = False,
    restarts: int = 2,
    max_iterations: int | None = None,
    tolerance: float = 1e-4,
    devices: Sequence[jax.Device] | None = None,
    report: Report = lambda passes, shift: None,
) -> dict[int, StreamResult]:
    """Cluster ``rows (n, c)`` into each of ``ks`` clusters, n ≥ every k.

    Each pass over the points serves all k that still move. A k is done when its centres' squared shifts sum
    to at most ``tolerance`` × the mean variance of a channel, as in ``kmeans.fit``, or after
    ``max_iterations`` passes (100 of Lloyd's, 5 of mini-batches). ``spherical`` scales points and centres to
    length one, so that the nearest centre is that of the greatest cosine. An empty cluster takes one of the
    points farthest from their centres. ``restarts`` are of the start on a sample.

    ``devices`` are all there are unless given; every process of a ``jax.distributed`` job calls this alike
    and gets the same result, and reads only its own part of each batch. Raises ``InputError`` where a k is no
    number of clusters for n points, or a point holds a NaN or an infinity, or is far beyond the others.
    """
    n = rows.shape[0]
    for k in ks:
        if not 1 <= k <= n:
            raise InputError(f"k = {k}: there are {n} points to cluster; choose k between 1 and {n}")
    if algorithm not in ALGORITHMS:
        raise InputError(f"algorithm {algorithm!r}: choose one of {', '.join(ALGORITHMS)}")
    if max_iterations is None:
        max_iterations = LLOYD_PASSES if algorithm == "lloyd" else MINI_BATCH_PASSES
    devices = list(devices if devices is not None else jax.devices())
    sample = _sample(rows, min(n, max(SAMPLE, 128 * max(ks))), key)
    scale = safe_scale(np.abs(sample[:: -(-len(sample) // 1024)]).max(keepdims=True)).item()
    if scale != 1:
        rows, sample = _Scaled(rows, np.float32(scale)), sample * np.float32(scale)
    if spherical:
        sample = normalize(sample)
        scale = 1.0  # of what comes out
    mean = sample.mean(0, dtype=np.float64).astype(np.float32)
    threshold = tolerance * float(sample.var(0, dtype=np.float64).mean())
    centers = _start(sample, sorted(set(ks)), key, mean, threshold, spherical, restarts, devices)
    del sample
    points = Points(rows, devices, mean, spherical)
    if algorithm == "lloyd":
        centers, iterations, moving = _lloyd(points, centers, max_iterations, threshold, report)
    else:
        centers, iterations, moving = _mini_batches(points, centers, max_iterations, threshold, key, report)
    every = sorted(set(ks))
    if algorithm == "lloyd":  # what bfloat16 rounded away, in one last step
        centers = _moved(points, points.totals(centers, every, exact=True), centers)
    labels, distances = points.assign(centers, every)
    if scale != 1:
        centers = {k: each / np.float32(scale) for k, each in centers.items()}
        distances = distances.astype(np.float64) / scale**2
    return {
        k: StreamResult(
            centers[k],
            labels[j],
            distances[j],
            float(distances[j].sum(dtype=np.float64)),
            iterations[k],
            k not in moving,
        )
        for j, k in enumerate(every)
    }


# ------------------------------------------------------------------------------------------------- the start


def _sample(rows: Rows, count: int, key: Key) -> Float[np.ndarray, "m c"]:
    """Points drawn by the key without replacement, float32, in their order."""
    drawn = jax.random.permutation(jax.random.fold_in(key, SAMPLING), rows.shape[0])[:count]
    return take(rows, np.sort(np.asarray(drawn)))


def _start(
    sample: np.ndarray,
    ks: Sequence[int],
    key: Key,
    mean: np.ndarray,
    threshold: float,
    spherical: bool,
    restarts: int,
    devices: Sequence[jax.Device],
) -> dict[int, np.ndarray]:
    """For each k the best of some starts, each followed by Lloyd's iteration on the sample.

    A start is k-means‖ (Bahmani et al. 2012): several times more candidates than centres, drawn far from each
    other in a few rounds, each with the points nearest to it; those are clustered into every k, by Ward's
    criterion. One draw serves all k, and a group that would have got two centres seldom does.
    """
    points = Points(sample, devices, mean, spherical)
    X = jnp.asarray(sample - mean)
    count = max(max(ks), min(OVERSAMPLING * max(ks), len(sample) // 2))
    best: dict[int, tuple[float, np.ndarray]] = {}
    for restart in range(restarts):
        candidates = _candidates(X, jax.random.fold_in(key, restart), count)
        if jax.process_count() > 1:  # hosts of several kinds round differently
            candidates = multihost_utils.broadcast_one_to_all(candidates)
        held = {count: np.asarray(candidates) + mean}
        for _ in range(2):
            sums = points.totals(held, [count])
            held = _moved(points, sums, held)
        centers = ward(held[count] - mean, sums[count].counts, ks)
        centers, _, _ = _lloyd(
            points, {k: c + mean for k, c in centers.items()}, START_PASSES, 10 * threshold
        )
        for k, here in points.totals(centers, ks).items():
            if k not in best or here.inertia < best[k][0]:
                best[k] = here.inertia, centers[k]
    return {k: centers for k, (_, centers) in best.items()}


@partial(jax.jit, static_argnames="count")
def _candidates(X: Float[Array, "m c"], key: Key, count: int) -> Float[Array, "t c"]:
    """``count`` of the points, drawn in rounds with a probability proportional to the squared distance to the
    nearest of those before.
    """
    m = X.shape[0]
    each = max(1, -(-(count - 1) // ROUNDS))
    squares = jnp.sum(X * X, axis=1)
    first = jax.random.randint(jax.random.fold_in(key, 0), (1,), 0, m)

    rounds: Array

    def draw(state: tuple, i: Array) -> tuple:
        nearest, drawn = state
        own = jnp.sum(X[drawn] ** 2, axis=1)[:, None]
        products = jnp.matmul(X[drawn], X.T, precision="highest")
        nearest = jnp.minimum(nearest, jnp.min(squares[None] + own - 2 * products, axis=0))
        nearest = jnp.maximum(nearest, 0).at[drawn].set(0)  # drawn once, whatever was rounded
        # The largest of log p + Gumbel noise are a draw without replacement.
        noise = jax.random.gumbel(jax.random.fold_in(key, i), (m,), X.dtype)
        _, drawn = jax.lax.top_k(jnp.log(nearest) + noise, each)
        return (nearest, drawn), drawn

    start = (jnp.full(m, jnp.inf, X.dtype), jnp.broadcast_to(first, (each,)))
    _, rounds = jax.lax.scan(draw, start, jnp.arange(1, ROUNDS + 1))
    return X[jnp.concatenate([first, rounds.reshape(-1)])[:count]]


def ward(
    points: Float[np.ndarray, "t c"], weights: Int[np.ndarray, " t"], ks: Sequence[int]
) -> dict[int, Float[np.ndarray, "_ c"]]:
    """Merge weighted points two by two, each time those that add the least inertia (Ward 1963), and keep the
    means whenever one of ``ks`` is reached; t ≥ every k.
    """
    order = np.argsort(-weights, kind="stable")
    x, w = points[order].astype(np.float64), np.maximum(weights[order], 1e-9).astype(np.float64)
    squares = (x**2).sum(1)
    cost = squares[:, None] + squares[None] - 2 * (x @ x.T)
    cost = np.maximum(cost, 0) * (w[:, None] * w[None] / (w[:, None] + w[None]))
    np.fill_diagonal(cost, np.inf)
    alive = np.ones(len(x), bool)
    out = {len(x): x.astype(np.float32)} if len(x) in ks else {}
    for left in range(len(x) - 1, min(ks) - 1, -1):
        i, j = sorted(divmod(int(cost.argmin()), len(x)))
        x[i] = (w[i] * x[i] + w[j] * x[j]) / (w[i] + w[j])
        # Lance and Williams: the merged one's costs follow from those of its parts.
        with np.errstate(invalid="ignore"):
            row = (cost[i] * (w[i] + w) + cost[j] * (w[j] + w) - cost[i, j] * w) / (w[i] + w[j] + w)
        w[i] += w[j]
        alive[j] = False
        row[~alive] = np.inf
        row[i] = np.inf
        cost[i], cost[:, i] = row, row
        cost[j], cost[:, j] = np.inf, np.inf
        if left in ks:
            out[left] = x[alive].astype(np.float32)
    return out


# ------------------------------------------------------------------------------------------- many passes


def _lloyd(
    points: Points,
    centers: dict[int, np.ndarray],
    max_iterations: int,
    threshold: float,
    report: Report = lambda passes, shift: None,
) -> tuple[dict[int, np.ndarray], dict[int, int], list[int]]:
    """Lloyd's iteration for every k until its centres rest: the centres, after how many passes, and which k
    still move.
    """
    return _passes(
        lambda i, held: _moved(points, points.totals(held, sorted(held)), held),
        centers,
        max_iterations,
        threshold,
        report,
    )


def _mini_batches(
    points: Points,
    centers: dict[int, np.ndarray],
    max_iterations: int,
    threshold: float,
    key: Key,
    report: Report,
) -> tuple[dict[int, np.ndarray], dict[int, int], list[int]]:
    """Sculley's mini-batches: each in turn, in an order drawn for each pass, moves a centre towards the mean
    of all points it was ever given.
    """
    seen = {k: np.zeros(k) for k in centers}

    def one(i: int, held: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        ks, held = sorted(held), dict(held)
        here = {k: np.zeros(k) for k in ks}
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, PASS + i), points.batches))
        for batch in order:
            sums = points.totals(held, ks, batches=[int(batch)])
            for k in ks:
                counts = sums[k].counts
                seen[k] += counts
                here[k] += counts
                step = sums[k].sums - counts[:, None] * (held[k] - points.mean)
                moved = held[k] + step / np.maximum(seen[k], 1)[:, None]
                held[k] = (normalize(moved) if points.spherical else moved).astype(np.float32)
        for k in ks:  # the last batch's farthest points serve the whole pass
            empty = here[k] == 0
            held[k] = points.reseeded(held[k], empty, sums[k])
            seen[k][empty] = 0
        return held

    return _passes(one, centers, max_iterations, threshold, report)


def _passes(
    one: Callable[[int, dict[int, np.ndarray]], dict[int, np.ndarray]],
    centers: dict[int, np.ndarray],
    max_iterations: int,
    threshold: float,
    report: Report,
) -> tuple[dict[int, np.ndarray], dict[int, int], list[int]]:
    centers, iterations, moving = dict(centers), dict.fromkeys(centers, 0), sorted(centers)
    taken = moving
    for i in range(max_iterations):
        moved = one(i, {k: centers[k] for k in taken})
        shift = {k: float(((moved[k] - centers[k]) ** 2).sum(dtype=np.float64)) for k in moving}
        centers |= {k: moved[k] for k in moving}
        iterations |= dict.fromkeys(moving, i + 1)
        report(i + 1, max(shift.values()) / max(threshold, 1e-30))
        moving = [k for k in moving if shift[k] > threshold]
        if not moving:
            break
        if 2 * sum(moving) <= sum(taken):  # leaving a k out compiles the pass again
            taken = moving
    return centers, iterations, moving


def _moved(points: Points, sums: dict[int, Sums], centers: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Lloyd's step: each centre is the mean of its points."""
    out = {}
    for k, here in sums.items():
        means = here.sums / np.maximum(here.counts, 1)[:, None] + points.mean
        means = normalize(means) if points.spherical else means
        empty = here.counts == 0
        moved = np.where(empty[:, None], centers[k], means).astype(np.float32)
        out[k] = points.reseeded(moved, empty, here)
    return out
