"""What an encoder is: images in, a grid of non-negative features out, and the facts a result must state
about it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Float

from fseg_jax.arrays import Array, Features, Images


@dataclass(frozen=True)
class EncoderCard:
    """The facts about an encoder, which every output states.

    ``stride`` is pixels a token, ``tile`` the side in pixels it is fed unless told otherwise, ``mpp`` the
    resolution in µm per pixel it is used at, ``weights_hash`` the SHA-256 of its weights (of its definition,
    for one without weights).
    """

    name: str
    layer: str
    channels: int
    stride: int
    tile: int
    mpp: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    licence: str
    citation: str
    weights_hash: str


@runtime_checkable
class Encoder(Protocol):
    """Anything that turns ``uint8 (B, H, W, 3)`` into non-negative ``float (B, h, w, c)`` and says what it
    is.

    H and W are multiples of the stride; ``h = H / stride``.
    """

    @property
    def card(self) -> EncoderCard: ...

    def __call__(self, images: Images) -> Features: ...


@dataclass(frozen=True, eq=False)
class JaxEncoder:
    """An encoder given by a pure function of its weights and normalised images, compiled once a shape.

    ``apply(weights, x)`` takes ``x = (image / 255 − mean) / std``, float32 ``(B, H, W, 3)``, and returns the
    feature map ``(B, h, w, c)``; negative values are set to zero after it (F-SEG §3.3).
    """

    card: EncoderCard
    apply: Callable[[Any, Float[Array, "b H W 3"]], Float[Array, "b h w c"]]
    weights: Any

    def __call__(self, images: Images) -> Features:
        return _encode(self.apply, self.weights, self.card.mean, self.card.std, images)


@partial(jax.jit, static_argnames=("apply", "mean", "std"))
def _encode(
    apply: Callable, weights: Any, mean: tuple[float, ...], std: tuple[float, ...], images: Images
) -> Features:
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    shift = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    x = images.astype(jnp.float32) * scale.reshape(1, 1, 1, 3) - shift.reshape(1, 1, 1, 3)
    return jax.nn.relu(apply(weights, x))
