"""One pass over points that need not fit into memory: each is given to its nearest centres, for several k at
once, and added up there, over any number of devices and hosts.

Points are read in batches of a fixed size whatever the number of devices, each of which takes its part of
every batch (``shard_map``) and adds up sums and counts of its own; one ``psum`` ends a pass. So sums do not
depend on the devices but for the order in which float32 are added.

Points are centred first. Products are then of bfloat16 with float32 sums, and what bfloat16 drops is small
beside the spread of the points; or, where asked for, all is in float32.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from fseg_jax.errors import InputError
from fseg_jax.numerics.axes import find_smallest, normalize
from fseg_jax.numerics.prefetch import prefetch

BATCH = 32_768  # points read at once, and a mini-batch
SLAB = 8192  # points a device holds distances for, at most
BLOCK = 256  # points of which one may become an empty cluster's centre
CANDIDATES = 64  # such points, of each k, kept in a pass

Given = Array | np.ndarray  # of the host, the same for all devices


@runtime_checkable
class Rows(Protocol):
    """Points ``(n, c)``, any float dtype, read by ranges: an array, a memory map, a store."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


class Sums(NamedTuple):
    """What a pass has added up for one k, over all devices; points are centred."""

    sums: Float[np.ndarray, "k c"]
    counts: Int[np.ndarray, " k"]
    inertia: float
    farthest: Int[np.ndarray, " t"]


class _Totals(NamedTuple):
    """What a pass has added up, a row a device; ``far`` and ``where`` are the points farthest from their
    centres, for each k, with their indices.
    """

    sums: Float[Array, "d K c"]
    counts: Int[Array, "d K"]
    inertia: Float[Array, "d s"]
    far: Float[Array, "d s t"]
    where: Int[Array, "d s t"]
    finite: Int[Array, " d"]


class _Given(NamedTuple):
    """What points are compared with: the centres of all k below each other, less the mean; the same on their
    side; the mean. A product with a transpose made on the device takes a CPU three times as long.
    """

    centers: Float[Given, "K c"]
    across: Float[Given, "c K"]
    mean: Float[Given, " c"]


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


