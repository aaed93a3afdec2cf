"""Cluster 2.2 million × 1024 features from disk, as many as the paper, with k = 16, 32, 64, 128 and 256.

    python benchmarks/kmeans_scale.py --folder SCRATCH

The points are a planted mixture: 16 groups, each divided in two, four times over, so that every k has planted
centres of its own; float16, non-negative, shuffled. Points also scatter along the last division, so that its
two halves overlap: one point in 44 is beyond the middle. Negative values become 0; this alone moves 2 of the
256 planted centres by a tenth of the way to the next or more (0.12).

Points are written to a Zarr array on disk (4.5 GB), which ``kmeans.streaming`` reads in parts.
MiniBatchKMeans of scikit-learn gets every point once, in batches. faiss gets 256 drawn points a centre, its
own default, for 25 iterations. Every inertia is of the centres on all points, in float32. Times are of
clustering alone: wall clock, and CPU seconds of this process, which are to be compared on a shared machine.
Memory is the peak of the process up to the end of our fit. Needs scikit-learn, faiss-cpu and psutil.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import faiss
import jax
import numpy as np
import psutil
import tensorstore as ts
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import MiniBatchKMeans

from fseg_jax.numerics.kmeans import streaming
from fseg_jax.numerics.kmeans.shards import Points

KS = (16, 32, 64, 128, 256)
OFFSETS = (0.5, 0.32, 0.25, 0.2, 0.16)  # of each division, standard deviation in a channel
NOISE = 0.12  # of each point, standard deviation in a channel
SPREAD = 0.5  # along the last division, as a share of the way from its middle to a half's centre
CHUNK = 8192  # points read at once
EPOCHS = 1  # of MiniBatchKMeans


class StoredRows:
    """Points on disk, read by ranges."""

    def __init__(self, store: Any):
        self._store = store
        self.shape = store.shape

    def __getitem__(self, rows: slice) -> np.ndarray:
        return np.asarray(self._store[rows].read().result())


def plant(channels: int, rng: np.random.Generator) -> tuple[dict[int, np.ndarray], np.ndarray, np.ndarray]:
    """Draw the planted centres of each k; return them, the 256 groups' shares, and their last offsets."""
    centers = 2 + OFFSETS[0] * rng.standard_normal((16, channels))
    for offset in OFFSETS[1:]:
        step = offset * rng.standard_normal(centers.shape)
        centers = np.stack([centers + step, centers - step], 1).reshape(-1, channels)
    shares = rng.uniform(1, 3, len(centers))
    shares /= shares.sum()
    planted = {}
    for k in KS:
        group = shares.reshape(k, -1)
        parts = centers.reshape(k, -1, channels)
        planted[k] = (group[..., None] * parts).sum(1) / group.sum(1)[:, None]
    return planted, shares, np.repeat(step, 2, axis=0)


def write_points(folder: Path, n: int, channels: int) -> tuple[StoredRows, dict[int, np.ndarray]]:
    """Write the points to a folder that lacks them; return them and the planted centres."""
    rng = np.random.default_rng(0)
    planted, shares, last = plant(channels, rng)
    leaves, last = planted[256].astype(np.float32), last.astype(np.float32)
    marker = folder / "points" / "done"
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder / 'points'}/"}}
    if marker.exists():
        return StoredRows(ts.open(spec, read=True).result()), planted
    store = ts.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{folder / 'points'}/"},
            "metadata": {
                "shape": [n, channels],
                "data_type": "float16",
                "chunk_grid": {
                    "name": "regular",
                    "configuration": {"chunk_shape": [min(CHUNK, n), channels]},
                },
                "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
            },
            "create": True,
        }
    ).result()
    for start in range(0, n, CHUNK):
        m = min(CHUNK, n - start)
        X = rng.standard_normal((m, channels), np.float32)
        X *= NOISE
        leaf = rng.choice(len(leaves), m, p=shares)
        X += leaves[leaf]
        X += SPREAD * rng.standard_normal((m, 1), np.float32) * last[leaf]
        store[start : start + m].write(np.maximum(X, 0).astype(np.float16)).result()
    marker.touch()
    return StoredRows(store), planted


def count_recovered(planted: np.ndarray, centers: np.ndarray) -> dict[str, float]:
    """Count the planted centres that a centre of their own is near: a tenth of the way to the next."""
    apart = np.linalg.norm(planted[:, None] - planted[None], axis=-1)
    nearest = np.where(np.eye(len(planted), dtype=bool), np.inf, apart).min(1)
    distance = np.linalg.norm(planted[:, None] - centers[None].astype(np.float64), axis=-1)
    row, column = linear_sum_assignment(distance)
    misses = distance[row, column] / nearest
    return {
        "recovered": int((misses < 0.1).sum()),
        "of": len(planted),
        "largest_miss": round(float(misses.max()), 4),
    }


