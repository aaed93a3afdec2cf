"""Draw pairs of overlapping views of tissue, and the regions that both views show.

This is the geometry alone: places, resolutions, turns and flips. ``augment`` varies stain and focus. Where
the views of a step lie depends on its key alone, so that they are cut by a device (``pages``) or on the host
as ``cut_views`` does here, and an interrupted run goes on as if it had not been.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int, UInt8
from PIL import Image

from fseg_jax.numerics.arrays import Array, Key
from fseg_jax.pretraining.fields import MAX_ENLARGEMENT, Field, Geometry

MAX_SHIFT = 0.4  # between two views' centres along each axis, as a fraction of the larger view's side
REGION_SIDES = (0.35, 0.7)  # shortest and longest, as fractions of the overlap's shorter side
WAYS = 8  # to turn and mirror a view: bits 1 and 2 reverse its rows and columns, and bit 4 swaps them after


class FieldTable(NamedTuple):
    """What it takes of fields to draw where views lie in them.

    Attributes:
        sizes: Height and width in pixels.
        mpp: µm per pixel.
        limits: The cumulated chances of being drawn.
    """

    sizes: Float32[Array, "n 2"]
    mpp: Float32[Array, " n"]
    limits: Float32[Array, " n"]


class Cuts(NamedTuple):
    """Where pairs of views of the same tissue lie.

    Attributes:
        fields: The field of each pair, in its table.
        corners: Top and left of each view, in the field's pixels.
        sides: Side of each view, in the field's pixels.
        ways: How each view is turned and mirrored, of ``WAYS``.
        regions: Boxes of the same regions in each view: (top, left, bottom, right), as fractions 0…1 of it.
    """

    fields: Int[Array, " n"]
    corners: Float[Array, "2 n 2"]
    sides: Float[Array, "2 n"]
    ways: Int[Array, "2 n"]
    regions: Float[Array, "2 n r 4"]


class Views(NamedTuple):
    """Pairs of views of the same tissue.

    Attributes:
        images: The two views of each pair, RGB.
        regions: Boxes of the same regions in each view: (top, left, bottom, right), as fractions 0…1 of it.
    """

    images: UInt8[np.ndarray, "2 n side side 3"]
    regions: Float[np.ndarray, "2 n r 4"]


def tabulate_fields(fields: Sequence[Field], chances: Float[np.ndarray, " n"]) -> FieldTable:
    """Make the table of fields that are drawn with these chances."""
    sizes = np.array([field.pixels.shape[:2] for field in fields], np.float32)
    mpp = np.array([field.mpp for field in fields], np.float32)
    return FieldTable(*map(jnp.asarray, (sizes, mpp, (chances.cumsum() / chances.sum()).astype(np.float32))))


@jax.jit(static_argnums=(1, 2))
def draw_cuts(table: FieldTable, geometry: Geometry, pairs: int, key: Key) -> Cuts:
    """Draw where the views of so many pairs lie."""
    of_field, of_mpp, of_corner, of_shift, of_side, of_begin, of_way = jax.random.split(key, 7)
    uniform = jax.random.uniform
    fields = (uniform(of_field, (pairs, 1)) >= table.limits[None, :-1]).sum(1, dtype=jnp.int32)
    size, mpp = table.sizes[fields], table.mpp[fields][None]
    shortest = size.min(1)[None]
    low = jnp.maximum(geometry.finest, mpp / MAX_ENLARGEMENT)
    high = jnp.maximum(low, jnp.minimum(geometry.coarsest, shortest * mpp / geometry.side))
    resolutions = low * (high / low) ** uniform(of_mpp, (2, pairs))
    sides = jnp.minimum(geometry.side * resolutions / mpp, shortest)

    larger, smaller = sides.max(0)[:, None], sides.min(0)[:, None]
    of_larger = uniform(of_corner, (pairs, 2)) * (size - larger)
    shift = larger * uniform(of_shift, (pairs, 2), minval=-MAX_SHIFT, maxval=MAX_SHIFT)
    of_smaller = jnp.clip(of_larger + shift + (larger - smaller) / 2, 0, size - smaller)
    is_first = (sides[0] >= sides[1])[:, None]
    corners = jnp.stack(
        [jnp.where(is_first, of_larger, of_smaller), jnp.where(is_first, of_smaller, of_larger)]
    )

    top, bottom = corners.max(0)[:, None], (corners + sides[..., None]).min(0)[:, None]
    shortest_side, longest_side = REGION_SIDES
    share = uniform(of_side, (pairs, geometry.regions, 1), minval=shortest_side, maxval=longest_side)
    side = share * (bottom - top).min(-1, keepdims=True)
    begin = top + uniform(of_begin, (pairs, geometry.regions, 2)) * (bottom - top - side)
    ways = jax.random.randint(of_way, (2, pairs), 0, WAYS)
    begins, ends = (
        (edge[None] - corners[:, :, None]) / sides[..., None, None] for edge in (begin, begin + side)
    )
    return Cuts(fields, corners, sides, ways, _turn_boxes(begins, ends, ways[..., None, None]))


def _turn_boxes(
    begin: Float[Array, "2 n r 2"], end: Float[Array, "2 n r 2"], ways: Int[Array, "2 n 1 1"]
) -> Float[Array, "2 n r 4"]:
    """Turn boxes (0…1) as their images are turned."""
    reversed_ = (ways >> jnp.arange(2).reshape(1, 1, 1, 2)) & 1 > 0
    begin, end = jnp.where(reversed_, 1 - end, begin), jnp.where(reversed_, 1 - begin, end)
    swapped = ways & 4 > 0
    begin, end = (jnp.where(swapped, edge[..., ::-1], edge) for edge in (begin, end))
    return jnp.concatenate([begin, end], -1)


def cut_views(fields: Sequence[Field], cuts: Cuts, geometry: Geometry) -> Views:
    """Cut views on the host, averaged down to their resolution or interpolated up to it."""
    numbers, corners, sides, ways, regions = (np.asarray(part) for part in cuts)
    images = [
        [
            _turn(_cut_view(fields[number].pixels, corner, float(side), geometry.side), int(way))
            for number, corner, side, way in zip(numbers, *of_view, strict=True)
        ]
        for of_view in zip(corners, sides, ways, strict=True)
    ]
    return Views(np.array(images), regions)


def _cut_view(
    pixels: UInt8[np.ndarray, "h w 3"], corner: Float[np.ndarray, " 2"], extent: float, side: int
) -> UInt8[np.ndarray, "side side 3"]:
    y, x = (int(c) for c in corner)
    part = pixels[y : math.ceil(corner[0] + extent) + 1, x : math.ceil(corner[1] + extent) + 1]
    top, left = float(corner[0]) - y, float(corner[1]) - x
    box = (left, top, min(left + extent, part.shape[1]), min(top + extent, part.shape[0]))
    image = Image.fromarray(np.ascontiguousarray(part))
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=box))


def _turn(image: UInt8[np.ndarray, "side side 3"], way: int) -> UInt8[np.ndarray, "side side 3"]:
    image = image[::-1] if way & 1 else image
    image = image[:, ::-1] if way & 2 else image
    return image.swapaxes(0, 1) if way & 4 else image
