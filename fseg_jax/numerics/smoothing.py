"""Edge-aware smoothing of W: an average over neighbouring tokens that are alike.

A bilateral filter (Tomasi & Manduchi 1998) on the token grid. A neighbour counts by its distance, as in a
Gaussian, and by how alike its tissue is: by the angle between what W·H says of both. So W becomes even within
a tissue, and stays as it is across the border of two. Two passes take out what one leaves.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

PASSES = 2
_REACH = 2  # standard deviations to each side that are averaged over
_TOLERANCE = 0.05  # of the median over pairs of centres
_DIMENSIONS = 32  # of the centres, the largest: as many take a quarter of the time of 256
_SMALLEST_TOLERANCE = 1e-4  # where all centres are one: above float32's rounding


class Likeness(NamedTuple):
    """How alike two tokens are, told from their W.

    Attributes:
        root: the centres H in the few dimensions that tell them apart: root·rootᵀ ≈ H·Hᵀ.
        tolerance: 1 − the cosine of two tokens' W·H at which one counts 1/e for the other.
    """

    root: Float[Array, "k r"]
    tolerance: Float[Array, ""]


def measure_likeness(centers: Float[np.ndarray, "k c"]) -> Likeness:
    """Measure how alike tokens of these centres must be to be averaged.

    The tolerance is a twentieth of the median, over the pairs of centres, of 1 − their cosine: it follows the
    encoder, whose features may all lie within a few degrees.
    """
    H = centers.astype(np.float64)
    U, S, _ = np.linalg.svd(H, full_matrices=False)
    unit = H / np.maximum(np.linalg.norm(H, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    pairs = 1 - (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    tolerance = max(_TOLERANCE * float(np.median(pairs)), _SMALLEST_TOLERANCE) if len(pairs) else 1.0
    return Likeness(jnp.asarray((U * S)[:, :_DIMENSIONS], jnp.float32), jnp.float32(tolerance))


def choose_radius(sigma: float, most: int) -> int:
    """Choose how many tokens to each side one pass averages over; 0: nothing is smoothed."""
    return min(math.ceil(_REACH * sigma), most)


@partial(jax.jit, static_argnames="radius")
def smooth(
    W: Float[Array, "b p q k"],
    weight: Float[Array, "b p q"],
    likeness: Likeness,
    sigma: Float[Array, ""] | float,
    radius: int,
) -> Float[Array, "b h w k"]:
    """Average W twice over the tokens round each token that are like it.

    The frame of ``radius`` tokens a pass on each side is left out of the result, ``h = p − 2·PASSES·radius``.
    A token without W is like any other, and counts for none. Where nothing counts the result is 0.

    Args:
        W: contributions.
        weight: how much each token counts, ≥ 0.
        likeness: of the centres that W is of.
        sigma: standard deviation of the Gaussian of distances, in tokens.
        radius: tokens on each side that one pass averages over.
    """
    Z = jnp.einsum("bpqk,kr->bpqr", W, likeness.root, precision=jax.lax.Precision.HIGHEST)
    norm = jnp.linalg.norm(Z, axis=-1, keepdims=True)
    has_weight = norm > 0
    Z = jnp.where(has_weight, Z / jnp.where(has_weight, norm, 1), 0)
    weight = weight * has_weight[..., 0]
    for _ in range(PASSES):
        W = _average(W, weight, Z, likeness.tolerance, sigma, radius)
        inner = np.s_[:, radius : radius + W.shape[1], radius : radius + W.shape[2]]
        weight, Z = weight[inner], Z[inner]
    return W


def _average(
    W: Float[Array, "b p q k"],
    weight: Float[Array, "b p q"],
    Z: Float[Array, "b p q r"],
    tolerance: Float[Array, ""],
    sigma: Float[Array, ""] | float,
    radius: int,
) -> Float[Array, "b h w k"]:
    """Average W once; a neighbour counts by its weight, its distance and the cosine of the tokens' Z."""
    b, p, q, k = W.shape
    h, w = p - 2 * radius, q - 2 * radius
    center = Z[:, radius : radius + h, radius : radius + w]
    is_empty = ~jnp.any(center, axis=-1)

    def add(
        i: Array, sums: tuple[Float[Array, "b h w k"], Float[Array, "b h w"]]
    ) -> tuple[Float[Array, "b h w k"], Float[Array, "b h w"]]:
        y, x = i // (2 * radius + 1), i % (2 * radius + 1)

        def shift(values: Array) -> Array:
            rows: Array = jax.lax.dynamic_slice_in_dim(values, y, h, axis=1)
            shifted: Array = jax.lax.dynamic_slice_in_dim(rows, x, w, axis=2)
            return shifted

        away = jnp.where(is_empty, 0, 1 - jnp.sum(shift(Z) * center, axis=-1))
        squared = ((y - radius) ** 2 + (x - radius) ** 2).astype(W.dtype)
        share = shift(weight) * jnp.exp(-jnp.maximum(away, 0) / tolerance - squared / (2 * sigma**2))
        return sums[0] + share[..., None] * shift(W), sums[1] + share

    sums = (jnp.zeros((b, h, w, k), W.dtype), jnp.zeros((b, h, w), W.dtype))
    total, count = jax.lax.fori_loop(0, (2 * radius + 1) ** 2, add, sums)
    average: Array = total / jnp.maximum(count, jnp.finfo(W.dtype).tiny)[..., None]
    return average
