"""Networks from their configurations, without a random weight, and what fills them."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fseg_jax.encoders.efficientnet.network import EfficientNet, EfficientNetConfig
from fseg_jax.encoders.layers import DType, Network
from fseg_jax.encoders.resnet.network import ResNet, ResNetConfig
from fseg_jax.encoders.swin.network import Swin, SwinConfig
from fseg_jax.encoders.vit.network import AttentionPoolConfig, ViT, ViTConfig
from fseg_jax.errors import InputError

Config = ResNetConfig | ViTConfig | EfficientNetConfig | SwinConfig

_FAMILIES: dict[str, tuple[type, type]] = {
    "resnet": (ResNetConfig, ResNet),
    "vit": (ViTConfig, ViT),
    "efficientnet": (EfficientNetConfig, EfficientNet),
    "swin": (SwinConfig, Swin),
}


def find_family(config: Config) -> str:
    """The name of a configuration's family: ``resnet``, ``vit``, ``efficientnet`` or ``swin``."""
    return next(name for name, (kind, _) in _FAMILIES.items() if isinstance(config, kind))


def config_to_json(config: Config) -> str:
    """A configuration as JSON, from which ``described`` makes it again."""
    return json.dumps({"family": find_family(config), **asdict(config)}, sort_keys=True)


def config_from_json(text: str) -> Config:
    """The configuration of a description; ValueError, KeyError or TypeError for one that is not."""
    fields = {name: _frozen(value) for name, value in json.loads(text).items()}
    for name, value in fields.items():
        _check_size(name, value)
    kind, _ = _FAMILIES[fields.pop("family")]
    if fields.get("pool"):
        fields["pool"] = AttentionPoolConfig(**fields["pool"])
    return kind(**fields)


def count_blocks(config: Config) -> int:
    """How many blocks a configuration's network has."""
    if isinstance(config, EfficientNetConfig):
        return sum(math.ceil(stage[0] * config.depth) for stage in config.stages)
    return config.depth if isinstance(config, ViTConfig) else sum(config.depths)


def build_network(config: Config, *, dtype: DType = jnp.float32, seed: int = 0) -> Network:
    """A network with random weights, set to evaluate: call ``train()`` on it to train."""
    built = _FAMILIES[find_family(config)][1](config, dtype=dtype, rngs=nnx.Rngs(seed))
    built.eval()
    return built


def build_abstract(config: Config, *, dtype: DType = jnp.float32) -> Network:
    """A network of shapes and dtypes, which takes no memory: ``fill`` it before use."""
    return nnx.eval_shape(lambda: build_network(config, dtype=dtype))


def list_tensors(abstract_network: Network) -> dict[str, jax.ShapeDtypeStruct]:
    """The shape and dtype of each tensor by its dotted path, as the converted file names it."""
    return {name: variable.get_value() for name, variable in _variables(abstract_network)}


def count_parameters(abstract_network: Network) -> int:
    """How many numbers training would move: running statistics are not among them."""
    parameters = jax.tree.leaves(nnx.state(abstract_network, nnx.Param))
    return sum(int(np.prod(parameter.shape)) for parameter in parameters)


def fill_network(
    abstract_network: Network, tensors: Mapping[str, Any] | Iterable[tuple[str, Any]], *, what: str
) -> Network:
    """The network with its tensors in place: a bijection, or an InputError that says what does not fit.

    ``tensors`` are by dotted path and may come one at a time, so that no second copy of the whole ever
    exists; each is cast to the dtype of its place. ``what`` is what the messages call the source.
    """
    graphdef, state = nnx.split(abstract_network)
    places = dict(_variables(abstract_network))
    filled: dict[str, jax.Array] = {}
    for name, tensor in tensors.items() if isinstance(tensors, Mapping) else tensors:
        if name not in places or name in filled:
            raise InputError(f"{what}: holds {name}, which the network has no place for: convert it again")
        wanted = places[name].get_value()
        if tuple(tensor.shape) != wanted.shape:
            raise InputError(
                f"{what}: {name} is {tuple(tensor.shape)} and should be {wanted.shape}: convert it again"
            )
        filled[name] = jnp.asarray(tensor, dtype=wanted.dtype)
    if missing := [name for name in places if name not in filled]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(f"{what}: lacks {', '.join(missing[:3])}{more}: convert it again")
    flat = {path: variable.replace(filled[_dotted(path)]) for path, variable in nnx.to_flat_state(state)}
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def _variables(module: Network) -> list[tuple[str, Any]]:
    return [(_dotted(path), variable) for path, variable in nnx.to_flat_state(nnx.state(module))]


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def _check_size(name: str, value: Any) -> None:
    """Raise ``ValueError`` for a number that no network is described by: building one would take forever."""
    if isinstance(value, tuple):
        if len(value) > 64:
            raise ValueError(f"{name}: too many")
        for item in value:
            _check_size(name, item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_size(key, item)
    elif isinstance(value, int | float) and not 0 <= value <= (64 if name == "window" else 1_000_000):
        raise ValueError(f"{name}: {value}")


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
