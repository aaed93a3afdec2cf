"""A published checkpoint as a file of ours, whatever its family."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from fseg_jax.encoders.architectures import Config, build_abstract, fill_network, find_family, list_tensors
from fseg_jax.encoders.efficientnet import weights as efficientnet
from fseg_jax.encoders.layers import DType, Network
from fseg_jax.encoders.resnet import weights as resnet
from fseg_jax.encoders.swin import weights as swin
from fseg_jax.encoders.vit import weights as vit
from fseg_jax.encoders.vit.network import ViTConfig
from fseg_jax.encoders.weights import rules, weights_file
from fseg_jax.encoders.weights.checkpoint import hash_file, open_checkpoint

_LAYOUTS: Mapping[str, Any] = {
    "resnet": resnet.list_layouts,
    "vit": vit.list_layouts,
    "efficientnet": efficientnet.list_layouts,
    "swin": swin.list_layouts,
}


def convert_file(
    checkpoint: Path, out: Path, config: Config, *, name: str, dtype: DType = jnp.float32
) -> None:
    """Write a published checkpoint of an encoder as a file of ours, ready for ``weights_file.load``.

    The memory it takes is the largest tensor's, where the checkpoint can be read lazily. InputError where the
    checkpoint cannot be read, is not this encoder's, or the file cannot be written.
    """
    state = open_checkpoint(checkpoint)
    what = f"{checkpoint} for {name}"
    config = fit_position_grid(config, state)
    places = list_tensors(build_abstract(config, dtype=dtype))
    tensors = rules.convert_tensors(state, list_layouts(config), places, what=what)
    weights_file.write(out, config, places, tensors, name=name, source_sha256=hash_file(checkpoint))


def convert_to_network(
    state: Mapping[str, np.ndarray], config: Config, *, what: str, dtype: DType = jnp.float32
) -> Network:
    """The network of a configuration, filled from a publisher's tensors, without a file between."""
    config = fit_position_grid(config, state)
    empty = build_abstract(config, dtype=dtype)
    tensors: Iterator[tuple[str, np.ndarray]] = rules.convert_tensors(
        state, list_layouts(config), list_tensors(empty), what=what
    )
    return fill_network(empty, tensors, what=what)


def list_layouts(config: Config) -> Sequence[rules.Layout]:
    """The checkpoint layouts known for a configuration's family."""
    return _LAYOUTS[find_family(config)](config)


def fit_position_grid(config: Config, state: Mapping[str, np.ndarray]) -> Config:
    """The configuration with the position grid that the checkpoint itself holds: publishers store a ViT's at
    one image size and run it at another.
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
