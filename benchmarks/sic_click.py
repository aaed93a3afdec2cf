"""Measure the time of a click: SIC's algorithm 1 on 100,000 patches × 1024, beside scikit-learn's KMeans.

    python benchmarks/sic_click.py        # writes benchmarks/results/sic_click.json

The slide has three tissues, the positive one 1 % of it, and is clicked ten times. The first of the
algorithm's clusterings starts from the seeds' means; scikit-learn clusters the full embeddings once from the
same start. Our time is of that clustering alone, and of the whole algorithm; the labels of both are compared.
Two threads.
"""

import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "2")

import jax
import numpy as np
import sklearn
from sklearn.cluster import KMeans

from fseg_jax.methods import sic
from fseg_jax.numerics.pca import reduce_channels

N, CHANNELS, SHARE, CLICKS = 100_000, 1024, 0.01, 10


def plant_tissues(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw embeddings, float32 (n, c), and the tissue of each, 0, 1 or 2; tissue 2 is small and near 1."""
    tissue = np.repeat([0, 1, 2], [int(N * (1 - SHARE) / 2), int(N * (1 - SHARE) / 2), int(N * SHARE)])
    rng.shuffle(tissue)
    axes = rng.normal(size=(2, CHANNELS)).astype(np.float32)
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    means = np.stack([0 * axes[0], 60 * axes[0], 60 * axes[0] + 30 * axes[1]])
    # Some directions vary more than others, as in a network's embeddings.
    spread = (1 + 3 * np.arange(1, CHANNELS + 1) ** -0.5).astype(np.float32)
    return rng.standard_normal((N, CHANNELS), np.float32) * spread / spread.mean() + means[tissue], tissue


def main() -> None:
    """Time the clicks and the clusterings, and write the results."""
    rng = np.random.default_rng(0)
    X, tissue = plant_tissues(rng)
    begin = time.perf_counter()
    prepared = reduce_channels(X)
    jax.block_until_ready(prepared.X)
    prepare_s = time.perf_counter() - begin

    y = np.full(N, -1, np.int32)
    y[rng.choice(np.flatnonzero(tissue == 2))] = 1
    y[rng.choice(np.flatnonzero(tissue == 1))] = 0
    begin = time.perf_counter()
    sic.fit(prepared.X, y)
    first_s = time.perf_counter() - begin
    clicks, scores = [], []
    compilations: list[str] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event.endswith("compile_duration"):
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    for i in range(CLICKS):
        patch = rng.choice(np.flatnonzero((tissue == 2) == (i % 2 == 1)))
        y[patch] = i % 2
        begin = time.perf_counter()
        result = sic.fit(prepared.X, y)
        result.labels.block_until_ready()
        clicks.append((time.perf_counter() - begin) * 1e3)
        predicted, true = np.asarray(result.labels) == 1, tissue == 2
        scores.append(
            {
                "clusterings": len(result.scores),
                "f1": 2 * (predicted & true).sum() / (predicted.sum() + true.sum()),
            }
        )
    assert not compilations, "a click has compiled something"

    # The start of the algorithm's first clustering, in all channels: the means of the seeds.
    start = np.stack([X[y == j].mean(0) for j in range(2)])
    begin = time.perf_counter()
    model = KMeans(2, init=start, n_init=1).fit(X)
    sklearn_s = time.perf_counter() - begin
    sic.fit_seeded_kmeans(prepared.X, y)  # compiles
    begin = time.perf_counter()
    labels = sic.fit_seeded_kmeans(prepared.X, y)
    single_s = time.perf_counter() - begin
    record = {
        "patches": N,
        "channels": CHANNELS,
        "coordinates": int(prepared.X.shape[1]),
        "variance_kept": round(prepared.variance_kept, 4),
        "prepare_once_s": round(prepare_s, 2),
        "first_click_with_compilation_s": round(first_s, 2),
        "click_ms": {
            "median": round(float(np.median(clicks)), 1),
            "min": round(min(clicks), 1),
            "max": round(max(clicks), 1),
        },
        "clusterings_a_click": [s["clusterings"] for s in scores],
        "f1": [round(float(s["f1"]), 4) for s in scores],
        "one_seeded_kmeans_ms": round(single_s * 1e3, 1),
        "sklearn_kmeans_same_start_ms": round(sklearn_s * 1e3, 1),
        "sklearn_iterations": int(model.n_iter_),
        "labels_agree_with_sklearn": float((labels == model.labels_).mean()),
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": [round(v, 2) for v in os.getloadavg()],
        "versions": {"jax": jax.__version__, "numpy": np.__version__, "scikit-learn": sklearn.__version__},
    }
    text = json.dumps(record, indent=2) + "\n"
    path = Path(__file__).parent / "results" / "sic_click.json"
    path.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
