"""One pass over points larger than memory, for several k at once, over any number of devices and hosts.

A pass assigns each point to its nearest centres, and sums the points of each cluster. Points are read in
batches of a fixed size, whatever the number of devices. Each device takes its part of every batch
(``shard_map``) and has sums and counts of its own; one ``psum`` ends a pass. So the sums do not depend on the
devices, but for the order in which float32 are added.

Points are centred first. Products are then of bfloat16 with float32 sums; what bfloat16 drops is small beside
the spread of the points. Where ``exact`` is set, all is in float32.
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
FARTHEST = 64  # such points kept in a pass, for each k

HostArray = Array | np.ndarray  # the same for all devices


@runtime_checkable
class Rows(Protocol):
    """Points ``(n, c)``, any float dtype, read by ranges: an array, a memory map, a store."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (n, c)."""
        ...

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


class Sums(NamedTuple):
    """Sums of a pass for one k, over all devices; points are centred.

    Attributes:
        sums: the sum of each cluster's points.
        counts: the number of each cluster's points.
        inertia: the sum of squared distances of the points to their centres.
        farthest: the indices of the points farthest from their centres, the farthest first.
    """

    sums: Float[np.ndarray, "k c"]
    counts: Int[np.ndarray, " k"]
    inertia: float
    farthest: Int[np.ndarray, " t"]


class _Totals(NamedTuple):
    """Sums of a pass so far, a row for each device.

    Attributes:
        sums: the sum of each cluster's points, clusters of all k below each other.
        counts: the number of each cluster's points.
        inertia: the sum of squared distances to the centres, for each k.
        far: the largest squared distances to the centres, for each k.
        where: the points at these distances.
        bad: how many points are not finite.
    """

    sums: Float[Array, "d K c"]
    counts: Int[Array, "d K"]
    inertia: Float[Array, "d s"]
    far: Float[Array, "d s t"]
    where: Int[Array, "d s t"]
    bad: Int[Array, " d"]


class _AllCenters(NamedTuple):
    """The centres of all k that points are compared with.

    Attributes:
        centers: those of all k below each other, less the mean.
        transposed: the same; a product with a transpose made on the device takes a CPU three times as long.
        mean: the mean of the points.
    """

    centers: Float[HostArray, "K c"]
    transposed: Float[HostArray, "c K"]
    mean: Float[HostArray, " c"]


class _Layout(NamedTuple):
    """The layout of a batch of points on the devices."""

    mesh: Mesh  # the devices
    rows: int  # points of a batch
    slabs: int  # slabs on each device
    slab: int  # points of a slab

    @property
    def per_device(self) -> int:
        return self.slabs * self.slab

    @property
    def sharded(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec("rows"))

    @property
    def padded(self) -> int:
        return self.per_device * self.mesh.size


