"""Measure the numerics on an accelerator: weights, factorization, labels, k-means with torch, and training.

    python -m benchmarks.device [--tiny]

``python -m benchmarks --device`` runs this and the encoders. It needs no package that reads slides, and takes
minutes. Inputs are drawn; every call ends when its result is on the device.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import OURS, REPEATS, is_missing, report_row, save_result, time_interleaved
from fseg_jax.methods import fseg
from fseg_jax.numerics import kmeans, nmf

KEY = jax.random.key(0)
PASSES = 10  # of Lloyd's iteration


def draw_tiles(tiles: int, tokens: int, channels: int) -> jax.Array:
    """Draw sparse mixtures of 24 concepts under noise."""
    keys = jax.random.split(KEY, 4)
    H = jax.random.gamma(keys[0], 0.3, (24, channels))
    W = jax.random.uniform(keys[1], (tiles, tokens, 24))
    W *= jax.random.bernoulli(keys[2], 0.15, W.shape)
    return jnp.matmul(W, H) * jax.random.gamma(keys[3], 4, (tiles, tokens, channels)) / 4


def measure_factorization(tiny: bool, repeats: int) -> list[dict[str, Any]]:
    """Time H fixed, and W and H free."""
    tiles, tokens, channels = (2, 36, 32) if tiny else (64, 256, 1024)
    A = draw_tiles(tiles, tokens, channels)
    rows = []
    for k in (4,) if tiny else (16, 64, 256):
        H = A.reshape(-1, channels)[:: A.shape[0] * A.shape[1] // k][:k]
        sides: dict[str, Callable[[], Any]] = {OURS: partial(nmf.solve, A, H)}
        rows.append(report_row(f"H fixed, k = {k}", "tiles/s", tiles, time_interleaved(sides, repeats)))
    for k in (4,) if tiny else (8, 16, 32):
        sides = {
            f"{OURS} {method}": partial(nmf.factorize, A, k, key=KEY, method=method)
            for method in ("hals", "accelerated")
        }
        rows.append(report_row(f"W and H free, k = {k}", "tiles/s", tiles, time_interleaved(sides, repeats)))
    return rows


def measure_labels(tiny: bool, repeats: int) -> list[dict[str, Any]]:
    """Time the labels of a tile's pixels."""
    rows, tokens = [], 4 if tiny else 32
    for k in (4,) if tiny else (64, 255):
        W = jax.random.uniform(KEY, (1, tokens, tokens, k))
        sides = {OURS: partial(fseg.label_pixels, W, 16)}
        rows.append(report_row(f"labels, k = {k}", "tiles/s", 1, time_interleaved(sides, repeats)))
    return rows


def measure_kmeans(tiny: bool, repeats: int) -> list[dict[str, Any]]:
    """Time passes over many points, and the same passes in torch on the same device."""
    points, channels = (500, 16) if tiny else (1_000_000, 1024)
    X = jax.random.uniform(KEY, (points, channels))
    rows = []
    for k in (4,) if tiny else (64, 256):
        start = X[:k]
        fit = partial(kmeans.fit, k=k, key=KEY, max_iterations=PASSES, tolerance=0.0, start=start)
        sides: dict[str, Callable[[], Any]] = {
            f"{OURS} float32": partial(fit, X),
            f"{OURS} bfloat16": partial(fit, X.astype(jnp.bfloat16)),
        }
        if not is_missing("torch"):
            sides["torch"] = prepare_lloyd(np.asarray(X), np.asarray(start))
        rows.append(report_row(f"k-means, k = {k}", "passes/s", PASSES, time_interleaved(sides, repeats)))
    return rows


def prepare_lloyd(X: np.ndarray, start: np.ndarray, chunk: int = 65_536) -> Callable[[], Any]:
    """Prepare Lloyd's passes in torch, on a GPU where there is one: chunks, argmin, index_add."""
    torch: Any = importlib.import_module("torch")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    points, first = (torch.from_numpy(np.array(a)).to(device) for a in (X, start))

    def run() -> Any:
        centers = first
        for _ in range(PASSES):
            sums, counts = torch.zeros_like(centers), torch.zeros(len(centers), device=device)
            for x in points.split(chunk):
                distances = (centers**2).sum(1) - 2 * x @ centers.T
                labels = distances.argmin(1)
                sums.index_add_(0, labels, x)
                counts.index_add_(0, labels, torch.ones(len(x), device=device))
            centers = sums / counts.clamp(min=1)[:, None]
        return centers.cpu()

    return run


def measure_training(tiny: bool, repeats: int) -> list[dict[str, Any]]:
    """Time steps of ``fseg pretrain``: views cut on the device, and on the host before it is asked."""
    from fseg_jax.pretraining.fields import Field, Geometry
    from fseg_jax.pretraining.pages import make_cutter
    from fseg_jax.pretraining.simclr import TrainingSettings, make_trainer
    from fseg_jax.pretraining.supply import Supply

    pairs, side = (2, 32) if tiny else (128, 96)
    rng = np.random.default_rng(0)
    fields = [
        Field(rng.integers(0, 256, (512, 512, 3), dtype=np.uint8), 0.5, "drawn")
        for _ in range(2 if tiny else 64)
    ]
    geometry, sides = Geometry(side), {}
    supply = Supply(fields, geometry, pairs, 0)
    for dtype in ("float32",) if tiny else ("float32", "tf32"):
        settings = TrainingSettings(pairs=pairs, dtype=dtype)
        cutting = make_trainer(settings, cut=make_cutter(fields, geometry, pairs))
        pages = supply.lay_out(0, cutting.shared)
        sides[f"{OURS} {dtype}"] = partial(cutting.step, cutting.begin, pages)
    given = make_trainer(TrainingSettings(pairs=pairs))
    sides[f"{OURS} float32, views of the host"] = partial(given.step, given.begin, supply.draw(0))
    what = f"pretraining, {pairs} pairs of {side} px"
    return [report_row(what, "steps/s", 1, time_interleaved(sides, repeats))]


@click.command()
@click.option("--tiny", is_flag=True, help="Sizes that only show that it runs.")
def main(tiny: bool) -> None:
    """Measure all of it on the device that JAX takes."""
    repeats = 1 if tiny else REPEATS
    rows: list[dict[str, Any]] = []
    for measure in (measure_factorization, measure_labels, measure_kmeans, measure_training):
        rows += measure(tiny, repeats)
        save_result("numerics", rows, tiny=tiny)


if __name__ == "__main__":
    main()
