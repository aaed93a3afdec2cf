"""Non-negative least squares, one small problem a token, all with one Gram matrix G: min ½ w·G·w − n·w over
w ≥ 0.

A token has few positive weights, whatever the number of concepts: five to ten of 64, up to twenty of 256.
``active_set`` makes use of it. It is Lawson & Hanson's method (Solving Least Squares Problems, 1974, §23.3)
for many tokens in step: each keeps the inverse of its own few rows and columns of G in a fixed number of
slots, and a step takes one weight in or out. ``conjugate_gradients`` needs no slots and bears a singular G;
it finishes what the first leaves.

G has a unit diagonal (a zero concept's row is zero), and N is of ordinary size (``scaling.safe_scale``), as
``nmf`` makes them. Tokens lie along the last axis of the active set's
arrays, so that all its small sums run over whole vectors.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fseg_jax.numerics.axes import find_first
from fseg_jax.numerics.packing import recompute_rows

Scalar = float | Float[Array, ""]

# A concept of which less than this is outside the span of those in use: its weight would be rounding.
DEPENDENT = 1e-6


class Rung(NamedTuple):
    """How many slots tokens have for how many steps, and what share of the tokens goes on to it at a time."""

    slots: int
    steps: int
    share: float


# Few slots and steps first, for all tokens; who is not done goes on, packed together, with more. Of a real
# slide's tokens a quarter does at k = 64 and three fifths at k = 256, and to the third rung 0.4 and 3 %.
RUNGS = (Rung(8, 8, 1.0), Rung(14, 8, 1 / 8), Rung(24, 96, 1 / 2))


class Slots(NamedTuple):
    """Where tokens stand: ``w`` feasible, ``z`` the minimiser over the slots in ``use``, ``inverse`` that of
    G's rows and columns ``concept`` there, zero elsewhere; ``live`` where a step is still to be made.
    """

    w: Float[Array, "s n"]
    z: Float[Array, "s n"]
    inverse: Float[Array, "s s n"]
    concept: Int[Array, "s n"]
    use: Bool[Array, "s n"]
    live: Bool[Array, "1 n"]


def active_set(G: Float[Array, "k k"], N: Float[Array, "n k"], tolerance: Scalar) -> Float[Array, "n k"]:
    """Minimise ½ w·G·w − n·w over w ≥ 0 for every row n of N, until no gradient that would lift a weight off
    zero exceeds ``tolerance`` × ‖n‖.

    Rows that want more positive weights than the last of ``RUNGS`` has slots, or a concept that depends on
    those in use, are left where they stand: ``unfinished`` finds them.
    """
    N = N.T
    floor = tolerance * jnp.sqrt(jnp.sum(N * N, 0, keepdims=True))
    return _climb(G, N, floor, _nothing(N.shape[1], N.dtype), RUNGS).T


def _climb(
    G: Float[Array, "k k"],
    N: Float[Array, "k n"],
    floor: Float[Array, "1 n"],
    began: Slots,
    rungs: Sequence[Rung],
) -> Float[Array, "k n"]:
    """The weights after the first rung's steps, and after those of the next for tokens that are not done."""
    k, (rung, *higher) = len(G), rungs
    at = _steps(G, N, floor, _widened(began, min(rung.slots, k)), rung.steps)
    W = _spread(at.w, at.concept, k)
    if not higher:
        return W
    full = jnp.all(at.use, 0, keepdims=True) & (rung.slots < k)
    rest = at.live | full

    def on(columns: Int[Array, " m"]) -> Array:
        picked = Slots(*(x[..., columns] for x in at))._replace(live=rest[:, columns])
        return _climb(G, N[:, columns], floor[:, columns], picked, higher).T

    return recompute_rows(on, rest[0], W.T, share=higher[0].share).T


def _widened(slots: Slots, count: int) -> Slots:
    w, z, inverse, concept, use, live = slots
    free = ((0, count - len(w)), (0, 0))
    w, z, concept, use = (jnp.pad(x, free) for x in (w, z, concept, use))
    return Slots(w, z, jnp.pad(inverse, (free[0], *free)), concept, use, live)


def _nothing(n: int, dtype: jnp.dtype) -> Slots:
    zero = jnp.zeros((0, n), dtype)
    inverse = jnp.zeros((0, 0, n), dtype)
    return Slots(zero, zero, inverse, zero.astype(jnp.int32), zero.astype(bool), jnp.ones((1, n), bool))


def _spread(w: Float[Array, "s n"], concept: Int[Array, "s n"], k: int) -> Float[Array, "k n"]:
    """The weights in their concepts' places; slots that are not in use hold zeros."""
    tokens = jnp.arange(w.shape[1])[None]
    return jnp.zeros((k, w.shape[1]), w.dtype).at[concept, tokens].add(w, mode="promise_in_bounds")


