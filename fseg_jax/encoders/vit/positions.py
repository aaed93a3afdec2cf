"""Position embeddings that are resampled from one grid to another, by each publisher's bicubic.

- ``antialiased``: timm's ``resample_abs_pos_embed``, torch's bicubic with antialias (a = −0.5, weights
  renormalised at the border);
- ``bicubic``: transformers' ViT and DINOv2, torch's bicubic without (a = −0.75, border repeated);
- ``bicubic_offset``: DINO's own code and CONCH v1.5's, the same at the scale (size + 0.1) / old size.

Sizes are static, so each axis is a constant matrix, and resampling is two small float32 products. For images
of different grids, a matrix is chosen from a constant stack of such.
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
    """Resample an embedding from ``old`` to ``new`` rows and columns, in float32.

    It is returned as it is where they are the same.
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
    frame: tuple[int, int],
    sizes: Int[Array, "b 2"],
    how: Resampling,
) -> Float[Array, "b m c"]:
    """Resample an embedding from ``old`` to each image's rows and columns, ``sizes``; zero beyond them.

    ``frame`` is the number of rows and columns of the frame.
    """

    def matrices(axis: int) -> Float[np.ndarray, "sizes frame old"]:
        stack = np.zeros((frame[axis] + 1, frame[axis], old[axis]), np.float32)
        for new in range(1, frame[axis] + 1):
            stack[new, :new] = _matrix(old[axis], new, how)
        return stack

    rows, columns = (jnp.asarray(matrices(axis))[sizes[:, axis]] for axis in (0, 1))
    image = table.astype(jnp.float32).reshape(*old, -1)
    each = jnp.einsum("bph,hwc->bpwc", rows, image, precision=lax.Precision.HIGHEST)
    each = jnp.einsum("bqw,bpwc->bpqc", columns, each, precision=lax.Precision.HIGHEST)
    if old[0] <= frame[0] and old[1] <= frame[1]:
        unchanged = (sizes == jnp.asarray(old)[None]).all(1).reshape(-1, 1, 1, 1)
        beyond = [(0, frame[axis] - old[axis]) for axis in (0, 1)]
        each = jnp.where(unchanged, jnp.pad(image, (*beyond, (0, 0)))[None], each)
    return each.reshape(len(sizes), frame[0] * frame[1], -1)


def _matrix(old: int, new: int, how: Resampling) -> Float[np.ndarray, "new old"]:
    if how == "antialiased":
        return _antialiased(old, new)
    step = old / (new + 0.1) if how == "bicubic_offset" else old / new
    centers = (np.arange(new) + 0.5) * step - 0.5
    first = np.floor(centers).astype(int) - 1
    matrix = np.zeros((new, old))
    for tap in range(4):
        source = first + tap
        weight = _cubic(centers - source, -0.75)
        np.add.at(matrix, (np.arange(new), source.clip(0, old - 1)), weight)
    return matrix.astype(np.float32)


def _antialiased(old: int, new: int) -> Float[np.ndarray, "new old"]:
    step = old / new
    widening = max(step, 1.0)
    centers = (np.arange(new) + 0.5) * step
    offset = np.arange(old)[None, :] + 0.5 - centers[:, None]
    weights = _cubic(offset / widening, -0.5)
    return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Evaluate Keys' cubic kernel, which is zero from a distance of 2 on."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = a * (((d - 5) * d + 8) * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
