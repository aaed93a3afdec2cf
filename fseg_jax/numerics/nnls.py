"""Non-negative least squares, one problem a token: min ½ w·G·w − n·w over w ≥ 0, with one Gram matrix G.

``solve`` joins two methods:

- ``_active_set`` is Lawson & Hanson's method (Solving Least Squares Problems, 1974, §23.3) for many tokens in
  step. A token has few positive weights, whatever the number of concepts: five to ten of 64, up to twenty of
  256. So each token keeps the inverse of its own few rows and columns of G in a fixed number of slots, and a
  step takes one weight in or out.
- ``conjugate_gradients`` needs no slots and bears a singular G. It finishes the tokens that the active set
  leaves. Dense and without a gather, it is all that an accelerator does.

G has a unit diagonal (a zero concept's row is zero), and the squares of N are within float32
(``scaling.safe_scale``); ``nmf`` makes them so. Tokens lie along the last axis of the active set's arrays, so
that all its small sums run over whole vectors.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fseg_jax.numerics.axes import find_first
from fseg_jax.numerics.packing import recompute_rows

Scalar = float | Float[Array, ""]

DEVICE_STEPS = 4  # steps of conjugate gradients that an accelerator makes before it asks whether all is done

# A concept is dependent if less than this of it lies outside the span of those in use: its weight would be
# rounding.
DEPENDENT = 1e-6


class NNLSResult(NamedTuple):
    """The solution of each problem.

    Attributes:
        W: the weights.
        converged: whether the projected gradient fell under the tolerance.
    """

    W: Float[Array, "n k"]
    converged: Bool[Array, " n"]


class Rung(NamedTuple):
    """A stage of the active set method."""

    slots: int  # positive weights that a token can have
    steps: int  # steps that are made
    share: float  # the share of all tokens that is taken at a time


# Few slots and steps come first, for all tokens. Tokens that are not done go on, packed together, to the next
# rung with more: of a real slide's tokens a quarter at k = 64 and three fifths at k = 256. To the third rung
# go 0.4 and 3 %.
RUNGS = (Rung(8, 8, 1.0), Rung(14, 8, 1 / 8), Rung(24, 96, 1 / 2))


class Slots(NamedTuple):
    """The state of the active set method, s slots for each of n tokens.

    Attributes:
        w: feasible weights.
        z: the minimiser over the slots in use.
        inverse: the inverse of G's rows and columns ``concept`` in the slots in use, zero elsewhere.
        concept: the concept in each slot.
        use: whether a slot is in use.
        live: whether another step is to be made.
    """

    w: Float[Array, "s n"]
    z: Float[Array, "s n"]
    inverse: Float[Array, "s s n"]
    concept: Int[Array, "s n"]
    use: Bool[Array, "s n"]
    live: Bool[Array, "1 n"]


def solve(
    G: Float[Array, "k k"], N: Float[Array, "n k"], tolerance: Scalar, max_iterations: int
) -> NNLSResult:
    """Minimise ½ w·G·w − n·w over w ≥ 0 for every row n of N: the active set first, then conjugate gradients.

    A row has converged when its projected gradient falls under ``tolerance`` × ‖n‖. At most
    ``max_iterations`` are made of conjugate gradients.
    """
    start = _active_set(G, N, tolerance / 3)

    def finish(rows: Int[Array, " m"]) -> tuple[Array, Array]:
        finished = conjugate_gradients(G, N[rows], tolerance, max_iterations, start[rows])
        return finished.W, ~finished.converged

    unfinished = _exceeds(G, N, start, tolerance)
    W, unfinished = recompute_rows(finish, unfinished, (start, unfinished))
    return NNLSResult(W, ~unfinished)


def _active_set(G: Float[Array, "k k"], N: Float[Array, "n k"], tolerance: Scalar) -> Float[Array, "n k"]:
    """Minimise ½ w·G·w − n·w over w ≥ 0 for every row n of N by an active set.

    A row is done when no gradient that would lift a weight off zero exceeds ``tolerance`` × ‖n‖. Rows are
    left where they stand if they need more positive weights than the last of ``RUNGS`` has slots, or a
    concept that depends on those in use. ``solve`` finds and finishes them.
    """
    N = N.T
    floor = tolerance * jnp.sqrt(jnp.sum(N * N, 0, keepdims=True))
    return _climb(G, N, floor, _no_slots(N.shape[1], N.dtype), RUNGS).T


def _climb(
    G: Float[Array, "k k"],
    N: Float[Array, "k n"],
    floor: Float[Array, "1 n"],
    start: Slots,
    rungs: Sequence[Rung],
) -> Float[Array, "k n"]:
    """Make the first rung's steps, then those of the next rungs for tokens that are not done."""
    k, (rung, *higher) = len(G), rungs
    slots = _step(G, N, floor, _widen(start, min(rung.slots, k)), rung.steps)
    W = _scatter(slots.w, slots.concept, k)
    if not higher:
        return W
    full = jnp.all(slots.use, 0, keepdims=True) & (rung.slots < k)
    rest = slots.live | full

    def climb_on(tokens: Int[Array, " m"]) -> Array:
        picked = Slots(*(x[..., tokens] for x in slots))._replace(live=rest[:, tokens])
        return _climb(G, N[:, tokens], floor[:, tokens], picked, higher).T

    return recompute_rows(climb_on, rest[0], W.T, share=higher[0].share).T


