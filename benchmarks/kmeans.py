"""Is k-means faster, to the same inertia? 50,000 × 1024 tokens, k = 16, 64, 256.

    python -m benchmarks.kmeans [--tiny]

Beside scikit-learn (Lloyd, Elkan, and mini-batch) and faiss, all from the same first centres for as many
iterations, or until nothing changes (scikit-learn and ours); the inertia of each is compared in the same run.
``benchmarks/kmeans_scale.py`` has 2.2 million.
"""

import warnings
from collections.abc import Callable
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning

from benchmarks.measure import OURS, REPEATS, absent, cores, interleaved, matrix_rate, row, save
from fseg_jax.numerics import kmeans

ROWS, CHANNELS, ITERATIONS = 50_000, 1024, 20
TARGET, SAME = 1.5, 1e-3


def tokens(n: int, c: int) -> np.ndarray:
    """A mixture of 100 sorts of tissue that overlap."""
    r = np.random.default_rng(0)
    centres = r.normal(size=(100, c)).astype(np.float32)
    X = r.standard_normal((n, c), np.float32)
    return X + 0.5 * centres[r.integers(0, len(centres), n)]


def inertia(X: np.ndarray, centres: np.ndarray) -> float:
    squares = (centres**2).sum(1)
    nearest = (squares - 2 * (X @ centres.T)).min(1)
    return float((X**2).sum() + nearest.sum())


def compare(k: int, n: int, c: int, repeats: int) -> dict[str, Any]:
    X = tokens(n, c)
    start = X[np.random.default_rng(k).choice(n, k, replace=False)]
    device, first = jnp.asarray(X), jnp.asarray(start)
    centres: dict[str, np.ndarray] = {}

    def ours() -> None:
        result = kmeans.fit(
            device, k, key=jax.random.key(0), start=first, max_iterations=ITERATIONS, tolerance=0.0
        )
        centres[OURS] = np.asarray(result.centers)

    def lloyd() -> None:
        model = KMeans(k, init=start, n_init=1, max_iter=ITERATIONS, tol=0, algorithm="lloyd").fit(X)
        centres["scikit-learn"] = model.cluster_centers_

    def batches() -> None:
        model = MiniBatchKMeans(k, init=start, n_init=1, random_state=0).fit(X)
        centres["scikit-learn mini-batch"] = model.cluster_centers_

    def elkan() -> None:
        model = KMeans(k, init=start, n_init=1, max_iter=ITERATIONS, tol=0, algorithm="elkan").fit(X)
        centres["scikit-learn elkan"] = model.cluster_centers_

    sides: dict[str, Callable[[], Any]] = {OURS: ours, "scikit-learn": lloyd, "scikit-learn elkan": elkan}
    if not absent("faiss-cpu"):
        import faiss

        faiss.omp_set_num_threads(cores())

        def by_faiss() -> None:
            model = faiss.Kmeans(c, k, niter=ITERATIONS, max_points_per_centroid=n, min_points_per_centroid=1)
            model.train(X, init_centroids=start)
            centres["faiss"] = np.asarray(model.centroids)

        sides["faiss"] = by_faiss
    timings = interleaved(sides, repeats)
    own = inertia(X, centres[OURS])
    same = {name: own / inertia(X, found) for name, found in centres.items() if name != OURS}
    if any(ratio > 1 + SAME for ratio in same.values()):
        raise SystemExit(f"k = {k}: a higher inertia than another's: {same}")
    # Mini-batch stops where it likes, at a higher inertia: told, but not raced.
    quick = interleaved({"scikit-learn mini-batch": batches}, 1)["scikit-learn mini-batch"]
    same["scikit-learn mini-batch"] = own / inertia(X, centres["scikit-learn mini-batch"])
    return row(
        f"k-means, {ITERATIONS} iterations, k = {k}",
        "iterations/s",
        ITERATIONS,
        timings,
        target=TARGET,
        limit=matrix_rate("float32") / (2 * n * c * k),
        limited_by="X·Cᵀ in float32",
        inertia_over_theirs=same,
        mini_batch_seconds=quick.median,
    )


@click.command()
@click.option("--tiny", is_flag=True, help="Sizes that only show that it runs.")
def main(tiny: bool) -> None:
    warnings.simplefilter("ignore", ConvergenceWarning)
    size = (500, 16, 1) if tiny else (ROWS, CHANNELS, REPEATS)
    save("kmeans", [compare(k, *size) for k in ((4,) if tiny else (16, 64, 256))], tiny=tiny)


if __name__ == "__main__":
    main()
