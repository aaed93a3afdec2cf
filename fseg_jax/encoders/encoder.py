"""What an encoder is: images in, a grid of non-negative features out, and the facts a result must state
about it.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from fseg_jax.encoders.frames import declare_sizes
from fseg_jax.numerics.arrays import Array, Features, Images


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

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> "EncoderCard":
        """A card as JSON kept it; LookupError or TypeError for what is none."""
        return cls(**{**said, "mean": tuple(said["mean"]), "std": tuple(said["std"])})


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


def encode_framed(encoder: Encoder, images: Images, sizes: Int[Any, "b 2"]) -> Features:
    """Encode images of many sizes in arrays of one shape, with one program.

    ``images (b, H, W, 3)`` hold each image in the top left corner, edges replicated beyond; ``sizes (b, 2)``
    are its rows and columns in pixels, multiples of the stride. What is in its part of ``(b, h, w, c)`` is
    what the image alone would give, but for rounding; what is beyond means nothing. Of an encoder that is no
    ``JaxEncoder`` of our networks, features near the replicated edges depend on them.
    """
    if isinstance(encoder, JaxEncoder):
        card = encoder.card
        return _encode(encoder.apply, encoder.weights, card.mean, card.std, images, sizes)
    return encoder(images)


def build_encoder(network: nnx.Module, card: EncoderCard) -> JaxEncoder:
    """The encoder that reads a network's grid at the layer of the card."""
    graphdef, state = nnx.split(network)
    leaves, structure = jax.tree.flatten(state)
    # Flat leaves: a call passes them on in a third of the time that a tree of them takes.
    return JaxEncoder(card, _apply(graphdef, structure, card.layer), tuple(leaves))


# One function for each network and layer, however often it is loaded: jit knows a function it has compiled by
# its identity.
@cache
def _apply(graphdef: Any, structure: Any, layer: str) -> Callable:
    def grid(leaves, x):
        return nnx.merge(graphdef, jax.tree.unflatten(structure, leaves)).grid(x, layer)

    return grid


@partial(jax.jit, static_argnames=("apply", "mean", "std"))
def _encode(
    apply: Callable,
    weights: Any,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    images: Images,
    sizes: Int[Array, "b 2"] | None = None,
) -> Features:
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    shift = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    x = images.astype(jnp.float32) * scale.reshape(1, 1, 1, 3) - shift.reshape(1, 1, 1, 3)
    with nullcontext() if sizes is None else declare_sizes(sizes, *images.shape[1:3]):
        return jax.nn.relu(apply(weights, x))
