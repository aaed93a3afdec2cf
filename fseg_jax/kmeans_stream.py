"""k-means over points that need not fit into memory, for several k in one reading, over any number of devices
and hosts.

Centres start from k-means‖ and Lloyd on a sample drawn by the key, the best of some restarts, and are then
moved over all points: by Lloyd's iteration, or by mini-batches (Sculley 2010). Points are read in batches of
a fixed size whatever the number of devices, each of which takes its part of every batch (``shard_map``) and
adds up sums and counts of its own; one ``psum`` ends a pass. So the centres do not depend on the devices but
for the order of float32 sums.

Products are of bfloat16 with float32 sums while centres move; the last update and the last assignment are
in float32. Points are centred first, so that what bfloat16 drops is small beside the spread of the points,
not beside their mean.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from fseg_jax.arrays import Centres, Key
from fseg_jax.errors import InputError

BATCH = 32_768  # points read at once, and a mini-batch
SLAB = 8192  # points a device holds distances for, at most
SAMPLE = 32_768  # points that centres start from, or 128 a centre
BLOCK = 256  # points of which one may become an empty cluster's centre
CANDIDATES = 64  # such points, of each k, kept in a pass
LLOYD_PASSES, MINI_BATCH_PASSES, START_PASSES = 100, 5, 50
OVERSAMPLING, ROUNDS = 4, 8  # of k-means‖: candidates a centre, and in how many rounds they are drawn
SAMPLING, PASS = 2**30, 2**30 + 1  # what the key is folded with, beside each k

ALGORITHMS = ("lloyd", "minibatch")
Report = Callable[[int, float], None]  # passes over the points so far, the largest shift over its threshold


class Rows(Protocol):
    """Points ``(n, c)``, any float dtype, read by ranges: an array, a memory map, a store."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


class StreamResult(NamedTuple):
    """What ``fit`` found for one k: ``KMeansResult`` with the squared distance of each point to its
    centre."""

    centers: Float[np.ndarray, "k c"]
    labels: Int[np.ndarray, " n"]
    distances: Float[np.ndarray, " n"]
    inertia: float
    iterations: int


class _Totals(NamedTuple):
    """What a pass has added up, a row a device; ``far`` and ``where`` are the points farthest from their
    centres, for each k, with their indices."""

    sums: Float[Array, "d K c"]
    counts: Int[Array, "d K"]
    inertia: Float[Array, "d s"]
    far: Float[Array, "d s t"]
    where: Int[Array, "d s t"]
    finite: Int[Array, " d"]


