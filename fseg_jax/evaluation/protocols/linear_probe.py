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

_TOLERANCE = 1e-6  # of the largest gradient of the mean loss, float32
_MAX_ITERATIONS = 2000


class Pairs(NamedTuple):
    """Concepts with their categories."""

    X: Float[np.ndarray, "p c"]  # concepts, of unit length
    y: Int[np.ndarray, " p"]  # their categories
    per_category: Int[np.ndarray, " n"]  # how many pairs each category has


class Probe(NamedTuple):
    """The classifier w_c · (x − mean) / scale + b_c."""

    w: Float[Array, "n c"]
    b: Float[Array, " n"]
    mean: Float[Array, " c"]
    scale: Float[Array, " c"]
    trained: Bool[np.ndarray, " n"]  # categories that had a pair
    iterations: int
    converged: bool


def associate(counts: Int[np.ndarray, "*batch m n"]) -> Float[np.ndarray, "*batch m n"]:
    """Compute the share of each concept's annotated pixels in each category; 0 for a concept without any."""
    return np.asarray(counts / np.maximum(counts.sum(-1, keepdims=True), 1))


def check_threshold(threshold: float) -> None:
    """Raise ``InputError`` unless at most one category can exceed the threshold."""
    if not 0.5 <= threshold < 1:
        raise InputError(f"threshold {threshold}: choose one from 0.5 up to, but not, 1")


def collect_pairs(
    H: Float[np.ndarray, "tiles m c"], counts: Int[np.ndarray, "tiles m n"], threshold: float
) -> Pairs:
    """Record (H_m, n) wherever more than ``threshold`` of concept m's pixels fall into category n.

    A share equal to the threshold is not enough.

    Args:
        H: The concepts of every tile.
        counts: Their pixels by category.
        threshold: A share in [0.5, 1), so that one category at most exceeds it.
    """
    check_threshold(threshold)
    share = associate(counts)
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
    standardised features. Categories without a pair are left out, and never predicted.

    Args:
        X: Concepts, of unit length.
        y: Their categories.
        n: How many categories there are.
        l2: Weight of the penalty.
        balanced: Whether v_p is p / (categories · pairs of the category), and not 1.

    Raises:
        InputError: There is no pair at all.
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


def classify(probe: Probe, H: Float[np.ndarray, "*batch m c"]) -> Int[np.ndarray, "*batch m"]:
    """Predict the category of each concept, argmax_c w_c · H_m."""
    Z = (normalize(H) - np.asarray(probe.mean)) / np.asarray(probe.scale)
    logits = Z @ np.asarray(probe.w).T + np.asarray(probe.b)
    return np.asarray(np.where(probe.trained, logits, -np.inf).argmax(-1))


_Parameters = tuple[Float[Array, "n c"], Float[Array, " n"]]  # w and b


class _State(NamedTuple):
    """The optimiser's loop."""

    parameters: _Parameters
    solver: optax.OptState
    iteration: Int[Array, ""]
    gradient: Float[Array, ""]  # its largest entry
    stuck: Bool[Array, ""]  # whether the last step moved nothing


@jax.jit
def _minimise(
    Z: Float[Array, "q c"],
    y: Int[Array, " q"],
    v: Float[Array, " q"],
    trained: Bool[Array, " n"],
    l2: Float[Array, ""],
    p: Float[Array, ""],
) -> tuple[Float[Array, "n c"], Float[Array, " n"], Int[Array, ""], Float[Array, ""]]:
    """Minimise the objective by L-BFGS: w, b, iterations, and the largest entry of the gradient."""
    n = trained.shape[0]

    def loss(parameters: _Parameters) -> Float[Array, ""]:
        w, b = parameters
        logits = jnp.matmul(Z, w.T, precision="highest") + jnp.where(trained, b, -jnp.inf)[None]
        entropy = jax.nn.logsumexp(logits, axis=1) - jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
        return jnp.sum(v * entropy) / p + l2 / 2 * jnp.sum(w * w)

    optimiser = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def largest(parameters: _Parameters) -> Float[Array, ""]:
        w, b = parameters
        return jnp.maximum(jnp.max(jnp.abs(w)), jnp.max(jnp.abs(b)))

    def step(state: _State) -> _State:
        value, gradient = value_and_grad(state.parameters, state=state.solver)
        updates, solver = optimiser.update(
            gradient, state.solver, state.parameters, value=value, grad=gradient, value_fn=loss
        )
        # At the limit of float32 the line search finds no step down any more.
        stuck = largest(updates) == 0
        parameters = optax.apply_updates(state.parameters, updates)
        return _State(parameters, solver, state.iteration + 1, largest(gradient), stuck)

    def goes_on(state: _State) -> Bool[Array, ""]:
        return (state.iteration < _MAX_ITERATIONS) & (state.gradient > _TOLERANCE) & ~state.stuck

    start = (jnp.zeros((n, Z.shape[1]), Z.dtype), jnp.zeros(n, Z.dtype))
    first = _State(
        start, optimiser.init(start), jnp.asarray(0), jnp.asarray(jnp.inf, Z.dtype), jnp.asarray(False)
    )
    last = jax.lax.while_loop(goes_on, step, first)
    w, b = last.parameters
    return w, b, last.iteration, last.gradient
