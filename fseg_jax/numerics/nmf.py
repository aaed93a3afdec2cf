"""Non-negative matrix factorization A ≈ W·H under the Frobenius loss, batched.

``factorize`` solves for W and H (F-SEG §3.1, after Lee & Seung 2001 and Cichocki & Phan 2009).
``solve_weights`` solves for W with H given (F-SEG §3.2.2): one non-negative least-squares problem a token.

Every problem of a batch, and with H given every token, has its own convergence test. It stands still once it
passes, so that no result depends on the rest of the batch.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fseg_jax.errors import InputError
from fseg_jax.numerics.arrays import Concepts, Key, Tokens, Weights
from fseg_jax.numerics.nnls import DEVICE_STEPS, NNLSResult, descend
from fseg_jax.numerics.nnls import solve as solve_nnls
from fseg_jax.numerics.scaling import exact_exp2, safe_exponent, safe_scale
from fseg_jax.numerics.sweep import sweep_in_kernel, sweep_in_loop

Scalar = float | Float[Array, ""]

_product = partial(jnp.matmul, precision="highest")


class WeightsResult(NamedTuple):
    """The weights W of A ≈ W·H with H given.

    Attributes:
        W: the weights.
        converged: for which tokens W is the minimiser, up to the tolerance.
    """

    W: Weights
    converged: Bool[Array, "*batch n"]


class NMFResult(NamedTuple):
    """A factorization A ≈ W·H.

    Attributes:
        W: how much each token owes to each concept.
        H: the concepts.
        error: the Frobenius norm of A − W·H.
        iterations: how many iterations were made.
        converged: whether the factorization has converged.
    """

    W: Weights
    H: Concepts
    error: Float[Array, "*batch"]
    iterations: Int[Array, "*batch"]
    converged: Bool[Array, "*batch"]


# ------------------------------------------------------------------------------------------------ H fixed

LIMITS = {"active set": 500, "cg": 500, "mu": 2000}  # iterations, by method


def solve_weights(
    A: Tokens,
    H: Float[Array, "*shared k c"],
    *,
    method: str = "active set",
    tolerance: float = 3e-6,
    max_iterations: int | None = None,
) -> Weights:
    """Solve min ‖A − W·H‖² over W ≥ 0 with the concepts H fixed (F-SEG §3.2.2).

    The channels are summed away first: with the Gram matrix G = H·Hᵀ and N = A·Hᵀ no iteration touches them
    again. Zero tokens and zero concepts get zero weights.

    >>> H = jnp.array([[1.0, 0.0, 1.0], [0.0, 2.0, 0.0]])
    >>> A = jnp.array([[3.0, 2.0, 3.0]])
    >>> solve_weights(A, H).round().tolist()
    [[3.0, 1.0]]

    Args:
        A: tokens ``(…, n, c)``, non-negative. Sizes from 1e-36 to 1e36 are solved; a smaller token counts as
            zero, the weights of a larger one are NaN.
        H: concepts ``(k, c)``, or ``(…, k, c)`` for one set a problem, non-negative, of any size.
        method: ``"active set"`` is Lawson & Hanson's for all tokens in step, and conjugate gradients for
            tokens that it leaves; on an accelerator, where gathers are slow, it is ``"cg"``: conjugate
            gradients alone. ``"mu"`` is multiplicative updates (Lee & Seung 2001), which are slower and less
            exact.
        tolerance: of the projected gradient, relative to N (``nnls.py``).
        max_iterations: of the last two methods; 500, or 2000 of ``"mu"``, unless given.

    Returns:
        W ``(…, n, k)``. ``solve`` also tells which tokens have converged.

    Raises:
        InputError: for an unknown method.
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
    """Solve as ``solve_weights`` does, and tell which tokens have converged.

    A token that is not finite has not. Raises ``InputError`` for an unknown method.
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

    def solve_problem(problem: tuple[Array, Array]) -> WeightsResult:
        result: WeightsResult = _solve(*problem, method, tolerance, limit)
        return result

    W, converged = jax.lax.map(solve_problem, (A, H))
    return WeightsResult(W.reshape(*batch, *W.shape[-2:]), converged.reshape(*batch, A.shape[-2]))


@partial(jax.jit, static_argnames=("method", "max_iterations"))
def _solve(
    A: Float[Array, "n c"], H: Float[Array, "k c"], method: str, tolerance: Scalar, max_iterations: int
) -> WeightsResult:
    dtype = jnp.promote_types(jnp.result_type(A, H), jnp.float32)
    H = H.astype(dtype)
    concept_scale = safe_scale(jnp.max(jnp.abs(H), axis=1, keepdims=True))
    H = H * concept_scale
    # Concepts of unit length: G has a unit diagonal, which is the best diagonal preconditioner.
    norm = jnp.linalg.norm(H, axis=1, keepdims=True)
    unit = H / jnp.where(norm > 0, norm, 1)
    G = _product(unit, unit.T)
    N = _product(A.astype(dtype), unit.T)
    # Scaling tokens here, where the channels are gone, costs nothing.
    token_scale = safe_scale(jnp.max(jnp.abs(N), axis=1, keepdims=True))
    N = N * token_scale
    if method == "mu":
        W, converged = _multiplicative_weights(G, N, tolerance, max_iterations)
    else:
        solve_on_cpu = solve_nnls if method == "active set" else descend
        W, converged = jax.lax.platform_dependent(
            G,
            N,
            jnp.asarray(tolerance, N.dtype),
            cpu=partial(solve_on_cpu, max_iterations=max_iterations),
            default=partial(descend, max_iterations=max_iterations, steps=DEVICE_STEPS),
        )
    norm = norm.T
    W = jnp.where(norm > 0, W / jnp.where(norm > 0, norm, 1), 0) * concept_scale.T / token_scale
    W = jnp.where(jnp.isfinite(N).all(1, keepdims=True), W, jnp.nan)
    return WeightsResult(W, converged & jnp.isfinite(W).all(1))


def _multiplicative_weights(
    G: Float[Array, "k k"], N: Float[Array, "n k"], tolerance: Scalar, max_iterations: int
) -> NNLSResult:
    """Repeat Lee & Seung's update W ← W ∘ N ⊘ (W·G) for every row.

    A row has converged when its largest change falls under the tolerance.
    """
    tiny = jnp.finfo(N.dtype).tiny

    State = tuple[Array, Array, Array]  # iterations, weights, rows that still move

    def body(state: State) -> State:
        i, w, live = state
        new = w * (jnp.maximum(N, 0) / jnp.maximum(_product(w, G), tiny))
        new = jnp.where(live, new, w)
        change = jnp.max(jnp.abs(new - w), axis=1, keepdims=True)
        return i + 1, new, live & (change > tolerance * jnp.max(new, axis=1, keepdims=True))

    # The best single multiple of the sum of all concepts: a positive start whose scale is right.
    total = jnp.sum(G)
    w = jnp.maximum(jnp.sum(N, axis=1, keepdims=True), 0) / jnp.maximum(total, tiny)
    w = jnp.broadcast_to(w, N.shape)
    live = jnp.ones((N.shape[0], 1), bool)
    _, w, live = jax.lax.while_loop(
        lambda state: (state[0] < max_iterations) & jnp.any(state[2]), body, (jnp.asarray(0), w, live)
    )
    return NNLSResult(w, ~live[:, 0])


# ------------------------------------------------------------------------------------------------ W, H free

Start = Literal["random", "nndsvd"]
PASSES = 4  # passes of accelerated HALS over H and over W, for each product with A
FREE_LIMITS = {"hals": 200, "accelerated": 60, "mu": 200}  # iterations, by method
CPU_BATCH = 4  # problems that a CPU solves at once: as many as its cache holds


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

    H is updated before W, as in the authors' code, which factorizes the transpose. k may exceed the rank:
    superfluous concepts fade to zero. An all-zero A gives an error of 0 and no NaN.

    >>> A = jnp.outer(jnp.array([1.0, 2.0]), jnp.array([3.0, 0.0, 1.0]))
    >>> result = factorize(A, 1, key=jax.random.key(0))
    >>> (result.W @ result.H).round().tolist()
    [[3.0, 0.0, 1.0], [6.0, 0.0, 2.0]]

    Args:
        A: matrices ``(…, n, c)``, non-negative, of any size that float32 holds.
        k: how many concepts.
        key: of the random start; the same for every problem of the batch, so that its result does not depend
            on its place.
        method: ``"hals"`` is hierarchical alternating least squares: the coordinate descent of scikit-learn's
            ``NMF(solver="cd")``, update for update. ``"accelerated"`` is the same with four passes over H,
            then four over W, for each product with A (Gillis & Glineur 2012). It reaches the same error in
            half the time, by other W and H. ``"mu"`` is multiplicative updates.
        start: ``"random"`` (scikit-learn's: half-normal at the scale of A), ``"nndsvd"`` (Boutsidis &
            Gallopoulos 2008, its zeros filled with the mean of A), or ``(W, H)``.
        tolerance: a problem has converged when the sum of the absolute projected gradients falls under
            ``tolerance`` × its first value (``"mu"``: when an iteration lowers the error by less than
            ``tolerance`` × its first value). It then stands still while others go on.
        max_iterations: 200, or 60 of ``"accelerated"``, unless given.
        rows: how many rows of each A count, the first ones. The others must be zero, get zero weights, and
            change nothing: from the random start the result is that of the rows alone, but for rounding.

    Raises:
        InputError: for k below 1, or an unknown method or start.
    """
    if k < 1:
        raise InputError(f"k = {k}: a factorization needs at least one concept")
    if method not in FREE_LIMITS:
        raise InputError(f"NMF method {method!r}: choose {', '.join(map(repr, FREE_LIMITS))}")
    batch, (n, c) = A.shape[:-2], A.shape[-2:]
    A, root = _scale_problems(A.reshape(-1, n, c).astype(jnp.promote_types(A.dtype, jnp.float32)))
    if isinstance(start, str):
        if start not in get_args(Start):
            raise InputError(f"NMF start {start!r}: choose 'random' or 'nndsvd', or give (W, H)")
        counted = None if rows is None else jnp.broadcast_to(rows, batch).reshape(-1)
        W, H = _draw_start(A, key, k, start, counted)
    else:
        W = jnp.broadcast_to(start[0].astype(A.dtype), (*batch, n, k)).reshape(-1, n, k) * root
        H = jnp.broadcast_to(start[1].astype(A.dtype), (*batch, k, c)).reshape(-1, k, c) * root
    result: NMFResult = _factorize(A, W, H, method, tolerance, max_iterations or FREE_LIMITS[method])
    error = result.error / root[:, 0, 0] / root[:, 0, 0]
    result = result._replace(W=result.W / root, H=result.H / root, error=error)
    return NMFResult(*(x.reshape(*batch, *x.shape[1:]) for x in result))


