"""Overlapping tiles, blended: where two overlap, a token counts the more the deeper it lies in its tile.

The W of a slide's tiles stays on the device, in a ring: an array of tiles, of which the last is 0 and stands
for tiles that there are none of, and the others are replaced, the oldest first. Each tile is multiplied by
what its tokens count when it is stored, and blending only adds and divides. So no compiler can fuse a product
with a sum, which would round otherwise than plain arithmetic.

The last axis is a row of tokens with all their clusters, and whole tiles are taken: a TPU pads that axis to
128, and lays a ring out anew from which less is taken.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Ring = Float[Array, "slots t tk"]


class Span(NamedTuple):
    """A tile along one axis, in tokens."""

    start: int  # its first token
    shares: Float[np.ndarray, " length"]  # how much each of its tokens counts; 1 in all where tiles overlap


def split_axis(n: int, tile: int) -> list[Span]:
    """Split an axis of n tokens into overlapping tiles.

    Tiles overlap by an eighth; a token counts the more the deeper it lies in its tile. The last one is moved
    back to end with the axis.
    """
    halo, length = max(1, round(tile / 16)), min(n, tile)
    starts = [*range(0, n - tile, tile - 2 * halo), n - length]
    position = np.arange(length, dtype=np.float32) + 0.5
    ramp = np.minimum(np.minimum(position, length - position) / (2 * halo), 1)
    total = np.zeros(n, np.float32)
    for start in starts:
        total[start : start + length] += ramp
    return [Span(start, ramp / total[start : start + length]) for start in starts]


def make_ring(tiles: int, tokens: int, k: int) -> Ring:
    """Make a ring for so many tiles of ``tokens`` × ``tokens``."""
    return jnp.zeros((tiles + 1, tokens, tokens * k), jnp.float32)


@partial(jax.jit, donate_argnums=0, static_argnames="halo")
def store_tiles(ring: Ring, W: Float[Array, "b t t k"], first: Int[Array, ""] | int, *, halo: int) -> Ring:
    """Store tiles from slot ``first`` on; the ring that was given is used up."""
    tiles = W * _weigh_tokens(W.shape[1], halo)[None, ..., None]
    return jax.lax.dynamic_update_slice(ring, tiles.reshape(-1, *ring.shape[1:]), (first, 0, 0))


@partial(jax.jit, static_argnames=("halo", "frame"))
def blend_tiles(
    ring: Ring,
    near: Int[Array | np.ndarray, "b 9"],
    rows: Int[Array | np.ndarray, "b p"],
    columns: Int[Array | np.ndarray, "b p"],
    *,
    halo: int,
    frame: int,
) -> Float[Array, "b p p k"]:
    """Blend tiles with their neighbours, and return their cores with a frame of tokens on each side.

    The result depends on a tile and its eight neighbours alone, summed in one order: not on when they were
    made, nor on the tiles beside it in the batch.

    Args:
        ring: holds the tiles.
        near: the slots of each tile and its neighbours, row by row; the last slot where there is none.
        rows: which row of core and frame is taken for each, so that the slide's last tokens are repeated
            beyond its edge.
        columns: the same, of columns.
        halo: how many tokens on each side overlap the neighbours.
        frame: tokens of the frame on each side. Those that no tile holds are 0.
    """
    slots, t, channels = ring.shape
    k, pitch = channels // t, t - 2 * halo
    side, shares = pitch + 2 * frame, _weigh_tokens(t, halo)
    total = jnp.zeros((len(near), side, side, k), ring.dtype)
    weight = jnp.zeros((len(near), side, side), ring.dtype)
    overlaps = [_overlap(step, pitch, halo, frame) for step in (-1, 0, 1)]
    for neighbour, ((y, height, top), (x, width, left)) in enumerate(
        (down, across) for down in overlaps for across in overlaps
    ):
        slot = near[:, neighbour]
        tile = ring[slot].reshape(-1, t, t, k)
        part = tile[:, top : top + height, left : left + width]
        core = np.s_[:, y : y + height, x : x + width]
        total = jax.lax.dynamic_update_slice(total, total[core] + part, (0, y, x, 0))
        share = jnp.where(
            (slot < slots - 1)[:, None, None], shares[None, top : top + height, left : left + width], 0
        )
        weight = jax.lax.dynamic_update_slice(weight, weight[core] + share, (0, y, x))
    weight = jnp.where(weight > 0, weight, 1)[..., None]
    # XLA divides by what is broadcast as it pleases, by a product with the reciprocal too; so it is hidden.
    total /= jax.lax.optimization_barrier(jnp.broadcast_to(weight, total.shape))
    total = jnp.take_along_axis(total, rows[:, :, None, None], axis=1)
    total = jnp.take_along_axis(total, columns[:, None, :, None], axis=2)
    return total


def _weigh_tokens(tokens: int, halo: int) -> Float[np.ndarray, "t t"]:
    """Weigh the tokens of a tile: 1, and less the nearer they are to its edge, where tiles overlap."""
    position = np.arange(tokens) + 0.5
    ramp = np.minimum(np.minimum(position, tokens - position) / (2 * halo), 1).astype(np.float32)
    return np.asarray(ramp[:, None] * ramp)


def _overlap(step: int, pitch: int, halo: int, frame: int) -> tuple[int, int, int]:
    """Find the tokens shared with a tile ``step`` tiles away.

    Returns:
        The first of them among those of core and frame, how many there are, and the first in that tile.
    """
    begin = max(0, step * pitch - halo + frame)
    end = min(pitch + 2 * frame, step * pitch + pitch + halo + frame)
    return begin, end - begin, begin + halo - frame - step * pitch


def clip_to_grid(position: int, pitch: int, frame: int, tokens: int) -> Int[np.ndarray, " p"]:
    """Find which token of a core and its frame to take for each, along one axis of a grid of ``tokens``.

    Beyond the grid's edge that is the last one. ``position`` is the tile's row or column.
    """
    first = position * pitch - frame
    return np.asarray(np.clip(np.arange(first, first + pitch + 2 * frame), 0, tokens - 1) - first, np.int32)
