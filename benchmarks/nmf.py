"""Measure the speed of factorizations at equal objectives: tiles of 256 tokens × 1024 channels.

    python -m benchmarks.nmf [--tiny]

*H fixed* (F-SEG §3.2.2), k = 16, 64, 256. Peers: scikit-learn's coordinate descent, a tile at a time, called
as by ``segf`` of the F-SEG authors; torchnmf, a tile at a time; and ``optax.nnls``, all tiles at once, with
as many iterations as bring it within 1e-6 of our objective. *W and H free* (§3.1), k = 8, 16, 32. Peer:
scikit-learn's coordinate descent from a random start; our methods are its updates (``hals``), and fewer
products for the same objective (``accelerated``). Objectives and masks are compared on the same tiles in the
same run; a mismatch is an error.
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

from benchmarks.measure import (
    OURS,
    REPEATS,
    count_cores,
    is_missing,
    measure_matrix_rate,
    report_row,
    save_result,
    time_interleaved,
)
from fseg_jax.numerics import nmf

TOKENS, CHANNELS, TILES = 256, 1024, 64
TARGETS = {16: 10, 64: 60, 256: 200}  # times as fast as the best peer, by k
FREE_TARGET = 4
TOLERANCE_FIXED, TOLERANCE_FREE, TOLERANCE_OPTAX = 1e-3, 1e-2, 1e-6  # relative, of the objective
MIN_MASK_AGREEMENT = 0.99  # share of the tokens
MAX_OPTAX_ITERATIONS = 2**15


def draw_tiles(k: int, count: int, tokens: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw tokens that mix some of k concepts; return the tokens and the concepts.

    Tokens are float32 (tiles, tokens, channels), concepts float32 (k, channels). Many concepts are alike, as
    in real codebooks.
    """
    r = np.random.default_rng(k)
    tissue = r.gamma(0.5, size=(max(k // 8, 2), channels))
    H = tissue[np.arange(k) % len(tissue)] + 0.5 * r.gamma(0.5, size=(k, channels))
    W = r.random((count * tokens, k)) * (r.random((count * tokens, k)) < 4 / k)
    A = (W @ H) * r.gamma(4, 0.25, size=(count * tokens, channels))
    return A.reshape(count, tokens, channels).astype(np.float32), H.astype(np.float32)


def compare_fixed(k: int, count: int, tokens: int, channels: int, repeats: int) -> dict[str, Any]:
    """Time all sides with H fixed: ours and optax on all tiles at once, the others on one tile.

    Raises:
        SystemExit: our objective or mask differs from scikit-learn's.
    """
    A, H = draw_tiles(k, count, tokens, channels)
    device, centers = jnp.asarray(A), jnp.asarray(H)
    weights: dict[str, np.ndarray] = {}

    def solve_ours() -> jax.Array:
        return nmf.solve_weights(device, centers)

    def solve_sklearn() -> None:
        W, _, _ = non_negative_factorization(
            A[0], H=H, n_components=k, update_H=False, random_state=0, max_iter=10_000
        )
        weights["scikit-learn"] = W

    sides: dict[str, Callable[[], Any]] = {OURS: solve_ours, "scikit-learn cd": solve_sklearn}
    work = {OURS: float(count), "scikit-learn cd": 1.0}
    if not is_missing("torchnmf"):
        import torch
        import torchnmf.nmf

        torch.set_num_threads(count_cores())

        def solve_torchnmf() -> None:
            V = torch.from_numpy(A[0]) + 1e-9
            model = torchnmf.nmf.NMF(W=torch.from_numpy(H.T.copy()), H=(tokens, k), trainable_W=False)
            model.fit(V, beta=2, max_iter=1000, tol=1e-6)
            weights["torchnmf"] = model.H.detach().numpy()

        sides["torchnmf"], work["torchnmf"] = solve_torchnmf, 1.0

    def compute_objective(W: np.ndarray) -> float:
        return float(((A[0].astype(float) - W.astype(float) @ H.astype(float)) ** 2).sum())

    W = np.asarray(solve_ours())[0]
    solve_optax = jax.jit(partial(optax.nnls, centers.T), static_argnames="iters")
    columns = device.reshape(-1, channels).T
    iterations, optax_ratio = MAX_OPTAX_ITERATIONS, np.inf
    for doublings in range(6, MAX_OPTAX_ITERATIONS.bit_length()):
        iterations = 2**doublings
        solution = np.asarray(solve_optax(columns[:, :tokens], iters=iterations)).T
        optax_ratio = compute_objective(solution) / compute_objective(W)
        if optax_ratio <= 1 + TOLERANCE_OPTAX:
            break
    sides["optax.nnls"], work["optax.nnls"] = partial(solve_optax, columns, iters=iterations), float(count)
    timings = time_interleaved(sides, repeats)

    best = weights["scikit-learn"]
    comparison = {
        "objective over scikit-learn's": compute_objective(W) / compute_objective(best),
        "same mask": float((W.argmax(1) == best.argmax(1)).mean()),
    }
    if (
        comparison["objective over scikit-learn's"] > 1 + TOLERANCE_FIXED
        or comparison["same mask"] < MIN_MASK_AGREEMENT
    ):
        raise SystemExit(f"H fixed, k = {k}: not the same answer: {comparison}")
    comparison["optax.nnls's objective over ours"] = optax_ratio
    comparison["optax.nnls's iterations"] = float(iterations)
    unequal = [] if optax_ratio <= 1 + TOLERANCE_OPTAX else ["optax.nnls"]
    if "torchnmf" in weights:
        comparison["torchnmf's objective over scikit-learn's"] = compute_objective(
            weights["torchnmf"]
        ) / compute_objective(best)
        if comparison["torchnmf's objective over scikit-learn's"] > 1 + TOLERANCE_FIXED:
            unequal.append("torchnmf")
    operations = 2 * tokens * channels * k  # of A·Hᵀ; the updates after it work on (tokens, k)
    return report_row(
        f"H fixed, k = {k}",
        "tiles/s",
        work,
        timings,
        target=TARGETS.get(k),
        limit=measure_matrix_rate("float32") / operations,
        limited_by="A·Hᵀ in float32",
        unequal=unequal,
        same=comparison,
    )


def compare_free(k: int, method: str, count: int, tokens: int, channels: int, repeats: int) -> dict[str, Any]:
    """Time both sides with W and H free: ours on all tiles at once, scikit-learn on the next tile.

    Raises:
        SystemExit: our objective on the tiles that scikit-learn factorized is above its own.
    """
    A, _ = draw_tiles(12, count, tokens, channels)
    device, key = jnp.asarray(A), jax.random.key(0)
    errors: dict[int, float] = {}

    def factorize_ours() -> nmf.NMFResult:
        return nmf.factorize(device, k, key=key, method=method)

    def factorize_sklearn() -> None:
        tile = len(errors) % count
        errors[tile] = float(NMF(k, init="random", random_state=0).fit(A[tile]).reconstruction_err_) ** 2

    name = "scikit-learn cd"
    timings = time_interleaved({OURS: factorize_ours, name: factorize_sklearn}, repeats)
    result = factorize_ours()
    objective = float(np.sum(np.asarray(result.error)[list(errors)] ** 2))
    comparison = {"objective over scikit-learn's": objective / sum(errors.values())}
    if comparison["objective over scikit-learn's"] > 1 + TOLERANCE_FREE:
        raise SystemExit(f"W and H free, k = {k}: not the same answer: {comparison}")
    iterations = float(np.mean(np.asarray(result.iterations)))
    operations = 4 * tokens * channels * k * iterations  # A·Hᵀ and Wᵀ·A, in each iteration
    return report_row(
        f"W and H free, k = {k}, {method}",
        "tiles/s",
        {OURS: float(count), name: 1.0},
        timings,
        target=FREE_TARGET,
        limit=measure_matrix_rate("float32") / operations,
        limited_by=f"A·Hᵀ and Wᵀ·A in float32, {iterations:.0f} iterations",
        same=comparison,
    )


@click.command()
@click.option("--tiny", is_flag=True, help="Sizes that only show that it runs.")
def main(tiny: bool) -> None:
    """Compare the factorizations with H fixed, and with W and H free."""
    warnings.simplefilter("ignore", ConvergenceWarning)
    size = (2, 16, 32, 1) if tiny else (TILES, TOKENS, CHANNELS, REPEATS)
    rows = [compare_fixed(k, *size) for k in ((4,) if tiny else (16, 64, 256))]
    methods = ("accelerated", "hals")
    rows += [compare_free(k, method, *size) for k in ((2,) if tiny else (8, 16, 32)) for method in methods]
    save_result("nmf", rows, tiny=tiny)


if __name__ == "__main__":
    main()
