"""What an encoder is: images in, a grid of non-negative features out, and the facts that a result states."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from fseg_jax.encoders.frames import declare_sizes
from fseg_jax.encoders.kernels.products import trace_products
from fseg_jax.encoders.layers import Network
from fseg_jax.numerics.arrays import Array, Features, Images

Apply = Callable[[Any, Array], Array]
"""A pure function of an encoder's weights and its normalised images."""


@dataclass(frozen=True)
class EncoderCard:
    """The facts about an encoder that every output states.

    Attributes:
        name: the encoder's name.
        layer: the layer of its network that is read.
        channels: channels of its features.
        stride: pixels a token.
        tile: side in pixels of the images that it is fed unless told otherwise.
        mpp: µm per pixel that it is used at.
        mean: mean of the images, of RGB in 0 … 1.
        std: standard deviation of the images, of RGB in 0 … 1.
        licence: licence of the weights.
        citation: the publication to cite.
        weights_hash: SHA-256 of the weights, or of the definition of an encoder without weights.
        stain_normalization: whether the slides of a cohort get the colours of a standard stain first, unless
            told otherwise.
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
    stain_normalization: bool = False

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "EncoderCard":
        """Make a card of the JSON that ``to_json`` gave; LookupError or TypeError where it is none."""
        return cls(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})

    def to_json(self) -> dict[str, Any]:
        """Give the card as JSON has it."""
        return asdict(self)


@runtime_checkable
class Encoder(Protocol):
    """Anything that has a card and turns images into non-negative features.

    Images are ``uint8 (B, H, W, 3)``, H and W multiples of the stride. Features are ``float (B, h, w, c)``
    with ``h = H / stride`` and ``w = W / stride``.
    """

    @property
    def card(self) -> EncoderCard:
        """The facts about the encoder."""
        ...

    def __call__(self, images: Images) -> Features:
        """Encode a batch of images."""
        ...


@dataclass(frozen=True, eq=False)
class JaxEncoder:
    """An encoder given by a pure function of weights and normalised images, compiled once a shape.

    Attributes:
        card: the facts about the encoder.
        apply: ``apply(weights, x)`` takes ``x = (image / 255 − mean) / std``, float32 ``(B, H, W, 3)``, and
            returns features ``(B, h, w, c)``. Negative values are set to zero after it (F-SEG §3.3).
        weights: the first argument of ``apply``, a tree of arrays.
    """

    card: EncoderCard
    apply: Callable[[Any, Float[Array, "b H W 3"]], Float[Array, "b h w c"]]
    weights: Any

    def __call__(self, images: Images) -> Features:
        """Encode a batch of images."""
        features: Array = _encode(self.apply, self.weights, self.card.mean, self.card.std, images)
        return features


def encode_framed(encoder: Encoder, images: Images, sizes: Int[Any, "b 2"]) -> Features:
    """Encode images of many sizes, each in the corner of a frame of one shape, with one program.

    The features of an image are those that it has alone, up to rounding; features beyond it mean nothing. An
    encoder that is no ``JaxEncoder`` of our networks sees the edges that are replicated into the frame, and
    its features near them depend on that.

    Args:
        encoder: any encoder.
        images: ``(b, H, W, 3)``, an image in the top left corner of each frame, edges replicated beyond it.
        sizes: ``(b, 2)``, rows and columns of the images in pixels, multiples of the stride.
    """
    if isinstance(encoder, JaxEncoder):
        card = encoder.card
        features: Array = _encode(encoder.apply, encoder.weights, card.mean, card.std, images, sizes)
        return features
    return encoder(images)


def measure_deviation(encoder: Encoder, images: Images) -> float:
    """Measure the total deviation of an encoder's features over all tokens of some images."""
    return float(jnp.sqrt(jnp.sum(jnp.var(encoder(images), (0, 1, 2)))))


def build_encoder(network: Network, card: EncoderCard, dtype: str = "float32") -> JaxEncoder:
    """Build the encoder that reads a network at the layer of the card.

    ``dtype`` is the precision of its products (``precision.py``), for which the network was loaded.
    """
    graphdef, state = nnx.split(network)
    leaves, structure = jax.tree.flatten(state)
    # Flat leaves: a call passes them on in a third of the time that a tree of them takes.
    return JaxEncoder(card, _read_layer(graphdef, structure, card.layer, dtype), tuple(leaves))


# jit knows a function that it has compiled by its identity: one function for each network, layer and
# precision, however often the encoder is loaded.
@cache
def _read_layer(graphdef: Any, structure: Any, layer: str, dtype: str) -> Apply:
    def grid(leaves: tuple[Array, ...], x: Array) -> Array:
        network = cast(Network, nnx.merge(graphdef, jax.tree.unflatten(structure, leaves)))
        with trace_products(dtype):
            return network.grid(x, layer)

    return grid


@partial(jax.jit, static_argnames=("apply", "mean", "std"))
def _encode(
    apply: Apply,
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
