"""Networks from their configurations, without a random weight, and what fills them."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fseg_jax.encoders.efficientnet import EfficientNet, EfficientNetConfig
from fseg_jax.encoders.layers import DType, Network
from fseg_jax.encoders.resnet import ResNet, ResNetConfig
from fseg_jax.encoders.swin import Swin, SwinConfig
from fseg_jax.encoders.vit import ViT, ViTConfig
from fseg_jax.errors import InputError

Config = ResNetConfig | ViTConfig | EfficientNetConfig | SwinConfig

_NETWORKS: dict[type, Any] = {
    ResNetConfig: ResNet,
    ViTConfig: ViT,
    EfficientNetConfig: EfficientNet,
    SwinConfig: Swin,
}


def network(config: Config, *, dtype: DType = jnp.float32, seed: int = 0) -> Network:
    """A network with random weights, set to evaluate: call ``train()`` on it to train."""
    built = _NETWORKS[type(config)](config, dtype=dtype, rngs=nnx.Rngs(seed))
    built.eval()
    return built


def abstract(config: Config, *, dtype: DType = jnp.float32) -> Network:
    """A network of shapes and dtypes, which takes no memory: ``fill`` it before use."""
    return nnx.eval_shape(lambda: network(config, dtype=dtype))


def targets(abstract_network: Network) -> dict[str, jax.ShapeDtypeStruct]:
    """The shape and dtype of each tensor by its dotted path, as the converted file names it."""
    return {name: variable.get_value() for name, variable in _variables(abstract_network)}


def parameter_count(abstract_network: Network) -> int:
    """How many numbers the network holds, running statistics included."""
    return sum(int(np.prod(target.shape)) for target in targets(abstract_network).values())


def fill(
    abstract_network: Network, tensors: Mapping[str, Any] | Iterable[tuple[str, Any]], *, what: str
) -> Network:
    """The network with its tensors in place: a bijection, or an InputError that says what does not fit.

    ``tensors`` are by dotted path and may come one at a time, so that no second copy of the whole ever exists; each
    is cast to the dtype of its place. ``what`` is what the messages call the source.
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