class _Layout(NamedTuple):
    """How a batch of ``rows`` points lies on the devices: ``slabs`` of ``slab`` points on each."""

    mesh: Mesh
    rows: int
    slabs: int
    slab: int

    @property
    def each(self) -> int:
        return self.slabs * self.slab

    @property
    def sharded(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec("rows"))

    @property
    def padded(self) -> int:
        return self.each * self.mesh.size


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
    number of clusters for n points, or a point holds a NaN or an infinity.
    """
    n = rows.shape[0]
    for k in ks:
        if not 1 <= k <= n:
            raise InputError(f"k = {k}: there are {n} points to cluster; choose k between 1 and {n}")
    if algorithm not in ALGORITHMS:
        raise InputError(f"algorithm {algorithm!r}: choose one of {', '.join(ALGORITHMS)}")
    if max_iterations is None:
        max_iterations = LLOYD_PASSES if algorithm == "lloyd" else MINI_BATCH_PASSES
    layout = _layout(n, list(devices if devices is not None else jax.devices()))
    sample = _sample(rows, min(n, max(SAMPLE, 128 * max(ks))), key)
    if spherical:
        sample = _unit(sample)
    mean = sample.mean(0, dtype=np.float64).astype(np.float32)
    threshold = tolerance * float(sample.var(0, dtype=np.float64).mean())
    centers = _start(sample, sorted(set(ks)), key, mean, threshold, spherical, restarts, layout.mesh)
    del sample
    run = _Run(rows, layout, mean, spherical)
    if algorithm == "lloyd":
        centers, iterations = _lloyd(run, centers, max_iterations, threshold, report)
    else:
        centers, iterations = _mini_batches(run, centers, max_iterations, threshold, key, report)
    every = sorted(set(ks))
    if algorithm == "lloyd":  # what bfloat16 rounded away, in one last step
        centers = _moved(run, run.totals(centers, every, exact=True), centers)
    labels, distances = run.assign(centers, every)
    return {
        k: StreamResult(
            centers[k], labels[j], distances[j], float(distances[j].sum(dtype=np.float64)), iterations[k]
        )
        for j, k in enumerate(every)
    }


# ------------------------------------------------------------------------------------------------- the start


def _sample(rows: Rows, count: int, key: Key) -> Float[np.ndarray, "m c"]:
    """Points drawn by the key without replacement, float32, in their order; one reading."""
    n, channels = rows.shape
    drawn = jax.random.permutation(jax.random.fold_in(key, SAMPLING), n)[:count]
    chosen = np.sort(np.asarray(drawn))
    out = np.empty((count, channels), np.float32)
    starts = range(0, n, BATCH)
    with ThreadPoolExecutor(1, thread_name_prefix="fseg-rows") as pool:
        reads = _ahead(pool, (partial(rows.__getitem__, slice(s, min(s + BATCH, n))) for s in starts))
        for start, part in zip(starts, reads, strict=True):
            low, high = np.searchsorted(chosen, (start, start + BATCH))
            out[low:high] = part[chosen[low:high] - start]
    return out


def _start(
    sample: np.ndarray,
    ks: Sequence[int],
    key: Key,
    mean: np.ndarray,
    threshold: float,
    spherical: bool,
    restarts: int,
    mesh: Mesh,
) -> dict[int, np.ndarray]:
    """For each k the best of some starts, each followed by Lloyd's iteration on the sample.

    A start is k-means‖ (Bahmani et al. 2012): several times more candidates than centres, drawn far from each
    other in a few rounds, each with the points nearest to it; those are clustered into every k, by Ward's
    criterion. One draw serves all k, and a group that would have got two centres seldom does.
    """
    run = _Run(sample, _layout(len(sample), list(mesh.devices.flat)), mean, spherical)
    X = jnp.asarray(sample - mean)
    count = max(max(ks), min(OVERSAMPLING * max(ks), len(sample) // 2))
    best: dict[int, tuple[float, np.ndarray]] = {}
    for restart in range(restarts):
        candidates = _candidates(X, jax.random.fold_in(key, restart), count)
        if jax.process_count() > 1:  # hosts of several kinds round differently
            candidates = multihost_utils.broadcast_one_to_all(candidates)
        held = {count: np.asarray(candidates) + mean}
        for _ in range(2):
            sums = run.totals(held, [count])
            held = _moved(run, sums, held)
        centers = ward(held[count] - mean, sums[count].counts, ks)
        centers, _ = _lloyd(run, {k: c + mean for k, c in centers.items()}, START_PASSES, 10 * threshold)
        for k, here in run.totals(centers, ks).items():
            if k not in best or here.inertia < best[k][0]:
                best[k] = here.inertia, centers[k]
    return {k: centers for k, (_, centers) in best.items()}


@partial(jax.jit, static_argnames="count")
def _candidates(X: Float[Array, "m c"], key: Key, count: int) -> Float[Array, "t c"]:
    """``count`` of the points, drawn in rounds with a probability proportional to the squared distance to the
    nearest of those before."""
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
) -> dict[int, Float[np.ndarray, "k c"]]:
    """Merge weighted points two by two, each time those that add the least inertia (Ward 1963), and keep the
    means whenever one of ``ks`` is reached; t ≥ every k."""
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


def _unit(X: np.ndarray) -> np.ndarray:
    return X / np.maximum(np.linalg.norm(X, axis=-1, keepdims=True), 1e-12)


# -------------------------------------------------------------------------------------------------- a pass


def _layout(n: int, devices: list[jax.Device]) -> _Layout:
    mesh = Mesh(np.array(devices), ("rows",), axis_types=(AxisType.Auto,))
    batch = min(BATCH, -(-n // BLOCK) * BLOCK)
    slabs = -(-batch // (SLAB * len(devices)))
    slab = -(-batch // (slabs * len(devices) * BLOCK)) * BLOCK
    return _Layout(mesh, batch, slabs, slab)


class _Sum(NamedTuple):
    """What a pass has added up for one k, over all devices; points are centred."""

    sums: Float[np.ndarray, "k c"]
    counts: Int[np.ndarray, " k"]
    inertia: float
    farthest: Int[np.ndarray, " t"]


class _Run:
    """Passes over the points: what stays the same from one to the next."""

    def __init__(self, rows: Rows, layout: _Layout, mean: np.ndarray, spherical: bool):
        self.rows, self.layout, self.mean, self.spherical = rows, layout, mean, spherical
        self.n, self.channels = rows.shape
        self.batches = -(-self.n // layout.rows)

    def totals(
        self,
        centers: dict[int, np.ndarray],
        ks: Sequence[int],
        *,
        batches: Sequence[int] | None = None,
        exact: bool = False,
    ) -> dict[int, _Sum]:
        """Assign all points, or those of some batches, to the nearest centres, and add them up."""
        totals, given = self._zeros(ks), self._given(centers, ks)
        for start, stop, X in self._read(range(self.batches) if batches is None else batches):
            totals = _add(totals, X, start, stop, *given, tuple(ks), self.layout, self.spherical, exact)
        return self._sums(totals, ks)

    def assign(
        self, centers: dict[int, np.ndarray], ks: Sequence[int]
    ) -> tuple[Int[np.ndarray, "s n"], Float[np.ndarray, "s n"]]:
        """The nearest centre of every point and its squared distance, in float32."""
        labels = np.zeros((len(ks), self.n), np.int32)
        distances = np.zeros((len(ks), self.n), np.float32)
        given = self._given(centers, ks)
        for start, stop, X in self._read(range(self.batches)):
            found = _nearest(X, *given, tuple(ks), self.layout, self.spherical)
            for out, array in zip((labels, distances), found, strict=True):
                for shard in array.addressable_shards:
                    begin = start + (shard.index[1].start or 0)
                    end = min(begin + self.layout.each, stop)
                    if begin < end:
                        out[:, begin:end] = np.asarray(shard.data)[:, : end - begin]
        if jax.process_count() > 1:  # each process has its own part, and zeros elsewhere
            labels = np.asarray(multihost_utils.process_allgather(labels)).sum(0, dtype=np.int32)
            distances = np.asarray(multihost_utils.process_allgather(distances)).sum(0)
        return labels, distances

    def reseeded(self, centers: np.ndarray, empty: np.ndarray, sums: _Sum) -> np.ndarray:
        """Empty clusters on the farthest points; where there are too few of those, as they were."""
        if not empty.any():
            return centers
        centers = centers.copy()
        for cluster, point in zip(np.flatnonzero(empty), sums.farthest, strict=False):
            x = np.asarray(self.rows[slice(int(point), int(point) + 1)][0], np.float32)
            centers[cluster] = _unit(x) if self.spherical else x
        return centers

    def _zeros(self, ks: Sequence[int]) -> _Totals:
        d, total, s = self.layout.mesh.size, sum(ks), len(ks)
        shapes = {
            "sums": ((d, total, self.channels), jnp.float32),
            "counts": ((d, total), jnp.int32),
            "inertia": ((d, s), jnp.float32),
            "far": ((d, s, CANDIDATES), jnp.float32),
            "where": ((d, s, CANDIDATES), jnp.int32),
            "finite": ((d,), jnp.int32),
        }
        make = {name: partial(jnp.zeros, *given) for name, given in shapes.items()}
        return _Totals(**{n: jax.jit(f, out_shardings=self.layout.sharded)() for n, f in make.items()})

    def _given(self, centers: dict[int, np.ndarray], ks: Sequence[int]) -> tuple[np.ndarray, ...]:
        """Centres of all k below each other, less the mean; the same on their side; the mean.

        A product with a transpose made on the device is three times slower on a CPU than one laid out so.
        """
        together = np.concatenate([centers[k] - self.mean for k in ks])
        return together, np.ascontiguousarray(together.T), self.mean

    def _sums(self, totals: _Totals, ks: Sequence[int]) -> dict[int, _Sum]:
        whole = jax.tree.map(np.asarray, _gather(totals, self.layout.mesh))
        if whole.finite.any():
            raise InputError("k-means: the points hold a NaN or an infinity; look at the encoder's features")
        out = {}
        for j, (k, begin) in enumerate(zip(ks, np.cumsum([0, *ks]), strict=False)):
            far, where = whole.far[:, j].ravel(), whole.where[:, j].ravel()
            order = np.lexsort((where, -far))[:CANDIDATES]
            here = slice(begin, begin + k)
            out[k] = _Sum(
                whole.sums[here], whole.counts[here], float(whole.inertia[j]), where[order][far[order] > 0]
            )
        return out

    def _read(self, order: Sequence[int] | np.ndarray) -> Iterator[tuple[int, int, Array]]:
        """Batches on their devices, read ahead: their first point, their end, and the points."""

        def batch(start: int, stop: int) -> Array:
            shape = (self.layout.padded, self.channels)
            parts = []
            for device, index in self.layout.sharded.addressable_devices_indices_map(shape).items():
                own = index[0] if index else slice(None)
                begin = min(start + (own.start or 0), stop)
                end = min(begin + self.layout.each, stop)
                part = self.rows[slice(begin, end)] if end > begin else self.rows[slice(0, 0)]
                if len(part) < self.layout.each:
                    part = np.concatenate(
                        [part, np.zeros((self.layout.each - len(part), self.channels), part.dtype)]
                    )
                parts.append(jax.device_put(part, device))
            return jax.make_array_from_single_device_arrays(shape, self.layout.sharded, parts)

        with ThreadPoolExecutor(1, thread_name_prefix="fseg-rows") as pool:
            bounds = [
                (int(i) * self.layout.rows, min((int(i) + 1) * self.layout.rows, self.n)) for i in order
            ]
            reads = _ahead(pool, (partial(batch, *bound) for bound in bounds))
            for (start, stop), X in zip(bounds, reads, strict=True):
                yield start, stop, X


# ------------------------------------------------------------------------------------------- many passes


def _lloyd(
    run: _Run,
    centers: dict[int, np.ndarray],
    max_iterations: int,
    threshold: float,
    report: Report = lambda passes, shift: None,
) -> tuple[dict[int, np.ndarray], dict[int, int]]:
    """Lloyd's iteration for every k until its centres rest: the centres, and after how many passes."""
    return _passes(
        lambda i, held: _moved(run, run.totals(held, sorted(held)), held),
        centers,
        max_iterations,
        threshold,
        report,
    )


