"""Are the factorizations faster, to the same objective? Tiles of 256 tokens × 1024 channels.

    python -m benchmarks.nmf [--tiny]

*H fixed* (F-SEG §3.2.2), k = 16, 64, 256: beside scikit-learn's coordinate descent as the F-SEG authors'
``segf`` calls it, a tile at a time, torchnmf's, and ``optax.nnls``, all tiles at once, after as many
iterations as it takes to come within 1e-6 of our objective. *W and H free* (§3.1), k = 8, 16, 32: beside
scikit-learn's coordinate descent, random start, with its own updates (``hals``) and with fewer products for
the same objective (``accelerated``). Objectives and masks are compared on the same tiles in the same run; a
mismatch is an error.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.decomposition import NMF, non_negative_factorization
from sklearn.exceptions import ConvergenceWarning

from benchmarks.measure import OURS, REPEATS, absent, cores, interleaved, matrix_rate, row, save
from fseg_jax.numerics import nmf

TOKENS, CHANNELS, TILES = 256, 1024, 64
TARGETS = {16: 10, 64: 60, 256: 200}
FREE_TARGET = 4
SAME_FIXED, SAME_FREE, SAME_MASK = 1e-3, 1e-2, 0.99
SAME_OPTAX = 1e-6  # relative, of the objective
OPTAX_LIMIT = 2**15  # iterations


def tiles(k: int, count: int, tokens: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw tokens (tiles, tokens, channels) that mix some of k concepts, and the concepts.

    Many of the concepts are alike, as those of real codebooks are.
    """
    r = np.random.default_rng(k)
    tissue = r.gamma(0.5, size=(max(k // 8, 2), channels))
    H = tissue[np.arange(k) % len(tissue)] + 0.5 * r.gamma(0.5, size=(k, channels))
    W = r.random((count * tokens, k)) * (r.random((count * tokens, k)) < 4 / k)
    A = (W @ H) * r.gamma(4, 0.25, size=(count * tokens, channels))
    return A.reshape(count, tokens, channels).astype(np.float32), H.astype(np.float32)


def fixed(k: int, count: int, tokens: int, channels: int, repeats: int) -> dict[str, Any]:
    """Race with H fixed: a batch of tiles for us and optax, a tile at a time for the others, as they work."""
    A, H = tiles(k, count, tokens, channels)
    device, centers = jnp.asarray(A), jnp.asarray(H)
    weights: dict[str, np.ndarray] = {}

    def ours() -> jax.Array:
        return nmf.solve_weights(device, centers)

    def theirs() -> None:
        W, _, _ = non_negative_factorization(
            A[0], H=H, n_components=k, update_H=False, random_state=0, max_iter=10_000
        )
        weights["scikit-learn"] = W

    sides: dict[str, Callable[[], Any]] = {OURS: ours, "scikit-learn cd": theirs}
    work = {OURS: float(count), "scikit-learn cd": 1.0}
    if not absent("torchnmf"):
        import torch
        import torchnmf.nmf

        torch.set_num_threads(cores())

        def torch_nmf() -> None:
            V = torch.from_numpy(A[0]) + 1e-9
            model = torchnmf.nmf.NMF(W=torch.from_numpy(H.T.copy()), H=(tokens, k), trainable_W=False)
            model.fit(V, beta=2, max_iter=1000, tol=1e-6)
            weights["torchnmf"] = model.H.detach().numpy()

        sides["torchnmf"], work["torchnmf"] = torch_nmf, 1.0

    def objective(W: np.ndarray) -> float:
        return float(((A[0].astype(float) - W.astype(float) @ H.astype(float)) ** 2).sum())

    W = np.asarray(ours())[0]
    by_optax = jax.jit(partial(optax.nnls, centers.T), static_argnames="iters")
    columns = device.reshape(-1, channels).T
    iterations, optax_ratio = OPTAX_LIMIT, np.inf
    for doublings in range(6, OPTAX_LIMIT.bit_length()):
        iterations = 2**doublings
        solved = np.asarray(by_optax(columns[:, :tokens], iters=iterations)).T
        optax_ratio = objective(solved) / objective(W)
        if optax_ratio <= 1 + SAME_OPTAX:
            break
    sides["optax.nnls"], work["optax.nnls"] = partial(by_optax, columns, iters=iterations), float(count)
    timings = interleaved(sides, repeats)

    best = weights["scikit-learn"]
    same = {
        "objective over scikit-learn's": objective(W) / objective(best),
        "same mask": float((W.argmax(1) == best.argmax(1)).mean()),
    }
    if same["objective over scikit-learn's"] > 1 + SAME_FIXED or same["same mask"] < SAME_MASK:
        raise SystemExit(f"H fixed, k = {k}: not the same answer: {same}")
    same["optax.nnls's objective over ours"] = optax_ratio
    same["optax.nnls's iterations"] = float(iterations)
    unequal = [] if optax_ratio <= 1 + SAME_OPTAX else ["optax.nnls"]
    if "torchnmf" in weights:
        same["torchnmf's objective over scikit-learn's"] = objective(weights["torchnmf"]) / objective(best)
        if same["torchnmf's objective over scikit-learn's"] > 1 + SAME_FIXED:
            unequal.append("torchnmf")
    operations = 2 * tokens * channels * k  # A·Hᵀ; what follows has no channels
    return row(
        f"H fixed, k = {k}",
        "tiles/s",
        work,
        timings,
        target=TARGETS.get(k),
        limit=matrix_rate("float32") / operations,
        limited_by="A·Hᵀ in float32",
        unequal=unequal,
        same=same,
    )


def free(k: int, method: str, count: int, tokens: int, channels: int, repeats: int) -> dict[str, Any]:
    """Race with W and H free: scikit-learn takes another tile each time, on which objectives are compared."""
    A, _ = tiles(12, count, tokens, channels)
    device, key = jnp.asarray(A), jax.random.key(0)
    errors: dict[int, float] = {}

    def ours() -> nmf.NMFResult:
        return nmf.factorize(device, k, key=key, method=method)

    def theirs() -> None:
        tile = len(errors) % count
        errors[tile] = float(NMF(k, init="random", random_state=0).fit(A[tile]).reconstruction_err_) ** 2

    name = "scikit-learn cd"
    timings = interleaved({OURS: ours, name: theirs}, repeats)
    result = ours()
    reached = float(np.sum(np.asarray(result.error)[list(errors)] ** 2))
    same = {"objective over scikit-learn's": reached / sum(errors.values())}
    if same["objective over scikit-learn's"] > 1 + SAME_FREE:
        raise SystemExit(f"W and H free, k = {k}: not the same answer: {same}")
    iterations = float(np.mean(np.asarray(result.iterations)))
    operations = 4 * tokens * channels * k * iterations  # A·Hᵀ and Wᵀ·A, each iteration
    return row(
        f"W and H free, k = {k}, {method}",
        "tiles/s",
        {OURS: float(count), name: 1.0},
        timings,
        target=FREE_TARGET,
        limit=matrix_rate("float32") / operations,
        limited_by=f"A·Hᵀ and Wᵀ·A in float32, {iterations:.0f} iterations",
        same=same,
    )


@click.command()
@click.option("--tiny", is_flag=True, help="Sizes that only show that it runs.")
def main(tiny: bool) -> None:
    """Race the factorizations with H fixed, and with W and H free."""
    warnings.simplefilter("ignore", ConvergenceWarning)
    size = (2, 16, 32, 1) if tiny else (TILES, TOKENS, CHANNELS, REPEATS)
    rows = [fixed(k, *size) for k in ((4,) if tiny else (16, 64, 256))]
    methods = ("accelerated", "hals")
    rows += [free(k, method, *size) for k in ((2,) if tiny else (8, 16, 32)) for method in methods]
    save("nmf", rows, tiny=tiny)


if __name__ == "__main__":
    main()
