"""Non-negative matrix factorization A ≈ W·H under the Frobenius loss, batched.

``factorize`` finds W and H (F-SEG §3.1, after Lee & Seung 2001 and Cichocki & Phan 2009); ``solve_weights``
finds W for a given H (F-SEG §3.2.2), which is one non-negative least-squares problem a token.

Every problem of a batch, and with H fixed every token, has its own convergence test and stands still once it
passes, so that no result depends on what it was batched with.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fseg_jax.errors import InputError
from fseg_jax.numerics.arrays import Concepts, Key, Tokens, Weights
from fseg_jax.numerics.nnls import active_set, conjugate_gradients, unfinished
from fseg_jax.numerics.packing import recompute_rows
from fseg_jax.numerics.scaling import exact_exp2, safe_exponent, safe_scale

Scalar = float | Float[Array, ""]


class WeightsResult(NamedTuple):
    """What ``solve`` found: W, and of which tokens it is the minimiser up to the tolerance."""

    W: Weights
    converged: Bool[Array, "*batch n"]


class NMFResult(NamedTuple):
    """What ``factorize`` found: A ≈ W·H, with ``error`` the Frobenius norm of what is left."""

    W: Weights
    H: Concepts
    error: Float[Array, "*batch"]
    iterations: Int[Array, "*batch"]
    converged: Bool[Array, "*batch"]


# ------------------------------------------------------------------------------------------------ H fixed

LIMITS = {"active set": 500, "cg": 500, "mu": 2000}  # iterations


def solve_weights(
    A: Tokens,
    H: Float[Array, "*shared k c"],
    *,
    method: str = "active set",
    tolerance: float = 3e-6,
    max_iterations: int | None = None,
) -> Weights:
    """Solve min ‖A − W·H‖² over W ≥ 0 with the concepts H fixed (F-SEG §3.2.2).

    The channels are summed away first: with the Gram G = H·Hᵀ and N = A·Hᵀ no iteration touches them again.

    ``A (…, n, c)``, ``H (k, c)`` shared or ``(…, k, c)`` one a problem, both non-negative floats; returns
    ``W (…, n, k)``. ``method``: ``"active set"``, Lawson & Hanson's for all tokens in step, with conjugate
    gradients for what that leaves; ``"cg"``, conjugate gradients alone; both exact up to ``tolerance``, the
    projected gradient relative to N (``nnls.py``); or ``"mu"``, multiplicative updates (Lee & Seung
    2001), which are slower. At most ``max_iterations`` are made of the last two (500, and 2000 for
    ``"mu"``). Zero tokens and zero concepts get zero weights. Tokens may be of any size from 1e-36 to 1e36
    (a smaller one counts as zero, the weights of a larger one are NaN), concepts of any that float32 holds.
    """
    return solve(A, H, method=method, tolerance=tolerance, max_iterations=max_iterations).W


def solve(
    A: Tokens,
    H: Float[Array, "*shared k c"],
    *,
    method: str = "active set",
    tolerance: float = 3e-6,
    max_iterations: int | None = None,
) -> WeightsResult:
    """Solve as ``solve_weights`` does, and say which tokens have converged; those that are not finite have
    not.
    """
    if method not in LIMITS:
        raise InputError(f"NMF method {method!r}: choose {', '.join(map(repr, LIMITS))}")
    limit = max_iterations or LIMITS[method]
    if H.ndim == 2:  # all tokens share H: one problem with many rows, so that the products are large
        tokens = A.reshape(-1, A.shape[-1])
        W, converged = _solve(tokens, H, method, tolerance, limit)
        return WeightsResult(W.reshape(*A.shape[:-1], H.shape[0]), converged.reshape(A.shape[:-1]))
    batch = jnp.broadcast_shapes(A.shape[:-2], H.shape[:-2])
    A = jnp.broadcast_to(A, batch + A.shape[-2:]).reshape(-1, *A.shape[-2:])
    H = jnp.broadcast_to(H, batch + H.shape[-2:]).reshape(-1, *H.shape[-2:])
    W, converged = jax.lax.map(lambda problem: _solve(*problem, method, tolerance, limit), (A, H))
    return WeightsResult(W.reshape(*batch, *W.shape[-2:]), converged.reshape(*batch, A.shape[-2]))


@partial(jax.jit, static_argnames=("method", "max_iterations"))
def _solve(
    A: Float[Array, "n c"], H: Float[Array, "k c"], method: str, tolerance: Scalar, max_iterations: int
) -> WeightsResult:
    dtype = jnp.promote_types(jnp.result_type(A, H), jnp.float32)
    H = H.astype(dtype)
    of_concepts = safe_scale(jnp.max(jnp.abs(H), axis=1, keepdims=True))
    H = H * of_concepts
    # Concepts of unit length: G has a unit diagonal, which is the best diagonal preconditioner.
    norm = jnp.linalg.norm(H, axis=1, keepdims=True)
    unit = H / jnp.where(norm > 0, norm, 1)
    G = jnp.matmul(unit, unit.T, precision="highest")
    N = jnp.matmul(A.astype(dtype), unit.T, precision="highest")
    # Scaled here, where the channels are gone, tokens of any size cost nothing.
    of_tokens = safe_scale(jnp.max(jnp.abs(N), axis=1, keepdims=True))
    N = N * of_tokens
    if method == "mu":
        W, left = _multiplicative_weights(G, N, tolerance, max_iterations)
    elif method == "cg":
        W, left = conjugate_gradients(G, N, tolerance, max_iterations, jnp.zeros_like(N))
    else:
        began = active_set(G, N, tolerance / 3)

        def finish(rows: Int[Array, " m"]) -> tuple[Array, Array]:
            return conjugate_gradients(G, N[rows], tolerance, max_iterations, began[rows])

        rest = unfinished(G, N, began, tolerance)
        W, left = recompute_rows(finish, rest, (began, rest))
    norm = norm.T
    W = jnp.where(norm > 0, W / jnp.where(norm > 0, norm, 1), 0) * of_concepts.T / of_tokens
    W = jnp.where(jnp.isfinite(N).all(1, keepdims=True), W, jnp.nan)
    return WeightsResult(W, ~left & jnp.isfinite(W).all(1))


def _multiplicative_weights(
    G: Float[Array, "k k"], N: Float[Array, "n k"], tolerance: Scalar, max_iterations: int
) -> tuple[Float[Array, "n k"], Bool[Array, " n"]]:
    """Lee & Seung's update W ← W ∘ N ⊘ (W·G), for every row until its largest change falls under the
    tolerance; and which rows are left unfinished.
    """
    tiny = jnp.finfo(N.dtype).tiny

    def body(state: tuple) -> tuple:
        i, w, live = state
        new = w * (jnp.maximum(N, 0) / jnp.maximum(jnp.matmul(w, G, precision="highest"), tiny))
        new = jnp.where(live, new, w)
        change = jnp.max(jnp.abs(new - w), axis=1, keepdims=True)
        return i + 1, new, live & (change > tolerance * jnp.max(new, axis=1, keepdims=True))

    # The best single multiple of the sum of all concepts: a positive start whose scale is right.
    total = jnp.sum(G)
    w = jnp.maximum(jnp.sum(N, axis=1, keepdims=True), 0) / jnp.maximum(total, tiny)
    w = jnp.broadcast_to(w, N.shape)
    live = jnp.ones((N.shape[0], 1), bool)
    _, w, live = jax.lax.while_loop(
        lambda state: (state[0] < max_iterations) & jnp.any(state[2]), body, (0, w, live)
    )
    return w, live[:, 0]


# ------------------------------------------------------------------------------------------------ W, H free

PASSES = 4  # of accelerated HALS over H and over W, for each product with A
FREE_LIMITS = {"hals": 200, "accelerated": 60, "mu": 200}  # iterations
FEW = 4  # problems that a CPU solves at once: as many as its cache holds


def factorize(
    A: Tokens,
    k: int,
    *,
    key: Key,
    method: str = "hals",
    start: str | tuple[Float[Array, "*shared n k"], Float[Array, "*shared k c"]] = "random",
    tolerance: float = 1e-4,
    max_iterations: int | None = None,
    rows: Int[Array | np.ndarray, "*batch"] | None = None,
) -> NMFResult:
    """Factorize every matrix of a batch into k non-negative concepts, A ≈ W·H (F-SEG §3.1).

    ``A (…, n, c)``, non-negative float. ``method``: ``"hals"``, hierarchical alternating least squares (the
    coordinate descent of scikit-learn's ``NMF(solver="cd")``, update for update); ``"accelerated"``, the same
    with four passes over H, then four over W, for each product with A (Gillis & Glineur 2012), which reaches
    the same error in half the time, by other W and H; or ``"mu"``, multiplicative updates. ``start``:
    ``"random"`` (scikit-learn's: half-normal at the scale of A), ``"nndsvd"`` (Boutsidis & Gallopoulos 2008,
    its zeros filled with the mean of A), or ``(W, H)``. H is updated before W, as in the authors' code, which
    factorizes the transpose. Every problem of the batch uses the same ``key``, so that its result does not
    depend on its place. A problem has converged when the sum of the absolute projected gradients falls under
    ``tolerance`` × its first value (``"mu"``: when the error falls by less than ``tolerance`` of its first
    value in an iteration); it then stands still while others go on. At most ``max_iterations`` are made: 200,
    or 60 of ``"accelerated"``.

    ``rows``: how many rows of each A count, the first ones; the rest must be zero, get zero weights, and
    change nothing: from the random start, what the rows alone would give, but for rounding.

    k may exceed the rank: superfluous concepts fade to zero. An all-zero A gives an error of 0 and no NaN.
    A may be of any size that float32 holds.
    """
    if k < 1:
        raise InputError(f"k = {k}: a factorization needs at least one concept")
    if method not in FREE_LIMITS:
        raise InputError(f"NMF method {method!r}: choose {', '.join(map(repr, FREE_LIMITS))}")
    batch, (n, c) = A.shape[:-2], A.shape[-2:]
    A, root = _to_ordinary(A.reshape(-1, n, c).astype(jnp.promote_types(A.dtype, jnp.float32)))
    if isinstance(start, str):
        if start not in ("random", "nndsvd"):
            raise InputError(f"NMF start {start!r}: choose 'random' or 'nndsvd', or give (W, H)")
        counted = None if rows is None else jnp.broadcast_to(rows, batch).reshape(-1)
        W, H = _start(A, key, k, start, counted)
    else:
        W = jnp.broadcast_to(start[0].astype(A.dtype), (*batch, n, k)).reshape(-1, n, k) * root
        H = jnp.broadcast_to(start[1].astype(A.dtype), (*batch, k, c)).reshape(-1, k, c) * root
    found = _factorize(A, W, H, method, tolerance, max_iterations or FREE_LIMITS[method])
    each = root[:, 0, 0]
    found = found._replace(W=found.W / root, H=found.H / root, error=found.error / each / each)
    return NMFResult(*(x.reshape(*batch, *x.shape[1:]) for x in found))


@jax.jit
def _to_ordinary(A: Float[Array, "b n c"]) -> tuple[Float[Array, "b n c"], Float[Array, "b 1 1"]]:
    """Problems of ordinary size, and what W and H of each are then multiplied with, a power of two."""
    exponent = safe_exponent(jnp.max(jnp.abs(A), axis=(1, 2), keepdims=True))
    return A * exact_exp2(exponent, A.dtype), exact_exp2(exponent // 2, A.dtype)


@partial(jax.jit, static_argnames=("k", "kind"))
def _start(
    A: Float[Array, "b n c"], key: Key, k: int, kind: str, rows: Int[Array, " b"] | None = None
) -> tuple[Array, Array]:
    _, n, c = A.shape

    def mean(a: Array, count: Array | None) -> Array:
        return jnp.mean(a) if count is None else jnp.sum(a) / jnp.maximum(count * c, 1)

    # Drawn row by row: the first rows are the same however many follow.
    def random(a: Array, count: Array | None) -> tuple[Array, Array]:
        scale = jnp.sqrt(mean(a, count) / k)
        w_key, h_key = jax.random.split(key)
        W = scale * jnp.abs(jax.random.normal(w_key, (n, k), a.dtype))
        return W, scale * jnp.abs(jax.random.normal(h_key, (k, c), a.dtype))

    def nndsvd(a: Array, count: Array | None) -> tuple[Array, Array]:
        U, S, Vt = jnp.linalg.svd(a, full_matrices=False)
        r = min(k, min(n, c))

        def component(u: Array, s: Array, v: Array) -> tuple[Array, Array]:
            up, un, vp, vn = jnp.maximum(u, 0), jnp.maximum(-u, 0), jnp.maximum(v, 0), jnp.maximum(-v, 0)
            norms = [jnp.linalg.norm(x) for x in (up, un, vp, vn)]
            positive = norms[0] * norms[2] >= norms[1] * norms[3]
            x, y = jnp.where(positive, up, un), jnp.where(positive, vp, vn)
            nx, ny = jnp.linalg.norm(x), jnp.linalg.norm(y)
            size = jnp.sqrt(s * nx * ny)
            return size * x / jnp.where(nx > 0, nx, 1), size * y / jnp.where(ny > 0, ny, 1)

        W, H = jax.vmap(component)(U.T[:r], S[:r], Vt[:r])
        W, H = W.T, H
        if r < k:  # more concepts than the rank can seed: the rest start at random
            W_rest, H_rest = random(a, count)
            W = jnp.concatenate([W, W_rest[:, r:]], axis=1)
            H = jnp.concatenate([H, H_rest[r:]], axis=0)
        fill = mean(a, count)
        return jnp.where(W > 1e-6, W, fill), jnp.where(H > 1e-6, H, fill)

    W, H = jax.vmap(random if kind == "random" else nndsvd)(A, rows)
    if rows is not None:
        W = jnp.where(jnp.arange(n)[None, :, None] < rows[:, None, None], W, 0)
    return W, H


@partial(jax.jit, static_argnames=("method", "max_iterations"))
def _factorize(
    A: Float[Array, "b n c"],
    W: Float[Array, "b n k"],
    H: Float[Array, "b k c"],
    method: str,
    tolerance: Scalar,
    max_iterations: int,
) -> NMFResult:
    def one(a: Array, w: Array, h: Array) -> NMFResult:
        if method == "mu":
            iterate = partial(_multiplicative, a)
        else:  # Aᵀ is laid out once: a product with it then reads what lies side by side
            iterate = partial(_hals, a, a.T, passes=PASSES if method == "accelerated" else 1)

        def body(state: tuple) -> tuple:
            i, wt, h, first, _ = state
            wt, h, measure = iterate(wt, h)
            first = jnp.where(i == 0, measure, first)
            return i + 1, wt, h, first, measure

        if method != "mu":  # the measure is the violation itself

            def going(state: tuple) -> Array:
                i, _, _, first, measure = state
                return (i < max_iterations) & ((i == 0) | (measure > tolerance * first))

            infinity = jnp.asarray(jnp.inf, a.dtype)
            i, wt, h, first, measure = jax.lax.while_loop(going, body, (0, w.T, h, infinity, infinity))
            converged = measure <= tolerance * first
        else:  # the measure is the error, of which the fall counts

            def fall(state: tuple) -> tuple:
                previous = state[4]
                i, wt, h, first, measure = body(state[:5])
                return i, wt, h, first, measure, (i > 1) & (previous - measure <= tolerance * first)

            state = (0, w.T, h, jnp.asarray(0, a.dtype), jnp.asarray(0, a.dtype), jnp.asarray(False))
            i, wt, h, _, _, converged = jax.lax.while_loop(
                lambda state: (state[0] < max_iterations) & ~state[5], fall, state
            )
        w = wt.T
        error = jnp.linalg.norm(a - jnp.matmul(w, h, precision="highest"))
        return NMFResult(w, h, error, jnp.asarray(i), converged)

    def few(*problems: Array) -> NMFResult:
        return jax.lax.map(lambda problem: one(*problem), problems, batch_size=FEW)

    return jax.lax.platform_dependent(A, W, H, cpu=few, default=jax.vmap(one))


def _sweep(
    F: Float[Array, "k m"], G: Float[Array, "k k"], N: Float[Array, "k m"], passes: int
) -> tuple[Array, Array]:
    """Coordinate descent over the rows of F ≥ 0 for min ½ tr(Fᵀ·G·F) − tr(Nᵀ·F), and the violation that its
    first pass met.
    """
    curvature = jnp.diagonal(G)[:, None]
    scale = jnp.where(curvature > 0, 1 / jnp.where(curvature > 0, curvature, 1), 0)
    # F_j − (G_j·F − N_j) / G_jj, as one product and one difference; a row without curvature stays.
    target, step = N * scale, G * scale - jnp.eye(F.shape[0], dtype=G.dtype)

    def row(i: Array, F: Array) -> Array:
        j = i % F.shape[0]
        return F.at[j].set(jnp.maximum(target[j] - jnp.matmul(step[j][None], F, precision="highest")[0], 0))

    once = jax.lax.fori_loop(0, F.shape[0], row, F)
    # Row j met the rows before it as they had become, and those after it as they had been.
    become = jnp.tril(G, -1)
    product = partial(jnp.matmul, precision="highest")
    gradient = product(become, once) + product(G - become, F) - N
    violation = jnp.sum(jnp.abs(jnp.where(F == 0, jnp.minimum(gradient, 0), gradient)))
    return jax.lax.fori_loop(0, (passes - 1) * F.shape[0], row, once), violation


def _hals(
    A: Float[Array, "n c"],
    At: Float[Array, "c n"],
    Wt: Float[Array, "k n"],
    H: Float[Array, "k c"],
    passes: int,
) -> tuple:
    product = partial(jnp.matmul, precision="highest")
    H, of_h = _sweep(H, product(Wt, Wt.T), product(Wt, A), passes)
    Wt, of_w = _sweep(Wt, product(H, H.T), product(H, At), passes)
    return Wt, H, of_h + of_w


def _multiplicative(A: Float[Array, "n c"], Wt: Float[Array, "k n"], H: Float[Array, "k c"]) -> tuple:
    product = partial(jnp.matmul, precision="highest")
    tiny = jnp.finfo(A.dtype).tiny
    H = H * (product(Wt, A) / jnp.maximum(product(product(Wt, Wt.T), H), tiny))
    Wt = Wt * (product(H, A.T) / jnp.maximum(product(product(H, H.T), Wt), tiny))
    return Wt, H, jnp.linalg.norm(A - product(Wt.T, H))