def _mini_batches(
    run: _Run,
    centers: dict[int, np.ndarray],
    max_iterations: int,
    threshold: float,
    key: Key,
    report: Report,
) -> tuple[dict[int, np.ndarray], dict[int, int]]:
    """Sculley's mini-batches: each in turn, in an order drawn for each pass, moves a centre towards the mean
    of all points it was ever given."""
    seen = {k: np.zeros(k) for k in centers}

    def one(i: int, held: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        ks, held = sorted(held), dict(held)
        here = {k: np.zeros(k) for k in ks}
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, PASS + i), run.batches))
        for batch in order:
            sums = run.totals(held, ks, batches=[int(batch)])
            for k in ks:
                counts = sums[k].counts
                seen[k] += counts
                here[k] += counts
                step = sums[k].sums - counts[:, None] * (held[k] - run.mean)
                moved = held[k] + step / np.maximum(seen[k], 1)[:, None]
                held[k] = (_unit(moved) if run.spherical else moved).astype(np.float32)
        for k in ks:  # the last batch's farthest points serve the whole pass
            empty = here[k] == 0
            held[k] = run.reseeded(held[k], empty, sums[k])
            seen[k][empty] = 0
        return held

    return _passes(one, centers, max_iterations, threshold, report)


def _passes(
    one: Callable[[int, dict[int, np.ndarray]], dict[int, np.ndarray]],
    centers: dict[int, np.ndarray],
    max_iterations: int,
    threshold: float,
    report: Report,
) -> tuple[dict[int, np.ndarray], dict[int, int]]:
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
    return centers, iterations