def _widen(slots: Slots, count: int) -> Slots:
    w, z, inverse, concept, use, live = slots
    free = ((0, count - len(w)), (0, 0))
    w, z, concept, use = (jnp.pad(x, free) for x in (w, z, concept, use))
    return Slots(w, z, jnp.pad(inverse, (free[0], *free)), concept, use, live)


def _no_slots(n: int, dtype: jnp.dtype) -> Slots:
    zero = jnp.zeros((0, n), dtype)
    inverse = jnp.zeros((0, 0, n), dtype)
    return Slots(zero, zero, inverse, zero.astype(jnp.int32), zero.astype(bool), jnp.ones((1, n), bool))


def _scatter(w: Float[Array, "s n"], concept: Int[Array, "s n"], k: int) -> Float[Array, "k n"]:
    """Put the weights in their concepts' places; slots that are not in use hold zeros."""
    tokens = jnp.arange(w.shape[1])[None]
    return jnp.zeros((k, w.shape[1]), w.dtype).at[concept, tokens].add(w, mode="promise_in_bounds")


def _step(
    G: Float[Array, "k k"], N: Float[Array, "k n"], floor: Float[Array, "1 n"], slots: Slots, limit: int
) -> Slots:
    """Make at most ``limit`` steps of Lawson & Hanson's method: each takes a weight in or out."""
    k, count = len(G), len(slots.w)
    row = jnp.arange(count)[:, None]
    tiny = jnp.finfo(N.dtype).tiny

    def total(x: Array) -> Array:
        return jnp.sum(x, 0, keepdims=True)

    def body(state: tuple[Array, Slots]) -> tuple[Array, Slots]:
        i, (w, z, inverse, concept, use, live) = state
        # Out: z leaves the orthant. w goes towards z until its first weight is zero, which is taken out.
        beyond = use & (z <= 0)
        out = jnp.any(beyond, 0, keepdims=True)
        share = jnp.where(beyond, w / jnp.maximum(w - z, tiny), 2)
        most = jnp.min(share, 0, keepdims=True)
        leaving = row == find_first(share == most, 0)
        w = jnp.where(out, jnp.where(live, jnp.maximum(w + most * (z - w), 0), w), z)
        # In: w is z, and the weight with the steepest gradient is taken in.
        W = _scatter(w, concept, k)
        gradient = jnp.where(W > 0, -jnp.inf, N - jnp.matmul(G, W, precision="highest"))
        steepest = jnp.max(gradient, 0, keepdims=True)
        new = jnp.minimum(find_first(gradient == steepest, 0), k - 1)
        slot = find_first(~use, 0)
        entering = row == slot
        # A slot in or out is a rank-one update of the inverse, along the vector v.
        g = G.reshape(-1).at[concept * k + new].get(mode="promise_in_bounds")
        g = jnp.where(use, g, 0)
        x = jnp.where(out, leaving, g)
        y = inverse[0] * x[:1]
        for s in range(1, count):
            y += inverse[s] * x[s : s + 1]
        y = jnp.where(use, y, 0)
        outside = 1 - total(g * y)
        go = live & (out | ((steepest > floor) & (slot < count) & (outside > DEPENDENT)))
        v = jnp.where(out, y, y - entering)
        pivot = jnp.where(out, -total(jnp.where(leaving, y, 0)), outside)
        scale = jnp.where(go, 1 / jnp.where(pivot == 0, tiny, pivot), 0)
        away = jnp.where(out, total(jnp.where(leaving, z, 0)), -steepest)
        removed, added = leaving & out & go, entering & ~out & go
        stays = (~removed).astype(N.dtype)
        inverse = (inverse + (scale * v)[:, None] * v[None]) * (stays[:, None] * stays[None])
        z = (z + jnp.where(go, scale * away, 0) * v) * stays
        use = (use & ~removed) | added
        return i + 1, Slots(jnp.where(use, w, 0), z, inverse, jnp.where(added, new, concept), use, go)

    return jax.lax.while_loop(
        lambda state: (state[0] < limit) & jnp.any(state[1].live), body, (jnp.asarray(0), slots)
    )[1]