def _layout(n: int, devices: Sequence[jax.Device]) -> _Layout:
    mesh = Mesh(np.array(list(devices)), ("rows",), axis_types=(AxisType.Auto,))
    batch = min(BATCH, -(-n // BLOCK) * BLOCK)
    slabs = -(-batch // (SLAB * len(devices)))
    slab = -(-batch // (slabs * len(devices) * BLOCK)) * BLOCK
    return _Layout(mesh, batch, slabs, slab)


class Points:
    """Points to pass over, on ``devices``: what stays the same from one pass to the next.

    ``rows (n, c)`` are centred by ``mean (c,)``, with ``spherical`` after they were scaled to length one.
    """

    def __init__(
        self, rows: Rows, devices: Sequence[jax.Device], mean: Float[np.ndarray, " c"], spherical: bool
    ):
        self.rows, self.mean, self.spherical = rows, mean, spherical
        self.n, self.channels = rows.shape
        self.layout = _layout(self.n, devices)
        self.batches = -(-self.n // self.layout.rows)

    def totals(
        self,
        centers: dict[int, np.ndarray],
        ks: Sequence[int],
        *,
        batches: Sequence[int] | None = None,
        exact: bool = False,
    ) -> dict[int, Sums]:
        """Assign all points, or those of some batches, to the nearest centres, and add them up."""
        totals, given = self._zeros(ks), self._given(centers, ks)
        for start, stop, X in self._read(range(self.batches) if batches is None else batches):
            totals = _add(totals, X, start, stop, given, tuple(ks), self.layout, self.spherical, exact)
        return self._sums(totals, ks)

    def assign(
        self, centers: dict[int, np.ndarray], ks: Sequence[int]
    ) -> tuple[Int[np.ndarray, "s n"], Float[np.ndarray, "s n"]]:
        """The nearest centre of every point and its squared distance, in float32."""
        labels = np.zeros((len(ks), self.n), np.int32)
        distances = np.zeros((len(ks), self.n), np.float32)
        given = self._given(centers, ks)
        for start, stop, X in self._read(range(self.batches)):
            found = _nearest(X, given, tuple(ks), self.layout, self.spherical)
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

    def reseeded(self, centers: np.ndarray, empty: np.ndarray, sums: Sums) -> np.ndarray:
        """Empty clusters on the farthest points; where there are too few of those, as they were."""
        if not empty.any():
            return centers
        centers = centers.copy()
        for cluster, point in zip(np.flatnonzero(empty), sums.farthest, strict=False):
            x = np.asarray(self.rows[slice(int(point), int(point) + 1)][0], np.float32)
            centers[cluster] = normalize(x) if self.spherical else x
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

    def _given(self, centers: dict[int, np.ndarray], ks: Sequence[int]) -> _Given:
        together = np.concatenate([centers[k] - self.mean for k in ks])
        return _Given(together, np.ascontiguousarray(together.T), self.mean)

    def _sums(self, totals: _Totals, ks: Sequence[int]) -> dict[int, Sums]:
        whole = jax.tree.map(np.asarray, _gather(totals, self.layout.mesh))
        if whole.finite.any():
            raise InputError(
                "k-means: the points hold a NaN, an infinity or a value far beyond the others; look at the "
                "encoder's features"
            )
        out = {}
        for j, (k, begin) in enumerate(zip(ks, np.cumsum([0, *ks]), strict=False)):
            far, where = whole.far[:, j].ravel(), whole.where[:, j].ravel()
            order = np.lexsort((where, -far))[:CANDIDATES]
            here = slice(begin, begin + k)
            out[k] = Sums(
                whole.sums[here], whole.counts[here], float(whole.inertia[j]), where[order][far[order] > 0]
            )
        return out

    def _read(self, order: Sequence[int] | np.ndarray) -> Iterator[tuple[int, int, Array]]:
        """Batches on their devices, read prefetch: their first point, their end, and the points."""

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
            reads = prefetch(pool.submit(batch, *bound) for bound in bounds)
            for (start, stop), X in zip(bounds, reads, strict=True):
                yield start, stop, X.result()


def take(rows: Rows, chosen: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m c"]:
    """Some of the points, by their indices, which ascend; float32, in one reading."""
    n, channels = rows.shape
    out = np.empty((len(chosen), channels), np.float32)
    starts = range(0, n, BATCH)
    with ThreadPoolExecutor(1, thread_name_prefix="fseg-rows") as pool:
        reads = prefetch(pool.submit(rows.__getitem__, slice(s, min(s + BATCH, n))) for s in starts)
        for start, part in zip(starts, reads, strict=True):
            low, high = np.searchsorted(chosen, (start, start + BATCH))
            out[low:high] = part.result()[chosen[low:high] - start]
    return out


# -------------------------------------------------------------------------------------------- on the devices


def _prepared(x: Float[Array, "m c"], mean: Float[Given, " c"], spherical: bool) -> Float[Array, "m c"]:
    x = x.astype(jnp.float32)
    if spherical:  # as ``normalize`` does, in one pass less; what overflows here counts as not finite
        length = jnp.linalg.vector_norm(x, axis=-1, keepdims=True)
        x = x / jnp.where(jnp.isfinite(length), jnp.maximum(length, 1e-12), jnp.nan)
    return x - mean[None]


def _products(a: Array, b: Given, exact: bool) -> Float[Array, "m n"]:
    """A · b with float32 sums, of float32 or of bfloat16."""
    if exact:
        return jnp.matmul(a, b, precision="highest")
    return jnp.matmul(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), preferred_element_type=jnp.float32)


@partial(jax.jit, static_argnames=("ks", "layout", "spherical", "exact"), donate_argnums=0)
def _add(
    totals: _Totals,
    X: Float[Array, "B c"],
    start: int | Int[Array, ""],
    stop: int | Int[Array, ""],
    given: _Given,
    ks: tuple[int, ...],
    layout: _Layout,
    spherical: bool,
    exact: bool,
) -> _Totals:
    """Add a batch, points ``start`` to ``stop``, to what each device has added up."""
    spread, same = PartitionSpec("rows"), PartitionSpec()

    def local(totals: _Totals, X: Array, start: Array, stop: Array, given: _Given) -> _Totals:
        sums, counts, inertia, far, where, finite = (part[0] for part in totals)
        squares = jnp.sum(jnp.square(given.centers), axis=1)[None]
        first = start + jax.lax.axis_index("rows") * layout.each
        for i in range(layout.slabs):
            index = first + i * layout.slab + jnp.arange(layout.slab, dtype=jnp.int32)
            fresh = index < stop
            x = _prepared(X[i * layout.slab : (i + 1) * layout.slab], given.mean, spherical)
            x = jnp.where(fresh[:, None], x, 0).astype(jnp.float32 if exact else jnp.bfloat16)
            own = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=1)
            scores = squares - 2 * _products(x, given.across, exact)
            members = []
            for j, (k, begin) in enumerate(zip(ks, np.cumsum([0, *ks]).tolist(), strict=False)):
                labels, least = find_smallest(scores[:, begin : begin + k], 1)
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
        local, mesh=layout.mesh, in_specs=(spread, spread, same, same, same), out_specs=spread
    )(totals, X, jnp.int32(start), jnp.int32(stop), given)


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
    given: _Given,
    ks: tuple[int, ...],
    layout: _Layout,
    spherical: bool,
) -> tuple[Int[Array, "s B"], Float[Array, "s B"]]:
    """The nearest centre of each point for each k, and the squared distance to it, not by expansion."""
    spread, same = PartitionSpec("rows"), PartitionSpec()

    def local(X: Array, given: _Given) -> tuple[Array, Array]:
        squares = jnp.sum(jnp.square(given.centers), axis=1)[None]
        slabs = []
        for i in range(layout.slabs):
            x = _prepared(X[i * layout.slab : (i + 1) * layout.slab], given.mean, spherical)
            scores = squares - 2 * _products(x, given.across, True)
            found = []
            for k, begin in zip(ks, np.cumsum([0, *ks]).tolist(), strict=False):
                labels, _ = find_smallest(scores[:, begin : begin + k], 1)
                found.append((labels, jnp.sum((x - given.centers[begin : begin + k][labels]) ** 2, axis=1)))
            slabs.append(tuple(jnp.stack(part) for part in zip(*found, strict=True)))
        labels, distances = (jnp.concatenate(part, axis=1) for part in zip(*slabs, strict=True))
        return labels, distances

    return jax.shard_map(
        local, mesh=layout.mesh, in_specs=(spread, same), out_specs=PartitionSpec(None, "rows")
    )(X, given)