def _moved(run: _Run, sums: dict[int, _Sum], centers: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Lloyd's step: each centre is the mean of its points."""
    out = {}
    for k, here in sums.items():
        means = here.sums / np.maximum(here.counts, 1)[:, None] + run.mean
        means = _unit(means) if run.spherical else means
        empty = here.counts == 0
        moved = np.where(empty[:, None], centers[k], means).astype(np.float32)
        out[k] = run.reseeded(moved, empty, here)
    return out


def _ahead(pool: ThreadPoolExecutor, reads: Iterator[Callable[[], Any]]) -> Iterator[Any]:
    """Results in order, the next one being read while one is used."""
    waiting: list[Future] = []
    for read in reads:
        waiting.append(pool.submit(read))
        if len(waiting) > 1:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()


# -------------------------------------------------------------------------------------------- on the devices


def _prepared(x: Float[Array, "m c"], mean: Float[Array, " c"], spherical: bool) -> Float[Array, "m c"]:
    x = x.astype(jnp.float32)
    if spherical:
        x = x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return x - mean[None]


def _products(a: Array, b: Array, exact: bool) -> Float[Array, "m n"]:
    """a · b with float32 sums, of float32 or of bfloat16."""
    if exact:
        return jnp.matmul(a, b, precision="highest")
    return jnp.matmul(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), preferred_element_type=jnp.float32)