@jax.jit
def _scale_problems(A: Float[Array, "b n c"]) -> tuple[Float[Array, "b n c"], Float[Array, "b 1 1"]]:
    """Scale problems to safe sizes; return them, and the power of two that multiplies W and H then."""
    exponent = safe_exponent(jnp.max(jnp.abs(A), axis=(1, 2), keepdims=True))
    return A * exact_exp2(exponent, A.dtype), exact_exp2(exponent // 2, A.dtype)


@partial(jax.jit, static_argnames=("k", "kind"))
def _draw_start(
    A: Float[Array, "b n c"], key: Key, k: int, kind: str, rows: Int[Array, " b"] | None = None
) -> tuple[Array, Array]:
    """Draw first W and H for every problem."""
    _, n, c = A.shape

    def mean(a: Array, count: Array | None) -> Array:
        return jnp.mean(a) if count is None else jnp.sum(a) / jnp.maximum(count * c, 1)

    # W is drawn row by row: the first rows are the same however many follow.
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
        if r < k:  # more concepts than the rank: the rest start at random
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
    State = tuple[Array, Array, Array, Array, Array]  # iterations, Wᵀ, H, first measure, last measure

    def solve_one(a: Array, w: Array, h: Array, sweep: _Sweep = sweep_in_loop) -> NMFResult:
        if method == "mu":
            iterate: Callable[[Array, Array], _Iterate] = partial(_multiplicative, a)
        else:  # Aᵀ is laid out once: a product with it then reads memory in order
            iterate = partial(_hals, a, a.T, sweep, passes=PASSES if method == "accelerated" else 1)

        def body(state: State) -> State:
            i, wt, h, first, _ = state
            wt, h, measure = iterate(wt, h)
            first = jnp.where(i == 0, measure, first)
            return i + 1, wt, h, first, measure

        if method != "mu":  # the measure is the violation, which is to be small

            def moves(state: State) -> Array:
                i, _, _, first, measure = state
                return (i < max_iterations) & ((i == 0) | (measure > tolerance * first))

            infinity = jnp.asarray(jnp.inf, a.dtype)
            i, wt, h, first, measure = jax.lax.while_loop(
                moves, body, (jnp.asarray(0), w.T, h, infinity, infinity)
            )
            converged = measure <= tolerance * first
        else:  # the measure is the error, whose fall is to be small

            def test_fall(state: tuple[State, Array]) -> tuple[State, Array]:
                previous = state[0][4]
                i, wt, h, first, measure = body(state[0])
                return (i, wt, h, first, measure), (i > 1) & (previous - measure <= tolerance * first)

            zero = jnp.asarray(0, a.dtype)
            (i, wt, h, _, _), converged = jax.lax.while_loop(
                lambda state: (state[0][0] < max_iterations) & ~state[1],
                test_fall,
                ((jnp.asarray(0), w.T, h, zero, zero), jnp.asarray(False)),
            )
        w = wt.T
        error = jnp.linalg.norm(a - _product(w, h))
        return NMFResult(w, h, error, jnp.asarray(i), converged)

    def solve_few_at_once(*problems: Array) -> NMFResult:
        result: NMFResult = jax.lax.map(lambda problem: solve_one(*problem), problems, batch_size=CPU_BATCH)
        return result

    result: NMFResult = jax.lax.platform_dependent(
        A,
        W,
        H,
        cpu=solve_few_at_once,
        tpu=jax.vmap(partial(solve_one, sweep=sweep_in_kernel)),
        default=jax.vmap(solve_one),
    )
    return result


class _Iterate(NamedTuple):
    """Wᵀ and H after an iteration, and its measure: the violation that it met, or the error."""

    Wt: Float[Array, "k n"]
    H: Float[Array, "k c"]
    measure: Float[Array, ""]


_Sweep = Callable[[Array, Array, Array, int], Array]


def _descend(
    F: Float[Array, "k m"], G: Float[Array, "k k"], N: Float[Array, "k m"], sweep: _Sweep, passes: int
) -> tuple[Array, Array]:
    """Minimise ½ tr(Fᵀ·G·F) − tr(Nᵀ·F) over F ≥ 0 by coordinate descent, row by row.

    Returns F and the violation that the first pass met: the sum of the absolute projected gradients.
    """
    identity = jnp.eye(len(G), dtype=G.dtype)
    curvature = jnp.sum(G * identity, axis=1, keepdims=True)  # a diagonal is a gather
    scale = jnp.where(curvature > 0, 1 / jnp.where(curvature > 0, curvature, 1), 0)
    # F_j − (G_j·F − N_j) / G_jj as one product and one difference; a row without curvature stays.
    target, step = N * scale, G * scale - identity

    once = sweep(target, step, F, 1)
    # Row j met the rows before it updated, and the rows after it not yet.
    before = jnp.where(np.tri(len(G), k=-1, dtype=bool), G, 0)
    gradient = _product(jnp.concatenate([before, G - before], 1), jnp.concatenate([once, F])) - N
    violation = jnp.sum(jnp.abs(jnp.where(F == 0, jnp.minimum(gradient, 0), gradient)))
    return sweep(target, step, once, passes - 1), violation


def _hals(
    A: Float[Array, "n c"],
    At: Float[Array, "c n"],
    sweep: _Sweep,
    Wt: Float[Array, "k n"],
    H: Float[Array, "k c"],
    passes: int,
) -> _Iterate:
    """Update H, then W, by coordinate descent."""
    H, violation_H = _descend(H, _product(Wt, Wt.T), _product(Wt, A), sweep, passes)
    Wt, violation_W = _descend(Wt, _product(H, H.T), _product(H, At), sweep, passes)
    return _Iterate(Wt, H, violation_H + violation_W)


def _multiplicative(A: Float[Array, "n c"], Wt: Float[Array, "k n"], H: Float[Array, "k c"]) -> _Iterate:
    """Update H, then W, by Lee & Seung's multiplicative rules."""
    tiny = jnp.finfo(A.dtype).tiny
    H = H * (_product(Wt, A) / jnp.maximum(_product(_product(Wt, Wt.T), H), tiny))
    Wt = Wt * (_product(H, A.T) / jnp.maximum(_product(_product(H, H.T), Wt), tiny))
    return _Iterate(Wt, H, jnp.linalg.norm(A - _product(Wt.T, H)))
