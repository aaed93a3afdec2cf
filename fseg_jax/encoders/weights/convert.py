"""From a published checkpoint to a file of ours, or to a network in memory, whatever its family."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from fseg_jax.encoders import weight_rules as rules
from fseg_jax.encoders.architectures import (
    AnyConfig,
    Config,
    Family,
    build_abstract,
    fill_network,
    find_family,
    list_tensors,
)
from fseg_jax.encoders.efficientnet import weights as efficientnet
from fseg_jax.encoders.layers import Network
from fseg_jax.encoders.resnet import weights as resnet
from fseg_jax.encoders.swin import weights as swin
from fseg_jax.encoders.text import weights as text
from fseg_jax.encoders.text.network import TextConfig, TextTower
from fseg_jax.encoders.vit import weights as vit
from fseg_jax.encoders.vit.network import ViTConfig
from fseg_jax.encoders.weights import weights_file
from fseg_jax.encoders.weights.checkpoint import hash_file, open_checkpoint

# The layouts of a family's checkpoints, by its configuration.
_LAYOUTS: Mapping[Family, Callable[[Any], Sequence[rules.Layout]]] = {
    "resnet": resnet.list_layouts,
    "vit": vit.list_layouts,
    "efficientnet": efficientnet.list_layouts,
    "swin": swin.list_layouts,
    "text": text.list_layouts,
}


def convert_file(
    checkpoint: Path, out: Path, config: AnyConfig, *, name: str, dtype: DTypeLike = jnp.float32
) -> None:
    """Convert a published checkpoint to a file of ours, which ``weights_file.load`` reads.

    It takes the memory of the largest tensor, where the checkpoint can be read lazily.

    Raises:
        InputError: the checkpoint cannot be read or is not this encoder's, or the file cannot be written.
    """
    state = open_checkpoint(checkpoint)
    label = f"{checkpoint} for {name}"
    config = fit_position_grid(config, state)
    targets = list_tensors(build_abstract(config, dtype=dtype))
    tensors = rules.convert_tensors(state, list_layouts(config), targets, label=label)
    weights_file.write(out, config, targets, tensors, name=name, source_sha256=hash_file(checkpoint))


@overload
def convert_to_network(
    state: Mapping[str, np.ndarray], config: Config, *, label: str, dtype: DTypeLike = ...
) -> Network: ...
@overload
def convert_to_network(
    state: Mapping[str, np.ndarray], config: TextConfig, *, label: str, dtype: DTypeLike = ...
) -> TextTower: ...


def convert_to_network(
    state: Mapping[str, np.ndarray], config: AnyConfig, *, label: str, dtype: DTypeLike = jnp.float32
) -> Network | TextTower:
    """Build the network of a configuration with a publisher's tensors, without a file between.

    ``label`` is the name of the tensors' source in messages.
    """
    config = fit_position_grid(config, state)
    abstract = build_abstract(config, dtype=dtype)
    tensors = rules.convert_tensors(state, list_layouts(config), list_tensors(abstract), label=label)
    return fill_network(abstract, tensors, label=label)


def list_layouts(config: AnyConfig) -> Sequence[rules.Layout]:
    """List the checkpoint layouts that are known for a configuration's family."""
    return _LAYOUTS[find_family(config)](config)


def fit_position_grid(config: AnyConfig, state: Mapping[str, np.ndarray]) -> AnyConfig:
    """Fit a ViT's configuration to the grid of the position embedding in its checkpoint.

    Publishers store the embedding for one image size and run the network at another. Other configurations
    are returned as they are.
    """
    if not isinstance(config, ViTConfig):
        return config
    table = next((state[key] for key in state if vit.is_position_embedding(key)), None)
    if table is None or table.ndim != 3:
        return config
    entries = table.shape[1]
    for prefix in (config.prefix if config.embed_prefix else 0, int(config.class_token)):
        side = math.isqrt(max(entries - prefix, 0))
        if side and side * side == entries - prefix:
            return dataclasses.replace(config, image_size=side * config.patch)
    return config
