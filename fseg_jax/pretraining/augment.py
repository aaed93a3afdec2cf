"""Vary images as staining, scanners and focus do, in JAX.

Stain is varied in optical density, in which it is linear (Beer–Lambert). The amounts of haematoxylin, eosin
and the rest are scaled and shifted (Tellez et al. 2019, HED jitter), the stains' colours are changed a
little, and each colour channel is shifted, as a white balance does. No colours arise that stains do not make.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Key

from fseg_jax.encoders import classical
from fseg_jax.numerics.arrays import Array


class Strength(NamedTuple):
    """How much images are varied.

    Attributes:
        amount: Standard deviation of the logarithm of each stain's factor.
        shift: Standard deviation of each stain's shift in optical density.
        colour: Standard deviation of the components of each stain's colour.
        balance: Standard deviation of each colour channel's shift in optical density.
        blur: Probability that an image is blurred.
        grey: Probability that an image is made grey.
    """

    amount: float = 0.25
    shift: float = 0.03
    colour: float = 0.05
    balance: float = 0.03
    blur: float = 0.3
    grey: float = 0.05


BASIS = classical.BASIS.astype(np.float32)
_UNMIX = np.linalg.inv(BASIS).astype(np.float32)


def augment(
    planes: Float[Array, "b 3 H W"],
    key: Key[Array, ""],
    strength: Strength = Strength(),  # noqa: B008
) -> Float[Array, "b 3 H W"]:
    """Vary each image independently: from its channels R, G and B, 0…255, to theirs in 0…1.

    Channels are planes of their own, and mixed as sums: products of three are slow on every device.
    """
    b = planes.shape[0]
    amount, shift, colour, balance, softness, blur, grey = jax.random.split(key, 7)
    factors = jnp.exp(strength.amount * jax.random.normal(amount, (b, 1, 3)))
    basis = BASIS[None] + strength.colour * jax.random.normal(colour, (b, 3, 3))
    basis = basis / jnp.linalg.norm(basis, axis=-1, keepdims=True)
    # One affine map: density · _UNMIX are the amounts; they are scaled, mixed by the new colours and shifted.
    mix = jnp.matmul(_UNMIX[None] * factors, basis, precision="highest")
    offset = jnp.matmul(strength.shift * jax.random.normal(shift, (b, 1, 3)), basis, precision="highest")
    offset = offset + strength.balance * jax.random.normal(balance, (b, 1, 3))
    # Grey is the mean of the three, and so is its map.
    is_grey = jax.random.uniform(grey, (b, 1, 1)) < strength.grey
    mix, offset = (jnp.where(is_grey, part.mean(-1, keepdims=True), part) for part in (mix, offset))
    density = -jnp.log((planes + 1) / 256)
    mixed = [
        sum(
            (density[:, c] * mix[:, c, d].reshape(b, 1, 1) for c in range(3)),
            start=offset[:, 0, d].reshape(b, 1, 1),
        )
        for d in range(3)
    ]
    x = jnp.clip(jnp.exp(-jnp.stack(mixed, 1)), 0, 1)
    is_blurred = jax.random.uniform(blur, (b, 1, 1, 1)) < strength.blur
    weight = is_blurred * jax.random.uniform(softness, (b, 1, 1, 1))
    return x + weight * (_blur(x) - x)


def _blur(x: Float[Array, "b 3 H W"]) -> Float[Array, "b 3 H W"]:
    """Blur by the binomial window (1 4 6 4 1) / 16 along both sides (σ = 1 pixel), edges replicated."""
    for axis in (2, 3):
        padding = [(0, 0)] * 4
        padding[axis] = (2, 2)
        padded, n = jnp.pad(x, padding, mode="edge"), x.shape[axis]
        parts = [jax.lax.slice_in_dim(padded, i, i + n, axis=axis) for i in range(5)]
        x = (parts[0] + 4 * parts[1] + 6 * parts[2] + 4 * parts[3] + parts[4]) / 16
    return x