def _lay_out(n: int, devices: Sequence[jax.Device]) -> _Layout:
    mesh = Mesh(np.array(list(devices)), ("rows",), axis_types=(AxisType.Auto,))
    batch = min(BATCH, -(-n // BLOCK) * BLOCK)
    slabs = -(-batch // (SLAB * len(devices)))
    slab = -(-batch // (slabs * len(devices) * BLOCK)) * BLOCK
    return _Layout(mesh, batch, slabs, slab)


class Points:
    """Points to pass over, on some devices.

    Attributes:
        rows: the points ``(n, c)``.
        mean: subtracted from every point, ``(c,)``.
        spherical: whether points are scaled to length one first.
        n: how many points there are.
        channels: how many channels they have.
        layout: how a batch lies on the devices.
        batches: how many batches a pass reads.
    """

    def __init__(
        self, rows: Rows, devices: Sequence[jax.Device], mean: Float[np.ndarray, " c"], spherical: bool
    ):
        self.rows, self.mean, self.spherical = rows, mean, spherical
        self.n, self.channels = rows.shape
        self.layout = _lay_out(self.n, devices)
        self.batches = -(-self.n // self.layout.rows)

    def sum_clusters(
        self,
        centers: dict[int, np.ndarray],
        ks: Sequence[int],
        *,
        batches: Sequence[int] | None = None,
        exact: bool = False,
    ) -> dict[int, Sums]:
        """Assign all points, or those of some batches, to the nearest centres, and sum each cluster."""
        totals, against = self._zeros(ks), self._join(centers, ks)
        for start, stop, X in self._read(range(self.batches) if batches is None else batches):
            totals = _add(totals, X, start, stop, against, tuple(ks), self.layout, self.spherical, exact)
        return self._split(totals, ks)

    def assign(
        self, centers: dict[int, np.ndarray], ks: Sequence[int]
    ) -> tuple[Int[np.ndarray, "s n"], Float[np.ndarray, "s n"]]:
        """Find the nearest centre of every point and its squared distance, in float32."""
        labels = np.zeros((len(ks), self.n), np.int32)
        distances = np.zeros((len(ks), self.n), np.float32)
        against = self._join(centers, ks)
        for start, stop, X in self._read(range(self.batches)):
            nearest = _find_nearest(X, against, tuple(ks), self.layout, self.spherical)
            for out, array in zip((labels, distances), nearest, strict=True):
                for shard in array.addressable_shards:
                    begin = start + (shard.index[1].start or 0)
                    end = min(begin + self.layout.per_device, stop)
                    if begin < end:
                        out[:, begin:end] = np.asarray(shard.data)[:, : end - begin]
        if jax.process_count() > 1:  # each process has its own part, and zeros elsewhere
            labels = np.asarray(multihost_utils.process_allgather(labels)).sum(0, dtype=np.int32)
            distances = np.asarray(multihost_utils.process_allgather(distances)).sum(0)
        return labels, distances

    def reseed(self, centers: np.ndarray, empty: np.ndarray, sums: Sums) -> np.ndarray:
        """Move the centres of empty clusters onto the farthest points, as far as there are any."""
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
            "far": ((d, s, FARTHEST), jnp.float32),
            "where": ((d, s, FARTHEST), jnp.int32),
            "bad": ((d,), jnp.int32),
        }
        make = {name: partial(jnp.zeros, *shape) for name, shape in shapes.items()}
        return _Totals(**{n: jax.jit(f, out_shardings=self.layout.sharded)() for n, f in make.items()})

    def _join(self, centers: dict[int, np.ndarray], ks: Sequence[int]) -> _AllCenters:
        joined = np.concatenate([centers[k] - self.mean for k in ks])
        return _AllCenters(joined, np.ascontiguousarray(joined.T), self.mean)

    def _split(self, totals: _Totals, ks: Sequence[int]) -> dict[int, Sums]:
        whole = jax.tree.map(np.asarray, _gather(totals, self.layout.mesh))
        if whole.bad.any():
            raise InputError(
                "k-means: the points hold a NaN, an infinity or a value far beyond the others; look at the "
                "encoder's features"
            )
        sums_of_k = {}
        for j, (k, begin) in enumerate(zip(ks, np.cumsum([0, *ks]), strict=False)):
            far, where = whole.far[:, j].ravel(), whole.where[:, j].ravel()
            order = np.lexsort((where, -far))[:FARTHEST]
            clusters = slice(begin, begin + k)
            farthest = where[order][far[order] > 0]
            sums_of_k[k] = Sums(
                whole.sums[clusters], whole.counts[clusters], float(whole.inertia[j]), farthest
            )
        return sums_of_k

    def _read(self, order: Sequence[int] | np.ndarray) -> Iterator[tuple[int, int, Array]]:
        """Read batches onto their devices, one ahead: yield their first point, their end, and the points."""

        def batch(start: int, stop: int) -> Array:
            shape = (self.layout.padded, self.channels)
            parts = []
            for device, index in self.layout.sharded.addressable_devices_indices_map(shape).items():
                device_slice = index[0] if index else slice(None)
                begin = min(start + (device_slice.start or 0), stop)
                end = min(begin + self.layout.per_device, stop)
                part = self.rows[slice(begin, end)] if end > begin else self.rows[slice(0, 0)]
                if len(part) < self.layout.per_device:
                    part = np.concatenate(
                        [part, np.zeros((self.layout.per_device - len(part), self.channels), part.dtype)]
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


def read_rows(rows: Rows, chosen: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m c"]:
    """Read some of the points, by their ascending indices, in one reading; float32."""
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


def _center(x: Float[Array, "m c"], mean: Float[HostArray, " c"], spherical: bool) -> Float[Array, "m c"]:
    x = x.astype(jnp.float32)
    if spherical:  # as ``normalize`` does, in one pass less; what overflows here counts as not finite
        length = jnp.linalg.vector_norm(x, axis=-1, keepdims=True)
        x = x / jnp.where(jnp.isfinite(length), jnp.maximum(length, 1e-12), jnp.nan)
    return x - mean[None]


def _multiply(a: Array, b: HostArray, exact: bool) -> Float[Array, "m n"]:
    """Multiply matrices of float32, or of bfloat16 with float32 sums."""
    if exact:
        return jnp.matmul(a, b, precision="highest")
    return jnp.matmul(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), preferred_element_type=jnp.float32)


@partial(jax.jit, static_argnames=("ks", "layout", "spherical", "exact"), donate_argnums=0)
def _add(
    totals: _Totals,
    X: Float[Array, "B c"],
    start: int | Int[Array, ""],
    stop: int | Int[Array, ""],
    against: _AllCenters,
    ks: tuple[int, ...],
    layout: _Layout,
    spherical: bool,
    exact: bool,
) -> _Totals:
    """Add a batch, points ``start`` to ``stop``, to each device's sums."""
    spread, same = PartitionSpec("rows"), PartitionSpec()

    def add_local(totals: _Totals, X: Array, start: Array, stop: Array, against: _AllCenters) -> _Totals:
        sums, counts, inertia, far, where, bad = (part[0] for part in totals)
        squares = jnp.sum(jnp.square(against.centers), axis=1)[None]
        first = start + jax.lax.axis_index("rows") * layout.per_device
        for i in range(layout.slabs):
            index = first + i * layout.slab + jnp.arange(layout.slab, dtype=jnp.int32)
            fresh = index < stop
            x = _center(X[i * layout.slab : (i + 1) * layout.slab], against.mean, spherical)
            x = jnp.where(fresh[:, None], x, 0).astype(jnp.float32 if exact else jnp.bfloat16)
            point_squares = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=1)
            relative = squares - 2 * _multiply(x, against.transposed, exact)
            members = []
            for j, (k, begin) in enumerate(zip(ks, np.cumsum([0, *ks]).tolist(), strict=False)):
                labels, least = find_smallest(relative[:, begin : begin + k], 1)
                labels = jnp.where(fresh, labels, k)  # of no cluster
                members.append(labels[None] == jnp.arange(k, dtype=jnp.int32)[:, None])
                distance = jnp.where(fresh, jnp.maximum(point_squares + least, 0), 0).reshape(-1, BLOCK)
                inertia = inertia.at[j].add(jnp.sum(distance))
                best = jnp.argmax(distance, axis=1)
                point = index.reshape(-1, BLOCK)[:, 0] + best.astype(jnp.int32)
                value = jnp.concatenate([far[j], jnp.max(distance, axis=1)])
                top, at = jax.lax.top_k(value, FARTHEST)
                far, where = far.at[j].set(top), where.at[j].set(jnp.concatenate([where[j], point])[at])
            member = jnp.concatenate(members)
            sums = sums + _multiply(member.astype(x.dtype), x, exact)
            counts = counts + jnp.sum(member, axis=1, dtype=jnp.int32)
            bad = bad + jnp.sum(~jnp.isfinite(point_squares), dtype=jnp.int32)
        return _Totals(*(part[None] for part in (sums, counts, inertia, far, where, bad)))

    add = jax.shard_map(
        add_local, mesh=layout.mesh, in_specs=(spread, spread, same, same, same), out_specs=spread
    )
    added: _Totals = add(totals, X, jnp.int32(start), jnp.int32(stop), against)
    return added


@partial(jax.jit, static_argnames="mesh")
def _gather(totals: _Totals, mesh: Mesh) -> _Totals:
    """Sum over all devices, and gather all devices' farthest points; the same everywhere."""

    def gather_local(totals: _Totals) -> _Totals:
        summed = (totals.sums, totals.counts, totals.inertia, totals.bad)
        sums, counts, inertia, bad = (jax.lax.psum(part[0], "rows") for part in summed)
        far, where = (jax.lax.all_gather(part[0], "rows") for part in (totals.far, totals.where))
        return _Totals(sums, counts, inertia, far, where, bad)

    gather = jax.shard_map(
        gather_local, mesh=mesh, in_specs=PartitionSpec("rows"), out_specs=PartitionSpec(), check_vma=False
    )
    gathered: _Totals = gather(totals)
    return gathered


@partial(jax.jit, static_argnames=("ks", "layout", "spherical"))
def _find_nearest(
    X: Float[Array, "B c"],
    against: _AllCenters,
    ks: tuple[int, ...],
    layout: _Layout,
    spherical: bool,
) -> tuple[Int[Array, "s B"], Float[Array, "s B"]]:
    """Find the nearest centre of each point for each k, and the squared distance to it, not by expansion."""
    spread, same = PartitionSpec("rows"), PartitionSpec()

    def find_local(X: Array, against: _AllCenters) -> tuple[Array, Array]:
        squares = jnp.sum(jnp.square(against.centers), axis=1)[None]
        slabs = []
        for i in range(layout.slabs):
            x = _center(X[i * layout.slab : (i + 1) * layout.slab], against.mean, spherical)
            relative = squares - 2 * _multiply(x, against.transposed, True)
            nearest = []
            for k, begin in zip(ks, np.cumsum([0, *ks]).tolist(), strict=False):
                labels, _ = find_smallest(relative[:, begin : begin + k], 1)
                nearest.append(
                    (labels, jnp.sum((x - against.centers[begin : begin + k][labels]) ** 2, axis=1))
                )
            slabs.append(tuple(jnp.stack(part) for part in zip(*nearest, strict=True)))
        labels, distances = (jnp.concatenate(part, axis=1) for part in zip(*slabs, strict=True))
        return labels, distances

    find = jax.shard_map(
        find_local, mesh=layout.mesh, in_specs=(spread, same), out_specs=PartitionSpec(None, "rows")
    )
    labels, distances = find(X, against)
    return labels, distances
