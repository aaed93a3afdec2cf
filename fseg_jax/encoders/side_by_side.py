"""Several encoders side by side, as one: ``he-small+efficientnet-lite0``.

Features are non-negative, so those of several encoders of one image, laid beside each other, are features
again. An encoder of large numbers would decide alone: each is scaled so that its features have a total
deviation of one on an image of tissue that comes with scikit-image. Where tokens differ in size, the smaller
ones are averaged over the largest. ``benchmarks/clean_features.py`` has measured this and what else was
tried.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from fseg_jax.encoders.encoder import Apply, EncoderCard, JaxEncoder, measure_deviation
from fseg_jax.errors import InputError
from fseg_jax.files.images import load_image

SIGN = "+"  # between the encoders' names
VERSION = 2  # raised whenever the features of an image change


class _Part(NamedTuple):
    """What is compiled of an encoder."""

    apply: Apply
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pooled: int  # its tokens a side of a token of all


def join_encoders(encoders: Sequence[JaxEncoder]) -> JaxEncoder:
    """Join encoders to one whose features are theirs, side by side in their order.

    Args:
        encoders: two or more, of one resolution. The largest stride is a multiple of each.

    Raises:
        InputError: one is there twice, or their resolutions or strides do not fit.
    """
    cards = [encoder.card for encoder in encoders]
    name = SIGN.join(card.name for card in cards)
    stride = max(card.stride for card in cards)
    for card in cards:
        if [other.name for other in cards].count(card.name) > 1:
            raise InputError(f"the encoder {name}: {card.name!r} is in it twice; name it once")
        if stride % card.stride:
            raise InputError(
                f"the encoder {name}: {card.name!r} has {card.stride} pixels a token, which do not divide "
                f"{stride}; join encoders whose tokens are of one size, or a multiple"
            )
        if card.mpp != cards[0].mpp:
            raise InputError(
                f"the encoder {name}: {card.name!r} is used at {card.mpp:g} µm per pixel, "
                f"{cards[0].name!r} at {cards[0].mpp:g}; join encoders of one resolution"
            )
    tissue = _read_tissue()
    identity = [
        VERSION,
        hashlib.sha256(tissue.tobytes()).hexdigest(),
        *((card.name, card.layer, card.weights_hash) for card in cards),
    ]
    known = all(card.weights_hash for card in cards)
    card = EncoderCard(
        name=name,
        layer=SIGN.join(card.layer for card in cards),
        channels=sum(card.channels for card in cards),
        stride=stride,
        tile=max(stride, min(card.tile for card in cards) // stride * stride),
        mpp=cards[0].mpp,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        licence="; ".join(dict.fromkeys(card.licence for card in cards)),
        citation="; ".join(dict.fromkeys(card.citation for card in cards)),
        weights_hash=hashlib.sha256(json.dumps(identity).encode()).hexdigest() if known else "",
        stain_normalization=any(card.stain_normalization for card in cards),
    )
    parts = tuple(
        _Part(encoder.apply, encoder.card.mean, encoder.card.std, stride // encoder.card.stride)
        for encoder in encoders
    )
    scaled = tuple((encoder.weights, _compute_gain(encoder, tissue)) for encoder in encoders)
    return JaxEncoder(card, _join_parts(parts), scaled)


def _read_tissue() -> UInt8[np.ndarray, "512 512 3"]:
    """Read the image of colon that comes with scikit-image."""
    with resources.as_file(resources.files("skimage.data") / "ihc.png") as path:
        return np.asarray(load_image(path).convert("RGB"))


def _compute_gain(encoder: JaxEncoder, tissue: UInt8[np.ndarray, "h w 3"]) -> np.float32:
    """Compute the factor that gives an encoder's features a total deviation of one on the tissue."""
    side = min(encoder.card.tile, *tissue.shape[:2]) // encoder.card.stride * encoder.card.stride
    rows, columns = (length // side for length in tissue.shape[:2])
    cut = tissue[: rows * side, : columns * side].reshape(rows, side, columns, side, 3).swapaxes(1, 2)
    deviation = measure_deviation(encoder, jnp.asarray(cut.reshape(-1, side, side, 3)))
    return np.float32(1 / max(deviation, 1e-6))


# jit knows a function that it has compiled by its identity: one function for each choice of encoders.
@cache
def _join_parts(parts: tuple[_Part, ...]) -> Apply:
    def apply(weights: Any, x: Array) -> Array:
        grids = [_encode_part(part, own, x) for part, own in zip(parts, weights, strict=True)]
        return jnp.concatenate(grids, axis=-1)

    return apply


def _encode_part(part: _Part, weights: Any, x: Float[Array, "b H W 3"]) -> Float[Array, "b h w c"]:
    mean, std = (jnp.asarray(values, jnp.float32).reshape(1, 1, 1, 3) for values in (part.mean, part.std))
    own, gain = weights
    grid = jax.nn.relu(part.apply(own, (x - mean) / std))
    b, h, w, c = grid.shape
    side = part.pooled
    pooled: Array = grid.reshape(b, h // side, side, w // side, side, c).mean((2, 4))
    scaled: Array = pooled * gain
    return scaled
