"""k-means over points larger than memory, for several k in one reading, over any number of devices and hosts.

Centres start on a sample drawn by the key: by k-means‖ (``seeding.py``), then Lloyd's iteration, the best of
some restarts. They are then moved over all points, by Lloyd's iteration or by mini-batches (Sculley 2010). A
pass (``shards.py``) serves all k. Its products are of bfloat16 while centres move. The last update and the
last assignment are in float32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float, Int

from fseg_jax.errors import InputError
from fseg_jax.numerics.arrays import Key
from fseg_jax.numerics.axes import normalize
from fseg_jax.numerics.kmeans.seeding import draw_candidates, merge_ward
from fseg_jax.numerics.kmeans.shards import Points, Rows, Sums, read_rows
from fseg_jax.numerics.scaling import safe_scale

SAMPLE = 32_768  # points that centres start from, or 128 a centre
# Passes at most: of Lloyd's iteration, of mini-batches, and of Lloyd's iteration on the sample.
LLOYD_PASSES, MINI_BATCH_PASSES, START_PASSES = 100, 5, 50
OVERSAMPLING = 4  # candidates of k-means‖ for each centre
SAMPLE_FOLD, PASS_FOLD = 2**30, 2**30 + 1  # folded into the key: for the sample, and for each pass's order

Algorithm = Literal["lloyd", "minibatch"]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
OnPass = Callable[[int, float], None]  # passes over the points so far, the largest shift over its threshold
CentersOfK = dict[int, Float[np.ndarray, "_ c"]]  # the centres of each k


class StreamResult(NamedTuple):
    """Clusters of points, for one k.

    Attributes:
        centers: the mean of each cluster's points.
        labels: each point's cluster, 0…k−1.
        distances: the squared distance of each point to its centre; in float64 where the points' squares are
            beyond float32.
        inertia: the sum of the distances.
        iterations: how many passes over the points moved the centres.
        converged: whether the centres have converged.
    """

    centers: Float[np.ndarray, "k c"]
    labels: Int[np.ndarray, " n"]
    distances: Float[np.ndarray, " n"]
    inertia: float
    iterations: int
    converged: bool


@dataclass(frozen=True)
class _Scaled:
    """Points whose squares are beyond float32, scaled as they are read."""

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
    algorithm: Algorithm = "lloyd",
    spherical: bool = False,
    restarts: int = 2,
    max_iterations: int | None = None,
    tolerance: float = 1e-4,
    devices: Sequence[jax.Device] | None = None,
    on_pass: OnPass = lambda passes, shift: None,
) -> dict[int, StreamResult]:
    """Cluster ``rows (n, c)`` into each of ``ks`` clusters, n ≥ every k.

    Each pass over the points serves all k that still move. An empty cluster takes one of the points farthest
    from their centres. Every process of a ``jax.distributed`` job calls this alike and gets the same result;
    it reads only its own part of each batch.

    Args:
        rows: the points.
        ks: numbers of clusters.
        key: Random key of the sample, the first centres and the order of mini-batches.
        algorithm: how centres move: by Lloyd's iteration or by mini-batches.
        spherical: scale points and centres to length one, so that the nearest centre is that of the greatest
            cosine.
        restarts: how often centres start on the sample; the best are taken.
        max_iterations: passes at most; 100 of Lloyd's iteration or 5 of mini-batches unless given.
        tolerance: a k has converged when its centres' squared shifts sum to at most ``tolerance`` × the mean
            variance of a channel, as in ``kmeans.fit``.
        devices: all devices unless given.
        on_pass: called after each pass.

    Raises:
        InputError: if a k is not from 1 to n, or a point holds a NaN or an infinity, or is far beyond the
            others.
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
        scale = 1.0  # centres of length one come out as they are
    mean = sample.mean(0, dtype=np.float64).astype(np.float32)
    threshold = tolerance * float(sample.var(0, dtype=np.float64).mean())
    centers = _start(sample, sorted(set(ks)), key, mean, threshold, spherical, restarts, devices)
    del sample
    points = Points(rows, devices, mean, spherical)
    if algorithm == "lloyd":
        centers, iterations, moving = _lloyd(points, centers, max_iterations, threshold, on_pass)
    else:
        centers, iterations, moving = _mini_batches(points, centers, max_iterations, threshold, key, on_pass)
    distinct = sorted(set(ks))
    if algorithm == "lloyd":  # one last step in float32, without the rounding of bfloat16
        centers = _move(points, points.sum_clusters(centers, distinct, exact=True), centers)
    labels, distances = points.assign(centers, distinct)
    if scale != 1:
        centers = {k: scaled / np.float32(scale) for k, scaled in centers.items()}
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
        for j, k in enumerate(distinct)
    }


# ------------------------------------------------------------------------------------------------- the start


def _sample(rows: Rows, count: int, key: Key) -> Float[np.ndarray, "m c"]:
    """Draw points by the key without replacement: float32, in their order."""
    drawn = jax.random.permutation(jax.random.fold_in(key, SAMPLE_FOLD), rows.shape[0])[:count]
    return read_rows(rows, np.sort(np.asarray(drawn)))