def _steps(
    G: Float[Array, "k k"], N: Float[Array, "k n"], floor: Float[Array, "1 n"], slots: Slots, limit: int
) -> Slots:
    """At most ``limit`` steps of Lawson & Hanson, a weight in or out in each."""
    k, count = len(G), len(slots.w)
    row = jnp.arange(count)[:, None]
    tiny = jnp.finfo(N.dtype).tiny

    def total(x: Array) -> Array:
        return jnp.sum(x, 0, keepdims=True)

    def body(state: tuple) -> tuple:
        i, (w, z, inverse, concept, use, live) = state
        # Out: z leaves the orthant. w goes towards it until its first weight is zero, which is taken out.
        beyond = use & (z <= 0)
        out = jnp.any(beyond, 0, keepdims=True)
        share = jnp.where(beyond, w / jnp.maximum(w - z, tiny), 2)
        most = jnp.min(share, 0, keepdims=True)
        leaving = row == find_first(share == most, 0)
        w = jnp.where(out, jnp.where(live, jnp.maximum(w + most * (z - w), 0), w), z)
        # In: w is z, and the weight with the steepest gradient is taken in.
        W = _spread(w, concept, k)
        gradient = jnp.where(W > 0, -jnp.inf, N - jnp.matmul(G, W, precision="highest"))
        steepest = jnp.max(gradient, 0, keepdims=True)
        new = jnp.minimum(find_first(gradient == steepest, 0), k - 1)
        slot = find_first(~use, 0)
        entering = row == slot
        # What a slot in or out does to the inverse is of rank one, along the vector v.
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
        gone, come = leaving & out & go, entering & ~out & go
        kept = (~gone).astype(N.dtype)
        inverse = (inverse + (scale * v)[:, None] * v[None]) * (kept[:, None] * kept[None])
        z = (z + jnp.where(go, scale * away, 0) * v) * kept
        use = (use & ~gone) | come
        return i + 1, Slots(jnp.where(use, w, 0), z, inverse, jnp.where(come, new, concept), use, go)

    return jax.lax.while_loop(lambda state: (state[0] < limit) & jnp.any(state[1].live), body, (0, slots))[1]


def conjugate_gradients(
    G: Float[Array, "k k"],
    N: Float[Array, "n k"],
    tolerance: Scalar,
    max_iterations: int,
    start: Float[Array, "n k"],
) -> tuple[Float[Array, "n k"], Bool[Array, " n"]]:
    """Minimise ½ w·G·w − n·w over w ≥ 0 for every row n of N, all rows at once and each at its own pace; and
    say which rows are left unfinished.

    Conjugate gradients on the face of the positive weights with projected expansion (Dostál's MPRGP with the
    projected step of Kružík et al. 2020), until the projected gradient falls under ``tolerance`` × ‖n‖.
    """

    def dot(a: Array, b: Array) -> Array:
        return jnp.sum(a * b, axis=1, keepdims=True)

    step = 1.0 / jnp.maximum(jnp.max(jnp.sum(jnp.abs(G), axis=1)), 1e-30)  # 1 / ‖G‖∞ ≤ 1 / ‖G‖₂
    epsilon = jnp.finfo(N.dtype)
    target = tolerance**2 * dot(N, N)

    def body(state: tuple) -> tuple:
        i, w, g, p, live = state
        free, chopped = _split(w, g)
        # Proportional: more is to be gained on the face than by leaving it.
        on_face = dot(chopped, chopped) <= dot(jnp.minimum(free, w / step), free)
        d = jnp.where(on_face, p, chopped)
        Gd = jnp.matmul(d, G, precision="highest")
        # Along concepts that are all but equal dᵀ·G·d is rounding, of either sign: it is kept off zero.
        dGd = jnp.maximum(dot(d, Gd), epsilon.eps * dot(d, d) + epsilon.tiny)
        alpha = dot(g, d) / dGd
        moved = w - alpha * d
        # A step that leaves the orthant is projected back, which frees or fixes many weights at once.
        inside = jnp.all(moved >= 0, axis=1, keepdims=True)
        w_new = jnp.maximum(moved, 0)
        g_new = jnp.matmul(w_new, G, precision="highest") - N
        free_new, _ = _split(w_new, g_new)
        conjugate = jnp.where(on_face & inside, dot(free_new, Gd) / dGd, 0)
        p_new = free_new - conjugate * p
        w, g, p = (jnp.where(live, new, old) for new, old in ((w_new, w), (g_new, g), (p_new, p)))
        return i + 1, w, g, p, _gap(w, g) > target

    w = start
    g = jnp.matmul(w, G, precision="highest") - N
    _, w, _, _, live = jax.lax.while_loop(
        lambda state: (state[0] < max_iterations) & jnp.any(state[4]),
        body,
        (0, w, g, _split(w, g)[0], _gap(w, g) > target),
    )
    return w, live[:, 0]


def unfinished(
    G: Float[Array, "k k"], N: Float[Array, "n k"], W: Float[Array, "n k"], tolerance: Scalar
) -> Bool[Array, " n"]:
    """Rows whose projected gradient exceeds ``tolerance`` × ‖n‖."""
    gap = _gap(W, jnp.matmul(W, G, precision="highest") - N)
    return (gap > tolerance**2 * jnp.sum(N * N, axis=1, keepdims=True))[:, 0]


def _gap(w: Array, g: Array) -> Float[Array, "n 1"]:
    """The squared norm of each row's projected gradient, zero at its minimum."""
    free, chopped = _split(w, g)
    return jnp.sum(free * free + chopped * chopped, axis=1, keepdims=True)


def _split(w: Array, g: Array) -> tuple[Array, Array]:
    """The free gradient, where w may move, and the chopped one, which would lift a weight off zero."""
    return jnp.where(w > 0, g, 0), jnp.where(w > 0, 0, jnp.minimum(g, 0))
