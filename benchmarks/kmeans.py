"""Is k-means faster, to the same inertia? 50,000 × 1024 tokens, k = 16, 64, 256.

    python -m benchmarks.kmeans [--tiny]

Beside scikit-learn (Lloyd, Elkan, and mini-batch), faiss and ott (``ott.tools.k_means``), all from the same
first centres for as many iterations, or until nothing changes (scikit-learn, ott and ours). The inertia of
each is compared in the same run; ott's, which is JAX as ours is, must be the same to 1e-6.
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
SAME_OTT = 1e-6


def tokens(n: int, c: int) -> np.ndarray:
    """Draw a mixture of 100 sorts of tissue that overlap."""
    r = np.random.default_rng(0)
    centers = r.normal(size=(100, c)).astype(np.float32)
    X = r.standard_normal((n, c), np.float32)
    return X + 0.5 * centers[r.integers(0, len(centers), n)]


def inertia(X: np.ndarray, centers: np.ndarray) -> float:
    """Sum the squared distances of the points to their nearest centres, in float64."""
    total = 0.0
    centers = centers.astype(np.float64)
    squares = (centers**2).sum(1)
    for x in np.array_split(X, max(1, len(X) // 4096)):
        x = x.astype(np.float64)
        total += float((x**2).sum() + (squares - 2 * (x @ centers.T)).min(1).sum())
    return total


def compare(k: int, n: int, c: int, repeats: int) -> dict[str, Any]:
    """Race ours and the peers from one start, and compare their inertias."""
    X = tokens(n, c)
    start = X[np.random.default_rng(k).choice(n, k, replace=False)]
    device, first = jnp.asarray(X), jnp.asarray(start)
    centers: dict[str, np.ndarray] = {}

    def ours() -> None:
        result = kmeans.fit(
            device, k, key=jax.random.key(0), start=first, max_iterations=ITERATIONS, tolerance=0.0
        )
        centers[OURS] = np.asarray(result.centers)

    def lloyd() -> None:
        model = KMeans(k, init=start, n_init=1, max_iter=ITERATIONS, tol=0, algorithm="lloyd").fit(X)
        centers["scikit-learn"] = model.cluster_centers_

    def batches() -> None:
        model = MiniBatchKMeans(k, init=start, n_init=1, random_state=0).fit(X)
        centers["scikit-learn mini-batch"] = model.cluster_centers_

    def elkan() -> None:
        model = KMeans(k, init=start, n_init=1, max_iter=ITERATIONS, tol=0, algorithm="elkan").fit(X)
        centers["scikit-learn elkan"] = model.cluster_centers_

    sides: dict[str, Callable[[], Any]] = {OURS: ours, "scikit-learn": lloyd, "scikit-learn elkan": elkan}
    if not absent("faiss-cpu"):
        import faiss

        faiss.omp_set_num_threads(cores())

        def by_faiss() -> None:
            model = faiss.Kmeans(c, k, niter=ITERATIONS, max_points_per_centroid=n, min_points_per_centroid=1)
            model.train(X, init_centroids=start)
            centers["faiss"] = np.asarray(model.centroids)

        sides["faiss"] = by_faiss
    if not absent("ott-jax"):
        from ott.tools import k_means

        @jax.jit
        def ott_fit(X: jax.Array, start: jax.Array) -> jax.Array:
            centroids: jax.Array = k_means.k_means(
                X, k, init=lambda *_: start, n_init=1, tol=0.0, max_iterations=ITERATIONS
            ).centroids
            return centroids

        def by_ott() -> None:
            centers["ott"] = np.asarray(ott_fit(device, first))

        sides["ott"] = by_ott
    timings = interleaved(sides, repeats)
    our_inertia = inertia(X, centers[OURS])
    same = {name: our_inertia / inertia(X, result) for name, result in centers.items() if name != OURS}
    if any(ratio > 1 + SAME for ratio in same.values()):
        raise SystemExit(f"k = {k}: a higher inertia than another's: {same}")
    unequal = [name for name in ("ott",) if abs(same.get(name, 1) - 1) > SAME_OTT]
    # Mini-batch stops where it likes, at a higher inertia: told, but not raced.
    quick = interleaved({"scikit-learn mini-batch": batches}, 1)["scikit-learn mini-batch"]
    same["scikit-learn mini-batch"] = our_inertia / inertia(X, centers["scikit-learn mini-batch"])
    return row(
        f"k-means, {ITERATIONS} iterations, k = {k}",
        "iterations/s",
        ITERATIONS,
        timings,
        target=TARGET,
        limit=matrix_rate("float32") / (2 * n * c * k),
        limited_by="X·Cᵀ in float32",
        unequal=unequal,
        inertia_over_theirs=same,
        mini_batch_seconds=quick.median,
    )


@click.command()
@click.option("--tiny", is_flag=True, help="Sizes that only show that it runs.")
def main(tiny: bool) -> None:
    """Compare k-means at three numbers of clusters."""
    warnings.simplefilter("ignore", ConvergenceWarning)
    size = (500, 16, 1) if tiny else (ROWS, CHANNELS, REPEATS)
    save("kmeans", [compare(k, *size) for k in ((4,) if tiny else (16, 64, 256))], tiny=tiny)


if __name__ == "__main__":
    main()
