"""Position embeddings learned on one grid, read on another: each publisher's bicubic, reproduced.

- ``antialiased``: timm's ``resample_abs_pos_embed``, torch's bicubic with antialias (a = −0.5, weights
  renormalised at the border);
- ``bicubic``: transformers' ViT and DINOv2, torch's bicubic without (a = −0.75, border repeated);
- ``bicubic_offset``: DINO's own code and CONCH v1.5's, the same at the scale (size + 0.1) / old size.

The sizes are static, so an axis is a constant matrix, and resampling two small float32 products; for images
of different grids it is one of a constant stack of the same matrices.
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

Resampling = Literal["antialiased", "bicubic", "bicubic_offset"]


def resample_grid(
    table: Float[Array, "n c"], old: tuple[int, int], new: tuple[int, int], how: Resampling
) -> Float[Array, "m c"]:
    """An embedding of ``old`` rows and columns on ``new`` ones, in float32; unchanged where they are the
    same.
    """
    if old == new:
        return table
    rows, columns = (_matrix(old[axis], new[axis], how) for axis in (0, 1))
    image = table.astype(jnp.float32).reshape(*old, -1)
    image = jnp.einsum("ph,hwc->pwc", rows, image, precision=lax.Precision.HIGHEST)
    image = jnp.einsum("qw,pwc->pqc", columns, image, precision=lax.Precision.HIGHEST)
    return image.reshape(new[0] * new[1], -1)


def resample_grids(
    table: Float[Array, "n c"],
    old: tuple[int, int],
    most: tuple[int, int],
    sizes: Int[Array, "b 2"],
    how: Resampling,
) -> Float[Array, "b m c"]:
    """An embedding of ``old`` rows and columns on each image's own, ``sizes``, of at most ``most``: zero
    beyond.
    """

    def matrices(axis: int) -> Float[np.ndarray, "sizes most old"]:
        stack = np.zeros((most[axis] + 1, most[axis], old[axis]), np.float32)
        for new in range(1, most[axis] + 1):
            stack[new, :new] = _matrix(old[axis], new, how)
        return stack

    rows, columns = (jnp.asarray(matrices(axis))[sizes[:, axis]] for axis in (0, 1))
    image = table.astype(jnp.float32).reshape(*old, -1)
    each = jnp.einsum("bph,hwc->bpwc", rows, image, precision=lax.Precision.HIGHEST)
    each = jnp.einsum("bqw,bpwc->bpqc", columns, each, precision=lax.Precision.HIGHEST)
    if old[0] <= most[0] and old[1] <= most[1]:
        unchanged = (sizes == jnp.asarray(old)[None]).all(1).reshape(-1, 1, 1, 1)
        beyond = [(0, most[axis] - old[axis]) for axis in (0, 1)]
        each = jnp.where(unchanged, jnp.pad(image, (*beyond, (0, 0)))[None], each)
    return each.reshape(len(sizes), most[0] * most[1], -1)


def _matrix(old: int, new: int, how: Resampling) -> Float[np.ndarray, "new old"]:
    if how == "antialiased":
        return _antialiased(old, new)
    step = old / (new + 0.1) if how == "bicubic_offset" else old / new
    centres = (np.arange(new) + 0.5) * step - 0.5
    first = np.floor(centres).astype(int) - 1
    matrix = np.zeros((new, old))
    for tap in range(4):
        source = first + tap
        weight = _cubic(centres - source, -0.75)
        np.add.at(matrix, (np.arange(new), source.clip(0, old - 1)), weight)
    return matrix.astype(np.float32)


def _antialiased(old: int, new: int) -> Float[np.ndarray, "new old"]:
    step = old / new
    widening = max(step, 1.0)
    centres = (np.arange(new) + 0.5) * step
    offset = np.arange(old)[None, :] + 0.5 - centres[:, None]
    weights = _cubic(offset / widening, -0.5)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel, of support 2."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = a * (((d - 5) * d + 8) * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
