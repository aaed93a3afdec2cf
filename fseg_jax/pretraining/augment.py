"""What staining, scanners and focus change between two views of the same tissue, in JAX.

Stain is varied in optical density, where Beer and Lambert make it linear: the amounts of haematoxylin, eosin
and the rest are scaled and shifted (Tellez et al. 2019, HED jitter), the stains' own colours are bent a
little, and each colour channel is shifted, as a white balance does. Colours that no stain makes do not occur.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Key

from fseg_jax.encoders import classical
from fseg_jax.numerics.arrays import Array, Images


class Strength(NamedTuple):
    """How much varies: standard deviations of logarithms and of optical density, and probabilities."""

    amount: float = 0.25  # of each stain, as a factor
    shift: float = 0.03  # of each stain, in optical density
    colour: float = 0.05  # of each stain's colour
    balance: float = 0.03  # of each colour channel, in optical density
    blur: float = 0.3
    grey: float = 0.05


BASIS = classical.BASIS.astype(np.float32)
_UNMIX = np.linalg.inv(BASIS).astype(np.float32)


def augment(images: Images, key: Key[Array, ""], strength: Strength = Strength()) -> Float[Array, "b H W 3"]:  # noqa: B008
    """Vary images, each by draws of its own: float32 in 0 … 1."""
    b = images.shape[0]
    amount, shift, colour, balance, soft, blurred, grey = jax.random.split(key, 7)
    density = -jnp.log((images.astype(jnp.float32) + 1) / 256)
    factors = jnp.exp(strength.amount * jax.random.normal(amount, (b, 1, 3)))
    bent = BASIS[None] + strength.colour * jax.random.normal(colour, (b, 3, 3))
    bent = bent / jnp.linalg.norm(bent, axis=-1, keepdims=True)
    # density · UNMIX are the amounts; scaled, shifted and mixed again by the bent colours: one affine map.
    mix = (_UNMIX[None] * factors) @ bent
    offset = strength.shift * jax.random.normal(shift, (b, 1, 3)) @ bent
    offset = offset + strength.balance * jax.random.normal(balance, (b, 1, 3))
    density = jnp.einsum("bhwc,bcd->bhwd", density, mix) + offset[:, None]
    is_grey = (jax.random.uniform(grey, (b, 1, 1, 1)) < strength.grey).astype(jnp.float32)
    density = density + is_grey * (density.mean(-1, keepdims=True) - density)
    x = jnp.clip(jnp.exp(-density), 0, 1)
    wanted = jax.random.uniform(blurred, (b, 1, 1, 1)) < strength.blur
    weight = wanted * jax.random.uniform(soft, (b, 1, 1, 1))
    return x + weight * (_blur(x) - x)


def _blur(x: Float[Array, "b H W 3"]) -> Float[Array, "b H W 3"]:
    """The binomial window (1 4 6 4 1) / 16 along both sides, edges replicated: σ = 1 pixel."""
    for axis in (1, 2):
        padding = [(0, 0)] * 4
        padding[axis] = (2, 2)
        padded, n = jnp.pad(x, padding, mode="edge"), x.shape[axis]
        parts = [jax.lax.slice_in_dim(padded, i, i + n, axis=axis) for i in range(5)]
        x = (parts[0] + 4 * parts[1] + 6 * parts[2] + 4 * parts[3] + parts[4]) / 16
    return x
