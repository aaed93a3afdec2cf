"""Encoders that ``fseg pretrain`` made: one file that holds the weights and says all about them.

One of them, ``he-small``, comes with the program. Beside a trunk's channels stand, where it was made so,
those of the classical encoder: self-supervision teaches a trunk to overlook how much of a stain there is,
which tells tissues of one slide apart. Each part is scaled, so that clusters heed both.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from fseg_jax.encoders.architectures import build_abstract, list_tensors
from fseg_jax.encoders.classical import classical
from fseg_jax.encoders.classical import encode_stains as stain_features
from fseg_jax.encoders.encoder import EncoderCard, JaxEncoder, build_encoder
from fseg_jax.encoders.precision import DTYPES, parse_dtype
from fseg_jax.encoders.resnet.network import ResNet
from fseg_jax.encoders.weights import weights_file
from fseg_jax.errors import InputError
from fseg_jax.files.kinds import kind_of
from fseg_jax.numerics.arrays import Images


class Gains(NamedTuple):
    """What the trunk's channels and the classical encoder's are multiplied with; 0 leaves those out."""

    trunk: float = 1.0
    stains: float = 0.0


SHIPPED = {"he-small": "he_small.safetensors"}


def assemble(network: ResNet, card: EncoderCard, gains: Gains) -> JaxEncoder:
    """The encoder of a trunk whose card says what it is called and reads; the channels follow."""
    trunk = build_encoder(network, card)
    channels = network.config.channels[-1] * network.config.expansion
    if gains.stains:
        channels += classical().card.channels
    apply = _scaled(trunk.apply, card.mean, card.std, gains)
    return JaxEncoder(replace(card, channels=channels), apply, trunk.weights)


def calibrate_gains(network: ResNet, card: EncoderCard, images: Images, stains: float) -> Gains:
    """The gains that give the trunk's channels a total deviation of 1 over images, and the stains' one of
    ``stains``; those of a trunk alone where that is 0.
    """
    if not stains:
        return Gains()
    deviations = (
        float(jnp.sqrt(jnp.sum(jnp.var(encoder(images), (0, 1, 2)))))
        for encoder in (build_encoder(network, card), classical())
    )
    of_trunk, of_stains = deviations
    return Gains(1 / max(of_trunk, 1e-12), stains / max(of_stains, 1e-12))


def save_trained(
    path: Path,
    network: ResNet,
    card: EncoderCard,
    gains: Gains,
    *,
    dtype: str = "bfloat16",
) -> None:
    """Write a network and its card, whole or not at all; ``dtype`` is what the kernels are stored in."""
    tensors = dict(_tensors(network))
    places = list_tensors(build_abstract(network.config, dtype=DTYPES[dtype]))
    ordered = ((name, np.asarray(tensors[name]).astype(place.dtype)) for name, place in places.items())
    facts = {
        "card": json.dumps({**asdict(card), "weights_hash": ""}, ensure_ascii=False),
        "gains": json.dumps(gains._asdict()),
    }
    weights_file.write(path, network.config, places, ordered, name=card.name, source_sha256="", facts=facts)


def load_trained(name: str | Path, *, dtype: str = "float32") -> JaxEncoder:
    """The encoder of a file, or one that comes with the program; ``dtype`` is of its products' operands.

    Raises ``InputError`` for a file that is not there, damaged, or not written by ``fseg pretrain``.
    """
    precision = parse_dtype(dtype)
    path = find_shipped(str(name)) if str(name).lower() in SHIPPED else Path(name)
    loaded = weights_file.load(path, dtype=precision)
    network = loaded.network
    if "card" not in loaded.metadata or not isinstance(network, ResNet):
        raise InputError(
            f"{path}: {kind_of(path)}, not an encoder that fseg pretrain wrote: give a published one's name, "
            "and its file as --weights"
        )
    try:
        said = json.loads(loaded.metadata["card"])
        gains = Gains(**json.loads(loaded.metadata["gains"]))
        wrong = _wrong_in(said, gains, network)
        if wrong:
            raise InputError(f"{path}: its card says {wrong}: make it again with fseg pretrain")
        card = EncoderCard.from_json(said)
    except (LookupError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: its card is damaged: make it again with fseg pretrain") from error
    made = hashlib.sha256(f"{loaded.metadata['sha256']} {loaded.metadata['gains']}".encode()).hexdigest()
    return assemble(network, replace(card, weights_hash=made), gains)


def _wrong_in(card: dict[str, Any], gains: Gains, network: ResNet) -> str:
    """What of a card, as JSON has it, cannot be, in words; empty where all can. ``TypeError`` or
    ``LookupError`` where a fact is missing or of another kind.
    """
    stride = 4 * 2 ** (len(network.config.depths) - 1)
    channels = network.config.channels[-1] * network.config.expansion
    channels += classical().card.channels if gains.stains else 0
    mean, std, tile = card["mean"], card["std"], card["tile"]
    said = {
        f"the gains {tuple(gains)!r}": all(0 <= one < math.inf for one in gains) and gains.trunk > 0,
        f"layer {card['layer']!r}": card["layer"] == network.layers()[-1],
        f"{card['channels']!r} channels": type(card["channels"]) is int and card["channels"] == channels > 0,
        f"a stride of {card['stride']!r}": card["stride"] == stride,
        f"tiles of {tile!r} pixels": type(tile) is int and 0 < tile <= 8192,
        f"{card['mpp']!r} µm per pixel": 0 < card["mpp"] < math.inf,
        f"the mean {mean!r}": len(mean) == 3 and all(map(math.isfinite, mean)),
        f"the deviation {std!r}": len(std) == 3 and all(0 < one < math.inf for one in std),
        "a name, a licence or a citation that is no text": all(
            isinstance(card[name], str) for name in ("name", "licence", "citation")
        ),
    }
    return next((words[:120] for words, holds in said.items() if not holds), "")


def find_shipped(name: str) -> Path:
    """Where the file of an encoder that comes with the program lies."""
    return Path(str(resources.files("fseg_jax.encoders") / SHIPPED[name.lower()]))


# One function for each trunk and gains: jit knows a function it has compiled by its identity.
@cache
def _scaled(
    trunk: Callable, mean: tuple[float, ...], std: tuple[float, ...], gains: Gains
) -> Callable[[Any, Float[jax.Array, "b H W 3"]], Float[jax.Array, "b h w c"]]:
    def apply(weights, x):
        grid = gains.trunk * jax.nn.relu(trunk(weights, x))
        if not gains.stains:
            return grid
        pixels = x * jnp.asarray(std).reshape(1, 1, 1, 3) + jnp.asarray(mean).reshape(1, 1, 1, 3)
        return jnp.concatenate([grid, gains.stains * stain_features(None, pixels)], axis=-1)

    return apply


def _tensors(network: ResNet) -> Iterator[tuple[str, np.ndarray]]:
    for path, variable in nnx.to_flat_state(nnx.state(network)):
        yield ".".join(map(str, path)), np.asarray(variable.get_value())
