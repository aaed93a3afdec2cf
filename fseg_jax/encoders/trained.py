"""Encoders that ``fseg pretrain`` trained: one file with the weights and the card.

One of them, ``he-small``, comes with the program. An encoder is a trunk (a ResNet) and, where its gains say
so, the classical encoder, whose channels follow the trunk's. Self-supervision teaches a trunk to ignore the
amount of stain, which tells tissues of one slide apart. The parts are scaled so that clusters depend on both.
"""

import hashlib
import json
import math
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fseg_jax.encoders.classical import classical, encode_stains
from fseg_jax.encoders.encoder import Apply, EncoderCard, JaxEncoder, build_encoder, measure_deviation
from fseg_jax.encoders.precision import DTYPES, parse_dtype
from fseg_jax.encoders.resnet.network import ResNet
from fseg_jax.encoders.weights import weights_file
from fseg_jax.errors import InputError
from fseg_jax.files.kinds import describe_kind
from fseg_jax.numerics.arrays import Images


class Gains(NamedTuple):
    """The factors of the two parts of an encoder."""

    trunk: float = 1.0  # of the trunk's channels
    stains: float = 0.0  # of the classical encoder's channels; 0 leaves them out


class Parts(NamedTuple):
    """What an encoder of ``fseg pretrain`` is assembled from."""

    network: ResNet
    card: EncoderCard
    gains: Gains


# The encoders that come with the program, and their files.
SHIPPED = {"he-small": "he_small.safetensors"}


def assemble(network: ResNet, card: EncoderCard, gains: Gains, dtype: str = "float32") -> JaxEncoder:
    """Assemble the encoder of a trunk; the number of channels on its card is corrected.

    ``dtype`` is the precision of its products, for which the trunk was loaded.
    """
    trunk = build_encoder(network, card, dtype)
    channels = network.config.channels[-1] * network.config.expansion
    if gains.stains:
        channels += classical().card.channels
    apply = _scale_parts(trunk.apply, card.mean, card.std, gains)
    return JaxEncoder(replace(card, channels=channels), apply, trunk.weights)


def calibrate_gains(network: ResNet, card: EncoderCard, images: Images, stains: float) -> Gains:
    """Compute the gains that give the trunk's channels a total deviation of 1, and the stains' ``stains``.

    Deviations are over ``images``. Where ``stains`` is 0, the gains are those of a trunk alone.
    """
    if not stains:
        return Gains()
    trunk_deviation = measure_deviation(build_encoder(network, card), images)
    stain_deviation = measure_deviation(classical(), images)
    return Gains(1 / max(trunk_deviation, 1e-12), stains / max(stain_deviation, 1e-12))


def save_trained(
    path: Path,
    network: ResNet,
    card: EncoderCard,
    gains: Gains,
    *,
    dtype: str = "bfloat16",
) -> None:
    """Write a network and its card, whole or not at all; kernels are stored in ``dtype``."""
    facts = {
        "card": json.dumps({**card.to_json(), "weights_hash": ""}, ensure_ascii=False),
        "gains": json.dumps(gains._asdict()),
    }
    weights_file.write_network(
        path, network, network.config, name=card.name, dtype=DTYPES[dtype], facts=facts
    )


def load_trained(name: str | Path, *, dtype: str = "float32") -> JaxEncoder:
    """Load the encoder of a file, or one that comes with the program.

    Args:
        name: the file, or a name in ``SHIPPED``.
        dtype: ``float32``, ``tf32`` or ``bfloat16``, the precision of the operands of products.

    Raises:
        InputError: the file is not there, damaged, or not written by ``fseg pretrain``.
    """
    return assemble(*load_parts(name, dtype=dtype), dtype)


def load_parts(name: str | Path, *, dtype: str = "float32") -> Parts:
    """Load the parts of an encoder, with the arguments and the errors of ``load_trained``."""
    precision = parse_dtype(dtype)
    path = find_shipped(str(name)) if str(name).lower() in SHIPPED else Path(name)
    if not path.is_file():
        raise InputError(
            f"{path}: no such file: give one that fseg pretrain wrote, or {' or '.join(SHIPPED)}"
        )
    loaded = weights_file.load(path, dtype=precision)
    network = loaded.network
    if "card" not in loaded.metadata or not isinstance(network, ResNet):
        raise InputError(
            f"{path}: {describe_kind(path)}, not an encoder that fseg pretrain wrote: give a published one's "
            "name, and its file as --weights"
        )
    try:
        fields = {"stain_normalization": True, **json.loads(loaded.metadata["card"])}
        gains = Gains(**json.loads(loaded.metadata["gains"]))
        fault = _find_fault(fields, gains, network)
        if fault:
            raise InputError(f"{path}: its card says {fault}: make it again with fseg pretrain")
        card = EncoderCard.from_json(fields)
    except (LookupError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: its card is damaged: make it again with fseg pretrain") from error
    digest = hashlib.sha256(f"{loaded.metadata['sha256']} {loaded.metadata['gains']}".encode())
    return Parts(network, replace(card, weights_hash=digest.hexdigest()), gains)


def _find_fault(card: dict[str, Any], gains: Gains, network: ResNet) -> str:
    """Find the first fact on a card that cannot be true, in words; empty where there is none.

    ``card`` is as JSON has it. TypeError or LookupError where a fact is missing or of another type.
    """
    stride = 4 * 2 ** (len(network.config.depths) - 1)
    channels = network.config.channels[-1] * network.config.expansion
    channels += classical().card.channels if gains.stains else 0
    mean, std, tile = card["mean"], card["std"], card["tile"]
    checks = {
        f"the gains {tuple(gains)!r}": all(0 <= gain < math.inf for gain in gains) and gains.trunk > 0,
        f"layer {card['layer']!r}": card["layer"] == network.layers()[-1],
        f"{card['channels']!r} channels": type(card["channels"]) is int and card["channels"] == channels > 0,
        f"a stride of {card['stride']!r}": card["stride"] == stride,
        f"tiles of {tile!r} pixels": type(tile) is int and 0 < tile <= 8192,
        f"{card['mpp']!r} µm per pixel": 0 < card["mpp"] < math.inf,
        f"the mean {mean!r}": len(mean) == 3 and all(map(math.isfinite, mean)),
        f"the deviation {std!r}": len(std) == 3 and all(0 < value < math.inf for value in std),
        "a name, a licence or a citation that is no text": all(
            isinstance(card[name], str) for name in ("name", "licence", "citation")
        ),
    }
    return next((words[:120] for words, holds in checks.items() if not holds), "")


def find_shipped(name: str) -> Path:
    """Find the file of an encoder that comes with the program."""
    return Path(str(resources.files("fseg_jax.encoders") / SHIPPED[name.lower()]))


# jit knows a function that it has compiled by its identity: one function for each trunk and gains.
@cache
def _scale_parts(trunk: Apply, mean: tuple[float, ...], std: tuple[float, ...], gains: Gains) -> Apply:
    def apply(weights: Any, x: jax.Array) -> jax.Array:
        grid: jax.Array = gains.trunk * jax.nn.relu(trunk(weights, x))
        if not gains.stains:
            return grid
        pixels = x * jnp.asarray(std).reshape(1, 1, 1, 3) + jnp.asarray(mean).reshape(1, 1, 1, 3)
        return jnp.concatenate([grid, gains.stains * encode_stains(None, pixels)], axis=-1)

    return apply