def _start(
    sample: np.ndarray,
    ks: Sequence[int],
    key: Key,
    mean: np.ndarray,
    threshold: float,
    spherical: bool,
    restarts: int,
    devices: Sequence[jax.Device],
) -> CentersOfK:
    """Choose first centres for each k: the best of some starts, each followed by Lloyd's iteration.

    A start is k-means‖ (Bahmani et al. 2012). Several times more candidates than centres are drawn far from
    each other. Each is weighted with the points nearest to it, and the candidates are merged into every k by
    Ward's criterion. One draw serves all k, and a group of points seldom gets two centres.
    """
    points = Points(sample, devices, mean, spherical)
    X = jnp.asarray(sample - mean)
    count = max(max(ks), min(OVERSAMPLING * max(ks), len(sample) // 2))
    best: dict[int, tuple[float, np.ndarray]] = {}
    for restart in range(restarts):
        candidates = draw_candidates(X, jax.random.fold_in(key, restart), count)
        if jax.process_count() > 1:  # hosts of several kinds round differently
            candidates = multihost_utils.broadcast_one_to_all(candidates)
        merged = {count: np.asarray(candidates) + mean}
        for _ in range(2):
            sums = points.sum_clusters(merged, [count])
            merged = _move(points, sums, merged)
        centers = merge_ward(merged[count] - mean, sums[count].counts, ks)
        centers, _, _ = _lloyd(
            points, {k: c + mean for k, c in centers.items()}, START_PASSES, 10 * threshold
        )
        for k, sums_of_k in points.sum_clusters(centers, ks).items():
            if k not in best or sums_of_k.inertia < best[k][0]:
                best[k] = sums_of_k.inertia, centers[k]
    return {k: centers for k, (_, centers) in best.items()}


# ------------------------------------------------------------------------------------------- many passes


class _Moved(NamedTuple):
    """Centres after some passes, how many passes moved them, and which k still move."""

    centers: CentersOfK
    iterations: dict[int, int]
    moving: list[int]


def _lloyd(
    points: Points,
    centers: CentersOfK,
    max_iterations: int,
    threshold: float,
    on_pass: OnPass = lambda passes, shift: None,
) -> _Moved:
    """Move the centres of every k by Lloyd's iteration until they converge."""
    return _repeat(
        lambda i, centers: _move(points, points.sum_clusters(centers, sorted(centers)), centers),
        centers,
        max_iterations,
        threshold,
        on_pass,
    )


def _mini_batches(
    points: Points,
    centers: CentersOfK,
    max_iterations: int,
    threshold: float,
    key: Key,
    on_pass: OnPass,
) -> _Moved:
    """Move the centres of every k by mini-batches (Sculley 2010), in an order drawn for each pass.

    Each batch moves a centre towards the mean of all points that it was ever given.
    """
    seen = {k: np.zeros(k) for k in centers}  # points that each centre was ever given

    def move(i: int, centers: CentersOfK) -> CentersOfK:
        ks, centers = sorted(centers), dict(centers)
        seen_in_pass = {k: np.zeros(k) for k in ks}
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, PASS_FOLD + i), points.batches))
        for batch in order:
            sums = points.sum_clusters(centers, ks, batches=[int(batch)])
            for k in ks:
                counts = sums[k].counts
                seen[k] += counts
                seen_in_pass[k] += counts
                step = sums[k].sums - counts[:, None] * (centers[k] - points.mean)
                moved = centers[k] + step / np.maximum(seen[k], 1)[:, None]
                centers[k] = (normalize(moved) if points.spherical else moved).astype(np.float32)
        for k in ks:  # the last batch's farthest points serve the whole pass
            empty = seen_in_pass[k] == 0
            centers[k] = points.reseed(centers[k], empty, sums[k])
            seen[k][empty] = 0
        return centers

    return _repeat(move, centers, max_iterations, threshold, on_pass)


def _repeat(
    move: Callable[[int, CentersOfK], CentersOfK],
    centers: CentersOfK,
    max_iterations: int,
    threshold: float,
    on_pass: OnPass,
) -> _Moved:
    """Make passes until the centres of every k have converged."""
    centers, iterations, moving = dict(centers), dict.fromkeys(centers, 0), sorted(centers)
    in_pass = moving
    for i in range(max_iterations):
        moved = move(i, {k: centers[k] for k in in_pass})
        shift = {k: float(((moved[k] - centers[k]) ** 2).sum(dtype=np.float64)) for k in moving}
        centers |= {k: moved[k] for k in moving}
        iterations |= dict.fromkeys(moving, i + 1)
        on_pass(i + 1, max(shift.values()) / max(threshold, 1e-30))
        moving = [k for k in moving if shift[k] > threshold]
        if not moving:
            break
        if 2 * sum(moving) <= sum(in_pass):  # leaving a k out compiles the pass again
            in_pass = moving
    return _Moved(centers, iterations, moving)


def _move(points: Points, sums: dict[int, Sums], centers: CentersOfK) -> CentersOfK:
    """Move each centre to the mean of its points (Lloyd's step)."""
    moved = {}
    for k, sums_of_k in sums.items():
        means = sums_of_k.sums / np.maximum(sums_of_k.counts, 1)[:, None] + points.mean
        means = normalize(means) if points.spherical else means
        empty = sums_of_k.counts == 0
        centers_of_k = np.where(empty[:, None], centers[k], means).astype(np.float32)
        moved[k] = points.reseed(centers_of_k, empty, sums_of_k)
    return moved
