"""From a configuration to a network, and from tensors to a network with weights."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Literal, TypeVar, cast, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from fseg_jax.encoders.efficientnet.network import EfficientNet, EfficientNetConfig
from fseg_jax.encoders.layers import Network
from fseg_jax.encoders.resnet.network import ResNet, ResNetConfig
from fseg_jax.encoders.swin.network import Swin, SwinConfig
from fseg_jax.encoders.text.network import TextConfig, TextTower
from fseg_jax.encoders.vit.network import AttentionPoolConfig, ViT, ViTConfig
from fseg_jax.encoders.vit.rotary import RotaryConfig
from fseg_jax.errors import InputError

Config = ResNetConfig | ViTConfig | EfficientNetConfig | SwinConfig
AnyConfig = Config | TextConfig
Family = Literal["resnet", "vit", "efficientnet", "swin", "text"]
Module = TypeVar("Module", bound=nnx.Module)

_MAX_ITEMS = 64  # of a list in a configuration
_MAX_WINDOW = 64  # tokens a side
_MAX_NUMBER = 1_000_000  # for any other number of a configuration

_FAMILIES: dict[Family, tuple[type, type]] = {
    "resnet": (ResNetConfig, ResNet),
    "vit": (ViTConfig, ViT),
    "efficientnet": (EfficientNetConfig, EfficientNet),
    "swin": (SwinConfig, Swin),
    "text": (TextConfig, TextTower),
}


def find_family(config: AnyConfig) -> Family:
    """Find the name of a configuration's family."""
    return next(name for name, (kind, _) in _FAMILIES.items() if isinstance(config, kind))


def config_to_json(config: AnyConfig) -> str:
    """Write a configuration as JSON, which ``config_from_json`` reads."""
    return json.dumps({"family": find_family(config), **asdict(config)}, sort_keys=True)


def config_from_json(text: str) -> AnyConfig:
    """Read a configuration from JSON; ValueError, KeyError or TypeError where it is none."""
    fields = {name: _freeze(value) for name, value in json.loads(text).items()}
    for name, value in fields.items():
        _check_size(name, value)
    kind, _ = _FAMILIES[fields.pop("family")]
    for name, kind_of_part in (("pool", AttentionPoolConfig), ("rotary", RotaryConfig)):
        if fields.get(name):
            fields[name] = kind_of_part(**fields[name])
    return cast(AnyConfig, kind(**fields))


def count_blocks(config: AnyConfig) -> int:
    """Count the blocks of a configuration's network."""
    if isinstance(config, EfficientNetConfig):
        return sum(config.repeats())
    return config.depth if isinstance(config, ViTConfig | TextConfig) else sum(config.depths)


@overload
def build_network(config: Config, *, dtype: DTypeLike = ..., seed: int = ...) -> Network: ...
@overload
def build_network(config: TextConfig, *, dtype: DTypeLike = ..., seed: int = ...) -> TextTower: ...


def build_network(config: AnyConfig, *, dtype: DTypeLike = jnp.float32, seed: int = 0) -> Network | TextTower:
    """Build a network with random weights, set to evaluate; call its ``train()`` to train it."""
    network: Any = _FAMILIES[find_family(config)][1](config, dtype=dtype, rngs=nnx.Rngs(seed))
    network.eval()
    return cast(Network | TextTower, network)


@overload
def build_abstract(config: Config, *, dtype: DTypeLike = ...) -> Network: ...
@overload
def build_abstract(config: TextConfig, *, dtype: DTypeLike = ...) -> TextTower: ...


def build_abstract(config: AnyConfig, *, dtype: DTypeLike = jnp.float32) -> Network | TextTower:
    """Build a network of shapes and dtypes, which takes no memory; ``fill_network`` makes it usable."""
    return nnx.eval_shape(lambda: build_network(config, dtype=dtype))


def list_tensors(abstract_network: nnx.Module) -> dict[str, jax.ShapeDtypeStruct]:
    """List the shape and dtype of each tensor by its dotted path, the name that it has in our files."""
    return {name: variable.get_value() for name, variable in _variables(abstract_network)}


def count_parameters(abstract_network: nnx.Module) -> int:
    """Count the numbers that training would move; running statistics are not among them."""
    parameters = jax.tree.leaves(nnx.state(abstract_network, nnx.Param))
    return sum(int(np.prod(parameter.shape)) for parameter in parameters)


def fill_network(
    abstract_network: Module, tensors: Mapping[str, Any] | Iterable[tuple[str, Any]], *, label: str
) -> Module:
    """Put tensors in the places of a network that ``build_abstract`` made.

    Args:
        abstract_network: the network, of shapes and dtypes.
        tensors: arrays by dotted path. They may come one at a time, so that there is never a second copy of
            the whole. Each is cast to the dtype of its place.
        label: the name of the tensors' source in messages.

    Raises:
        InputError: a tensor has no place, a place no tensor, or a shape differs.
    """
    graphdef, state = nnx.split(abstract_network)
    places = dict(_variables(abstract_network))
    filled: dict[str, jax.Array] = {}
    for name, tensor in tensors.items() if isinstance(tensors, Mapping) else tensors:
        if name not in places or name in filled:
            raise InputError(f"{label}: holds {name}, which the network has no place for: convert it again")
        place = places[name].get_value()
        if tuple(tensor.shape) != place.shape:
            raise InputError(
                f"{label}: {name} is {tuple(tensor.shape)} and should be {place.shape}: convert it again"
            )
        filled[name] = jnp.asarray(tensor, dtype=place.dtype)
    if missing := [name for name in places if name not in filled]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(f"{label}: lacks {', '.join(missing[:3])}{more}: convert it again")
    flat = {path: variable.replace(filled[_dotted(path)]) for path, variable in nnx.to_flat_state(state)}
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def _variables(module: nnx.Module) -> list[tuple[str, Any]]:
    return [(_dotted(path), variable) for path, variable in nnx.to_flat_state(nnx.state(module))]


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def _check_size(name: str, value: Any) -> None:
    """Raise ``ValueError`` for a number that no network has: to build such a one would take forever."""
    if isinstance(value, tuple):
        if len(value) > _MAX_ITEMS:
            raise ValueError(f"{name}: too many")
        for item in value:
            _check_size(name, item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_size(key, item)
    elif isinstance(value, int | float):
        largest = _MAX_WINDOW if name == "window" else _MAX_NUMBER
        if 0 <= value <= largest:
            return
        raise ValueError(f"{name}: {value}")


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, list) else value