def _labelled(scores: Float[Array, "m k"]) -> tuple[Int[Array, " m"], Float[Array, " m"]]:
    """The column of the smallest of each row, the first of several, and its value: two plain reductions,
    which a CPU does in vectors, where argmin is one of pairs."""
    least = jnp.min(scores, axis=1)
    columns = jnp.arange(scores.shape[1], dtype=jnp.int32)[None]
    at = jnp.where(scores == least[:, None], columns, scores.shape[1])
    return jnp.minimum(jnp.min(at, axis=1), scores.shape[1] - 1), least  # of NaN no column is the least


@partial(jax.jit, static_argnames=("ks", "layout", "spherical", "exact"), donate_argnums=0)
def _add(
    totals: _Totals,
    X: Float[Array, "B c"],
    start: int,
    stop: int,
    centers: Centres,
    across: Float[Array, "c K"],
    mean: Float[Array, " c"],
    ks: tuple[int, ...],
    layout: _Layout,
    spherical: bool,
    exact: bool,
) -> _Totals:
    """Add a batch, points ``start`` to ``stop``, to what each device has added up."""
    spread, same = PartitionSpec("rows"), PartitionSpec()

    def local(
        totals: _Totals, X: Array, start: Array, stop: Array, centers: Array, across: Array, mean: Array
    ) -> _Totals:
        sums, counts, inertia, far, where, finite = (part[0] for part in totals)
        squares = jnp.sum(centers * centers, axis=1)[None]
        first = start + jax.lax.axis_index("rows") * layout.each
        for i in range(layout.slabs):
            index = first + i * layout.slab + jnp.arange(layout.slab, dtype=jnp.int32)
            fresh = index < stop
            x = _prepared(X[i * layout.slab : (i + 1) * layout.slab], mean, spherical)
            x = jnp.where(fresh[:, None], x, 0).astype(jnp.float32 if exact else jnp.bfloat16)
            own = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=1)
            scores = squares - 2 * _products(x, across, exact)
            members = []
            for j, (k, begin) in enumerate(zip(ks, np.cumsum([0, *ks]).tolist(), strict=False)):
                labels, least = _labelled(scores[:, begin : begin + k])
                labels = jnp.where(fresh, labels, k)  # of no cluster
                members.append(labels[None] == jnp.arange(k, dtype=jnp.int32)[:, None])
                distance = jnp.where(fresh, jnp.maximum(own + least, 0), 0).reshape(-1, BLOCK)
                inertia = inertia.at[j].add(jnp.sum(distance))
                best = jnp.argmax(distance, axis=1)
                point = index.reshape(-1, BLOCK)[:, 0] + best.astype(jnp.int32)
                value = jnp.concatenate([far[j], jnp.max(distance, axis=1)])
                top, at = jax.lax.top_k(value, CANDIDATES)
                far, where = far.at[j].set(top), where.at[j].set(jnp.concatenate([where[j], point])[at])
            member = jnp.concatenate(members)
            sums = sums + _products(member.astype(x.dtype), x, exact)
            counts = counts + jnp.sum(member, axis=1, dtype=jnp.int32)
            finite = finite + jnp.sum(~jnp.isfinite(own), dtype=jnp.int32)
        return _Totals(*(part[None] for part in (sums, counts, inertia, far, where, finite)))

    return jax.shard_map(
        local, mesh=layout.mesh, in_specs=(spread, spread, same, same, same, same, same), out_specs=spread
    )(totals, X, jnp.int32(start), jnp.int32(stop), centers, across, mean)


