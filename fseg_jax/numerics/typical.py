"""Which tokens are most typical of each cluster: those that are its own, among others that are its own.

Shares are whole numbers of 255, so that sums are exact and do not depend on their order.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, UInt8, UInt16

WHOLE = 255  # the share of a token that is one cluster's alone
_SAMPLES = 3  # tokens that are looked at on each side of a token


@jax.jit
def find_leaders(
    W: Float[Array, "b p q k"],
) -> tuple[UInt16[Array, "b h w"], UInt8[Array, "b h w"]]:
    """Find the cluster that contributes most to each token, and its share of all contributions.

    The frame of one token on each side is left out, ``h = p − 2``. Clusters are 1…k, or 0 where none
    contributes; shares are of ``WHOLE``.
    """
    W = W[:, 1:-1, 1:-1]
    most, total = jnp.max(W, axis=-1), jnp.sum(W, axis=-1)
    label = jnp.where(most > 0, jnp.argmax(W, axis=-1) + 1, 0)
    share = WHOLE * most / jnp.maximum(total, jnp.finfo(W.dtype).tiny)
    return label.astype(jnp.uint16), jnp.round(share).astype(jnp.uint8)


def score_typical(
    labels: UInt16[np.ndarray, "p q"], shares: UInt8[np.ndarray, "p q"], radius: int
) -> Int32[np.ndarray, "h w"]:
    """Score how far each token and those round it are its cluster's: 0 to ``WHOLE``, as sums of samples.

    The score is the mean share of the token's cluster over a square of ``2·radius + 1`` tokens, of which at
    most seven by seven are sampled; a token of another cluster counts 0. The frame of ``radius`` tokens on
    each side is left out, ``h = p − 2·radius``.
    """
    height, width = (size - 2 * radius for size in labels.shape)
    step = max(1, -(-radius // _SAMPLES))
    offsets = range(-(radius // step) * step, radius + 1, step)
    centre = labels[radius : radius + height, radius : radius + width]
    score = np.zeros((height, width), np.int32)
    for dy in offsets:
        for dx in offsets:
            box = np.s_[radius + dy : radius + dy + height, radius + dx : radius + dx + width]
            score += np.where(labels[box] == centre, shares[box], 0)
    return np.where(centre > 0, score // len(offsets) ** 2, 0).astype(np.int32)
