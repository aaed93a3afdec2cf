"""Linear probing of factorized concepts (F-SEG §3.5.1).

1. *Concept–category association*: per tile, the share of the pixels of concept m (those whose β_ij = m) that
   fall into category n.
2. *Thresholding*: where that share exceeds a threshold, (H_m, n) is a training pair.
3. *Training*: a multinomial logistic regression w on the pairs, features standardised, L2.
4. *Labels*: ŷ_ij = argmax_c w_c · H_{β_ij}.

A ≈ W·H fixes no scale of a row of H, so concepts are taken at unit length, as by the cosine of §3.2.1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from fseg_jax.errors import InputError
from fseg_jax.numerics.axes import normalize

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
_TOLERANCE = 1e-6  # of the largest gradient of the mean loss, float32
_MAX_ITERATIONS = 2000


class Pairs(NamedTuple):
    """Concepts with their categories: ``X (p, c)`` of unit length, ``y (p,)``, and how many of each."""

    X: Float[np.ndarray, "p c"]
    y: Int[np.ndarray, " p"]
    per_category: Int[np.ndarray, " n"]


class Probe(NamedTuple):
    """The classifier, w_c · (x − mean) / scale + b_c; a category that had no pair is not ``trained``."""

    w: Float[Array, "n c"]
    b: Float[Array, " n"]
    mean: Float[Array, " c"]
    scale: Float[Array, " c"]
    trained: Bool[np.ndarray, " n"]
    iterations: int
    converged: bool


def association(counts: Int[np.ndarray, "*batch m n"]) -> Float[np.ndarray, "*batch m n"]:
    """The share of a concept's annotated pixels that fall into each category; 0 for one that has none."""
    return counts / np.maximum(counts.sum(-1, keepdims=True), 1)


def check_threshold(threshold: float) -> None:
    """Raise InputError unless at most one category can exceed the threshold."""
    if not 0.5 <= threshold < 1:
        raise InputError(f"threshold {threshold}: choose one from 0.5 up to, but not, 1")


def pairs(H: Float[np.ndarray, "tiles m c"], counts: Int[np.ndarray, "tiles m n"], threshold: float) -> Pairs:
    """Record (H_m, n) wherever more than ``threshold`` of concept m's pixels fall into category n.

    ``H`` of every tile and the pixels ``counts`` of its concepts by category. The threshold is in [0.5, 1),
    so that one category at most exceeds it; a share equal to it does not.
    """
    check_threshold(threshold)
    share = association(counts)
    chosen = share.max(-1) > threshold
    y = share.argmax(-1)[chosen]
    return Pairs(normalize(H[chosen]), y, np.bincount(y, minlength=counts.shape[-1]))


def fit(
    X: Float[np.ndarray, "p c"],
    y: Int[np.ndarray, " p"],
    n: int,
    *,
    l2: float = 1.0,
    balanced: bool = False,
) -> Probe:
    """Fit a multinomial logistic regression to convergence, deterministically (scikit-learn's objective).

    Minimises Σ_p v_p · cross-entropy + l2/2 · ‖w‖² over w and the intercepts b, which are not penalised, on
    standardised features; v_p is 1, or with ``balanced`` p / (categories · pairs of the category). Categories
    without a pair are left out, and never predicted. Raises InputError where there is no pair at all.
    """
    if len(y) == 0:
        raise InputError("linear probing: no concept exceeds the threshold: choose a lower one")
    per_category = np.bincount(y, minlength=n)
    trained = per_category > 0
    mean, scale = X.mean(0), X.std(0)
    scale = np.where(scale > 0, scale, 1)
    weights = len(y) / (trained.sum() * np.maximum(per_category, 1)) if balanced else np.ones(n)
    # Padded to a power of two by pairs of no weight, so that not every number of pairs compiles anew.
    padding = (1 << (len(y) - 1).bit_length()) - len(y)
    w, b, iterations, gradient = _minimise(
        jnp.asarray(np.pad((X - mean) / scale, ((0, padding), (0, 0))), jnp.float32),
        jnp.asarray(np.pad(y, (0, padding)), jnp.int32),
        jnp.asarray(np.pad(weights[y], (0, padding)), jnp.float32),
        jnp.asarray(trained),
        jnp.float32(l2 / len(y)),
        jnp.float32(len(y)),
    )
    return Probe(
        w,
        b,
        jnp.asarray(mean, jnp.float32),
        jnp.asarray(scale, jnp.float32),
        trained,
        int(iterations),
        bool(gradient <= 10 * _TOLERANCE),
    )


@jax.jit
def _minimise(
    Z: Float[Array, "q c"],
    y: Int[Array, " q"],
    v: Float[Array, " q"],
    trained: Bool[Array, " n"],
    l2: Float[Array, ""],
    p: Float[Array, ""],
) -> tuple[Float[Array, "n c"], Float[Array, " n"], Int[Array, ""], Float[Array, ""]]:
    n = trained.shape[0]

    def loss(parameters: tuple) -> Array:
        w, b = parameters
        logits = jnp.matmul(Z, w.T, precision="highest") + jnp.where(trained, b, -jnp.inf)[None]
        entropy = jax.nn.logsumexp(logits, axis=1) - jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
        return jnp.sum(v * entropy) / p + l2 / 2 * jnp.sum(w * w)

    solver = optax.lbfgs()
    both = optax.value_and_grad_from_state(loss)

    def size(gradient: tuple) -> Array:
        return jnp.maximum(jnp.max(jnp.abs(gradient[0])), jnp.max(jnp.abs(gradient[1])))

    def body(state: tuple) -> tuple:
        parameters, inner, i, _, _ = state
        value, gradient = both(parameters, state=inner)
        updates, inner = solver.update(gradient, inner, parameters, value=value, grad=gradient, value_fn=loss)
        moved = optax.apply_updates(parameters, updates)
        # At the limit of float32 the line search finds no step down any more.
        stuck = (jnp.max(jnp.abs(updates[0])) == 0) & (jnp.max(jnp.abs(updates[1])) == 0)
        return moved, inner, i + 1, size(gradient), stuck

    start = (jnp.zeros((n, Z.shape[1]), Z.dtype), jnp.zeros(n, Z.dtype))
    state = (start, solver.init(start), jnp.asarray(0), jnp.asarray(jnp.inf, Z.dtype), jnp.asarray(False))
    (w, b), _, i, gradient, _ = jax.lax.while_loop(
        lambda s: (s[2] < _MAX_ITERATIONS) & (s[3] > _TOLERANCE) & ~s[4], body, state
    )
    return w, b, i, gradient


def classify(probe: Probe, H: Float[np.ndarray, "*batch m c"]) -> Int[np.ndarray, "*batch m"]:
    """The category of each concept, argmax_c w_c · H_m."""
    Z = (normalize(H) - np.asarray(probe.mean)) / np.asarray(probe.scale)
    logits = Z @ np.asarray(probe.w).T + np.asarray(probe.b)
    return np.where(probe.trained, logits, -np.inf).argmax(-1)