def time_call(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Run a function; return its result and its wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return result, {
        "wall_s": round(time.perf_counter() - wall, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
    }


def read_parts(rows: StoredRows, size: int) -> Iterator[np.ndarray]:
    """Read the points in parts of one size, float32."""
    for start in range(0, rows.shape[0], size):
        yield rows[slice(start, min(start + size, rows.shape[0]))].astype(np.float32)


def fit_sklearn(rows: StoredRows) -> dict[int, np.ndarray]:
    """Cluster with MiniBatchKMeans: every point once, in batches."""
    models = {k: MiniBatchKMeans(k, random_state=0, n_init=3, batch_size=CHUNK) for k in KS}
    for _ in range(EPOCHS):
        for part in read_parts(rows, CHUNK):
            for model in models.values():
                if len(part) >= model.n_clusters:
                    model.partial_fit(part)
    return {k: model.cluster_centers_ for k, model in models.items()}


def fit_faiss(rows: StoredRows) -> dict[int, np.ndarray]:
    """Cluster with faiss: 256 drawn points a centre."""
    rng = np.random.default_rng(0)
    n, channels = rows.shape
    indices = np.sort(rng.choice(n, min(n, 256 * max(KS)), replace=False))
    sample = np.concatenate(
        [part[indices[(indices >= s) & (indices < s + CHUNK)] - s] for s, part in zip(
            range(0, n, CHUNK), read_parts(rows, CHUNK), strict=True)]
    )  # fmt: skip
    centers: dict[int, np.ndarray] = {}
    for k in KS:
        model = faiss.Kmeans(channels, k, niter=25, seed=1, min_points_per_centroid=1)
        model.train(sample[rng.permutation(len(sample))[: 256 * k]])
        centers[k] = np.asarray(model.centroids)
    return centers


def main() -> None:
    """Parse the command line, and measure in the given folder or in a temporary one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_200_000)
    parser.add_argument("--channels", type=int, default=1024)
    parser.add_argument(
        "--folder", type=Path, help="where the points go, 2 bytes a value, and stay (a temporary one)"
    )
    parser.add_argument("--restarts", type=int, default=2)
    parser.add_argument(
        "-o", "--output", type=Path, default=Path(__file__).parent / "results" / "kmeans_scale.json"
    )
    arguments = parser.parse_args()
    if arguments.folder:
        measure(arguments, arguments.folder)
        return
    folder = Path(tempfile.mkdtemp(prefix="kmeans-scale-"))
    try:
        measure(arguments, folder)
    finally:
        shutil.rmtree(folder)


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    """Cluster with all three, compute every inertia on all points, and write the results."""
    rows, planted = write_points(folder, arguments.rows, arguments.channels)
    print(f"{arguments.rows} × {arguments.channels} points in {folder}", flush=True)
    load = psutil.getloadavg()[0]
    passes: list[float] = []

    def on_pass(i: int, shift: float) -> None:
        passes.append(time.perf_counter())
        print(f"pass {i}: shift {shift:.3g} of the threshold", flush=True)

    def fit_ours() -> dict[int, streaming.StreamResult]:
        return streaming.fit(rows, KS, key=jax.random.key(0), restarts=arguments.restarts, on_pass=on_pass)

    results, our_time = time_call(fit_ours)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"fseg_jax: {our_time}, {memory:.2f} GiB", flush=True)
    peers, peer_time = {}, {}
    for name, run in (("MiniBatchKMeans", fit_sklearn), ("faiss", fit_faiss)):
        peers[name], peer_time[name] = time_call(partial(run, rows))
        print(f"{name}: {peer_time[name]}", flush=True)
    # Ours is the inertia on all points; compute the same for the peers, which saw some of them.
    points = Points(rows, jax.devices(), planted[16].mean(0).astype(np.float32), spherical=False)
    inertias = {}
    for name, centers in {**peers, "planted": planted}.items():
        _, distances = points.assign({k: c.astype(np.float32) for k, c in centers.items()}, KS)
        inertias[name] = dict(zip(KS, distances.sum(1, dtype=np.float64).tolist(), strict=True))
        print(f"{name}: inertia {inertias[name]}", flush=True)
    comparisons = {}
    for k in KS:
        best = min(inertias[name][k] for name in peers)
        comparisons[str(k)] = {
            "passes": results[k].iterations,
            "inertia": {"fseg_jax": results[k].inertia, **{name: inertias[name][k] for name in inertias}},
            "over_the_better_of_theirs": round(results[k].inertia / best, 6),
            "planted": {
                "fseg_jax": count_recovered(planted[k], results[k].centers),
                **{name: count_recovered(planted[k], peers[name][k]) for name in peers},
            },
        }
    content = {
        "command": f"python benchmarks/kmeans_scale.py --rows {arguments.rows} "
        f"--channels {arguments.channels} --restarts {arguments.restarts}",
        "points": [arguments.rows, arguments.channels],
        "stored_as": "float16, Zarr, not compressed",
        "versions": {name: version(name) for name in ("jax", "numpy", "scikit-learn", "faiss-cpu")},
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_before": round(load, 2),
        "seconds": {"fseg_jax": our_time, **peer_time},
        "seconds_a_pass": round((passes[-1] - passes[0]) / max(1, len(passes) - 1), 1),
        "peak_resident_GiB": round(memory, 2),
        "k": comparisons,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