class _Descent(NamedTuple):
    """The state of conjugate gradients: weights, gradients, directions, and which rows still move."""

    i: Int[Array, ""]
    w: Float[Array, "n k"]
    g: Float[Array, "n k"]
    p: Float[Array, "n k"]
    live: Bool[Array, "n 1"]


def descend(
    G: Float[Array, "k k"], N: Float[Array, "n k"], tolerance: Scalar, max_iterations: int, steps: int = 1
) -> NNLSResult:
    """Minimise as ``solve`` does, from zero by conjugate gradients alone, ``steps`` between two looks."""
    return conjugate_gradients(G, N, tolerance, max_iterations, jnp.zeros_like(N), steps)


def conjugate_gradients(
    G: Float[Array, "k k"],
    N: Float[Array, "n k"],
    tolerance: Scalar,
    max_iterations: int,
    start: Float[Array, "n k"],
    steps: int = 1,
) -> NNLSResult:
    """Minimise ½ w·G·w − n·w over w ≥ 0 for every row n of N by conjugate gradients.

    Each row goes at its own pace. They run on the face of the positive weights, with projected expansion
    (Dostál's MPRGP with the projected step of Kružík et al. 2020). A row has converged when its projected
    gradient falls under ``tolerance`` × ‖n‖. It then stands still: no result depends on ``steps``,
    which are made before it is looked whether all have.
    """

    def dot(a: Array, b: Array) -> Array:
        return jnp.sum(a * b, axis=1, keepdims=True)

    length = 1.0 / jnp.maximum(jnp.max(jnp.sum(jnp.abs(G), axis=1)), 1e-30)  # 1 / ‖G‖∞ ≤ 1 / ‖G‖₂
    info = jnp.finfo(N.dtype)
    target = tolerance**2 * dot(N, N)

    def step_all(state: _Descent) -> _Descent:
        i, w, g, p, live = state
        free, chopped = _split(w, g)
        # Proportional: more is to be gained on the face than by leaving it.
        on_face = dot(chopped, chopped) <= dot(jnp.minimum(free, w / length), free)
        d = jnp.where(on_face, p, chopped)
        Gd = jnp.matmul(d, G, precision="highest")
        # Along concepts that are all but equal dᵀ·G·d is rounding, of either sign: keep it off zero.
        dGd = jnp.maximum(dot(d, Gd), info.eps * dot(d, d) + info.tiny)
        alpha = dot(g, d) / dGd
        moved = w - alpha * d
        # A step that leaves the orthant is projected back, which frees or fixes many weights at once.
        inside = jnp.all(moved >= 0, axis=1, keepdims=True)
        w_new = jnp.maximum(moved, 0)
        g_new = jnp.matmul(w_new, G, precision="highest") - N
        free_new, _ = _split(w_new, g_new)
        conjugate = jnp.where(on_face & inside, dot(free_new, Gd) / dGd, 0)
        p_new = free_new - conjugate * p
        live = live & (i < max_iterations)
        w, g, p = (jnp.where(live, new, old) for new, old in ((w_new, w), (g_new, g), (p_new, p)))
        return _Descent(i + 1, w, g, p, _squared_gap(w, g) > target)

    def body(state: _Descent) -> _Descent:
        for _ in range(steps):
            state = step_all(state)
        return state

    w = start
    g = jnp.matmul(w, G, precision="highest") - N
    end = jax.lax.while_loop(
        lambda state: (state.i < max_iterations) & jnp.any(state.live),
        body,
        _Descent(jnp.asarray(0), w, g, _split(w, g)[0], _squared_gap(w, g) > target),
    )
    return NNLSResult(end.w, ~end.live[:, 0])


def _exceeds(
    G: Float[Array, "k k"], N: Float[Array, "n k"], W: Float[Array, "n k"], tolerance: Scalar
) -> Bool[Array, " n"]:
    """Test which rows' projected gradient exceeds ``tolerance`` × ‖n‖."""
    gap = _squared_gap(W, jnp.matmul(W, G, precision="highest") - N)
    return (gap > tolerance**2 * jnp.sum(N * N, axis=1, keepdims=True))[:, 0]


def _squared_gap(w: Array, g: Array) -> Float[Array, "n 1"]:
    """Compute the squared norm of each row's projected gradient; it is zero at the minimum."""
    free, chopped = _split(w, g)
    return jnp.sum(free * free + chopped * chopped, axis=1, keepdims=True)


def _split(w: Array, g: Array) -> tuple[Array, Array]:
    """Split the gradient: the free part, where w may move, and the part that would lift a weight off zero."""
    return jnp.where(w > 0, g, 0), jnp.where(w > 0, 0, jnp.minimum(g, 0))
