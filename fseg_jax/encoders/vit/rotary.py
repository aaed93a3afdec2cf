"""Rotary positions in two dimensions, as DINOv3 has them: q and k of a patch are turned by where it lies.

Rows and columns run from −1 to 1 over each image whatever its size, at the middles of patches. The first half
of a head's channels is turned against the second, by ``2π · coordinate / period``: half of these pairs by the
row, the others by the column. Periods grow geometrically from 1 to below the base. Prefix tokens keep still.
"""

from dataclasses import dataclass
from math import pi
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from fseg_jax.encoders.frames import get_grid_sizes


@dataclass(frozen=True)
class RotaryConfig:
    """The configuration of rotary positions.

    Attributes:
        base: the base of the geometric periods.
        rounded: the dtype that angles, q and k are rounded to at every step, as the network was trained.
    """

    base: float = 100.0
    rounded: Literal["float32", "bfloat16"] = "float32"


class Turn(NamedTuple):
    """The turns of all patches: cosines and sines."""

    cos: Float[Array, "b n 1 half"]
    sin: Float[Array, "b n 1 half"]


def compute_turn(config: RotaryConfig, grid: tuple[int, int], channels: int, copies: int) -> Turn:
    """Compute the turns of the patches of a grid, row by row.

    In a frame, each image has its own (``frames``).

    Args:
        config: the configuration.
        grid: rows and columns.
        channels: of a head.
        copies: how often each image of the frame occurs in the batch.
    """
    periods = _round(config, config.base ** (np.arange(channels // 4, dtype=np.float32) / (channels // 4)))
    sizes = get_grid_sizes(*grid, copies=copies)
    angles = []
    for axis in (0, 1):
        side = jnp.asarray([[grid[axis]]]) if sizes is None else sizes[:, axis, None]
        middles = _round(config, (jnp.arange(grid[axis]) + 0.5)[None] / side)
        coordinates = _round(config, 2 * _round(config, middles) - 1)
        angles.append(_round(config, _round(config, 2 * pi * coordinates)[..., None] / periods[None, None]))
    rows, columns = angles
    shape = (len(rows), *grid, channels // 4)
    both = [jnp.broadcast_to(rows[:, :, None], shape), jnp.broadcast_to(columns[:, None], shape)]
    turned = jnp.concatenate(both, axis=-1).reshape(shape[0], grid[0] * grid[1], 1, channels // 2)
    return Turn(_round(config, jnp.cos(turned)), _round(config, jnp.sin(turned)))


def rotate(
    config: RotaryConfig, x: Float[Array, "b n heads d"], turn: Turn, prefix: int
) -> Float[Array, "b n heads d"]:
    """Turn q or k of the patches, which follow ``prefix`` other tokens."""
    x = _round(config, x)
    first, second = jnp.split(x[:, prefix:], 2, axis=-1)
    cos, sin = turn
    turned = [
        _round(config, _round(config, first * cos) - _round(config, second * sin)),
        _round(config, _round(config, second * cos) + _round(config, first * sin)),
    ]
    return jnp.concatenate([x[:, :prefix], jnp.concatenate(turned, axis=-1)], axis=1)


def _round(config: RotaryConfig, x: Float[Array | np.ndarray, "..."]) -> Float[Array, "..."]:
    x = jnp.asarray(x, jnp.float32)
    return x if config.rounded == "float32" else lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
