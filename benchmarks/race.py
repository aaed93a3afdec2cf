"""Race k-means to one inertia: each side with a start and a pace of its own.

    python -m benchmarks.race [--tiny]

The inertia to reach is 1 % above the least that ours and scikit-learn's end with when they have converged.
Every side gets 1, 2, 4, … passes over the points, its own seeding included, until it is there; the seconds
are of the run that is. Sides that are not there after 128 passes are shown, and left out of the ratio.

Points are of 100 groups that overlap, where any start will do and costs decide, or of as many groups as
clusters, apart from each other and of 1 to 20 parts of the points, where a start at random misses some.

What seeding costs: ours draws first centres by k-means++ of 32,768 points, or 128 a centre where that is
more: a pass over those for each centre, and none over the rest; for points on disk (``kmeans.streaming``) it
is k-means‖, eight passes over a sample. scikit-learn's k-means++ passes over all points for every centre,
MiniBatchKMeans' over three batches; faiss and torch draw k points, which costs nothing.
"""

import importlib
import time
import warnings
from collections.abc import Callable
from typing import Any

import click
import jax
import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning

from benchmarks.kmeans import compute_inertia, draw_tokens
from benchmarks.measure import OURS, Timing, count_cores, is_missing, report_row, save_result
from fseg_jax.numerics import kmeans

ROWS, CHANNELS, CLUSTERS, CLUSTERS_APART = 100_000, 256, (16, 64, 256), (16, 64)
MARGIN, MOST_PASSES, BATCH = 1.01, 128, 8192

Run = Callable[[int], np.ndarray]  # passes → centres


def prepare_sides(X: np.ndarray, k: int) -> dict[str, Run]:
    """Prepare each side: a function that fits k centres in so many passes."""
    n, c = X.shape

    def ours(passes: int) -> np.ndarray:
        return np.asarray(kmeans.fit(X, k, key=jax.random.key(0), max_iterations=passes).centers)

    def sklearn(passes: int) -> np.ndarray:
        model = KMeans(k, n_init=1, max_iter=passes, random_state=0)
        return np.asarray(model.fit(X).cluster_centers_)

    def minibatch(passes: int) -> np.ndarray:
        model = MiniBatchKMeans(k, n_init=3, max_iter=passes, batch_size=min(BATCH, n), random_state=0)
        return np.asarray(model.fit(X).cluster_centers_)

    sides: dict[str, Run] = {OURS: ours, "scikit-learn": sklearn, "MiniBatchKMeans": minibatch}
    if not is_missing("faiss-cpu"):
        faiss: Any = importlib.import_module("faiss")

        def with_faiss(passes: int) -> np.ndarray:
            model = faiss.Kmeans(c, k, niter=passes, seed=1, max_points_per_centroid=n)
            model.train(X)
            return np.asarray(model.centroids)

        faiss.omp_set_num_threads(count_cores())
        sides["faiss"] = with_faiss
    if not is_missing("torch"):
        torch: Any = importlib.import_module("torch")
        torch.set_num_threads(count_cores())
        points = torch.from_numpy(X)

        def with_torch(passes: int) -> np.ndarray:
            centers = points[torch.from_numpy(np.random.default_rng(0).choice(n, k, replace=False))]
            for _ in range(passes):
                sums, counts = torch.zeros_like(centers), torch.zeros(k)
                for x in points.split(16_384):
                    labels = ((centers**2).sum(1) - 2 * x @ centers.T).argmin(1)
                    sums.index_add_(0, labels, x)
                    counts.index_add_(0, labels, torch.ones(len(x)))
                centers = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centers)
            return np.asarray(centers)

        sides["torch"] = with_torch
    return sides


def draw_apart(n: int, c: int, k: int) -> np.ndarray:
    """Draw points, float32 (n, c), of k groups that lie apart and differ in size."""
    r = np.random.default_rng(0)
    shares = r.uniform(1, 20, k)
    centers = r.normal(size=(k, c)).astype(np.float32)
    group = r.choice(k, n, p=shares / shares.sum())
    return r.standard_normal((n, c), np.float32) + centers[group]


def race(X: np.ndarray, k: int, most: int, groups: str = "overlapping groups") -> dict[str, Any]:
    """Give every side more passes until it is there, and report when it was."""
    sides = prepare_sides(X, k)
    aim = MARGIN * min(compute_inertia(X, sides[name](300)) for name in (OURS, "scikit-learn"))
    timings: dict[str, Timing] = {}
    passes: dict[str, int] = {}
    cpu: dict[str, float] = {}
    over: dict[str, float] = {}
    for name, run in sides.items():
        count = 1
        while True:
            if name == OURS:
                run(count)  # compiles
            wall, cores = time.perf_counter(), time.process_time()
            centers = run(count)
            wall, cpu[name] = time.perf_counter() - wall, round(time.process_time() - cores, 3)
            timings[name], passes[name] = Timing.from_repeats([wall], wall), count
            over[name] = round(compute_inertia(X, centers) / aim * MARGIN, 4)
            if over[name] <= MARGIN or count >= most:
                break
            count *= 2
    return report_row(
        f"to one inertia, {len(X):,} × {X.shape[1]} of {groups}, k = {k}",
        "fits/s",
        1,
        timings,
        unequal=[name for name, ratio in over.items() if ratio > MARGIN],
        passes=passes,
        cpu_s=cpu,
        inertia_over_least=over,
    )


@click.command()
@click.option("--tiny", is_flag=True, help="Sizes that only show that it runs.")
def main(tiny: bool) -> None:
    """Race to one inertia with each k."""
    warnings.simplefilter("ignore", ConvergenceWarning)
    n, c, most = (2000, 16, 4) if tiny else (ROWS, CHANNELS, MOST_PASSES)
    X, rows = draw_tokens(n, c), []
    for k in (4,) if tiny else CLUSTERS:
        rows.append(race(X, k, most))
    for k in (4,) if tiny else CLUSTERS_APART:
        rows.append(race(draw_apart(n, c, k), k, most, "groups apart"))
    save_result("race", rows, tiny=tiny)


if __name__ == "__main__":
    main()