@partial(jax.jit, static_argnames="mesh")
def _gather(totals: _Totals, mesh: Mesh) -> _Totals:
    """Sums over all devices, and all devices' farthest points; the same everywhere."""

    def local(totals: _Totals) -> _Totals:
        added = (totals.sums, totals.counts, totals.inertia, totals.finite)
        sums, counts, inertia, finite = (jax.lax.psum(part[0], "rows") for part in added)
        far, where = (jax.lax.all_gather(part[0], "rows") for part in (totals.far, totals.where))
        return _Totals(sums, counts, inertia, far, where, finite)

    return jax.shard_map(
        local, mesh=mesh, in_specs=PartitionSpec("rows"), out_specs=PartitionSpec(), check_vma=False
    )(totals)


@partial(jax.jit, static_argnames=("ks", "layout", "spherical"))
def _nearest(
    X: Float[Array, "B c"],
    centers: Centres,
    across: Float[Array, "c K"],
    mean: Float[Array, " c"],
    ks: tuple[int, ...],
    layout: _Layout,
    spherical: bool,
) -> tuple[Int[Array, "s B"], Float[Array, "s B"]]:
    """The nearest centre of each point for each k, and the squared distance to it, not by expansion."""
    spread, same = PartitionSpec("rows"), PartitionSpec()

    def local(X: Array, centers: Array, across: Array, mean: Array) -> tuple[Array, Array]:
        squares = jnp.sum(centers * centers, axis=1)[None]
        slabs = []
        for i in range(layout.slabs):
            x = _prepared(X[i * layout.slab : (i + 1) * layout.slab], mean, spherical)
            scores = squares - 2 * _products(x, across, True)
            found = []
            for k, begin in zip(ks, np.cumsum([0, *ks]).tolist(), strict=False):
                labels, _ = _labelled(scores[:, begin : begin + k])
                found.append((labels, jnp.sum((x - centers[begin : begin + k][labels]) ** 2, axis=1)))
            slabs.append(tuple(jnp.stack(part) for part in zip(*found, strict=True)))
        labels, distances = (jnp.concatenate(part, axis=1) for part in zip(*slabs, strict=True))
        return labels, distances

    return jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=(spread, same, same, same),
        out_specs=PartitionSpec(None, "rows"),
    )(X, centers, across, mean)
