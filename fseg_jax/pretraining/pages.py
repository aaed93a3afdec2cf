"""Cut views of tissue on a device, which holds the fields on pages.

A page is a square of pixels that fields lie on side by side, so that fields of any sizes make one array. A
view is a square of a page, resampled by two products with triangles: what Pillow's bilinear filter computes
on the host (``views.cut_views``), unrounded.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int, UInt8

from fseg_jax.errors import InputError
from fseg_jax.numerics.arrays import Array, Key
from fseg_jax.pretraining.fields import MAX_ENLARGEMENT, Field, Geometry
from fseg_jax.pretraining.views import FieldTable, draw_cuts

PAGE = 2048  # pixels a side: four of the largest fields
AT_ONCE = 64  # views that are cut at once: each takes a window of the page, in float32


class Pages(NamedTuple):
    """Fields on pages.

    Attributes:
        pixels: The pages, RGB.
        places: Page, top and left of each field.
        table: What it takes to draw where views lie in them.
    """

    pixels: UInt8[Array, "pages 3 side side"]
    places: Int[Array, "n 3"]
    table: FieldTable


class PagedViews(NamedTuple):
    """Pairs of views, as a device cuts them; see ``views.Views``.

    Attributes:
        planes: Their channels R, G and B, 0…255.
        regions: Boxes of the same regions in each view.
    """

    planes: Float[Array, "2*n 3 side side"]
    regions: Float[Array, "2 n r 4"]


@dataclass(frozen=True)
class Cutter:
    """Cuts a step's views from pages, within the step's program.

    Attributes:
        geometry: How views are cut.
        pairs: Pairs of views in a step.
        window: Side of the squares of pages that hold any view.
    """

    geometry: Geometry
    pairs: int
    window: int

    def __call__(self, pages: Pages, key: Key) -> PagedViews:
        """Draw where a step's views lie by its key, and cut them."""
        cuts = draw_cuts(pages.table, self.geometry, self.pairs, key)
        fields = jnp.tile(cuts.fields, 2)
        corners, sides, ways = (part.reshape(2 * self.pairs, *part.shape[2:]) for part in cuts[1:4])
        places, sizes = pages.places[fields], pages.table.sizes[fields]
        starts = jnp.minimum(places[:, 1:] + corners.astype(jnp.int32), pages.pixels.shape[-1] - self.window)
        first = (starts - places[:, 1:]).astype(jnp.float32)  # the window's corner in the field

        def cut(view: tuple[Array, ...]) -> Float[Array, "3 side side"]:
            page, start, first, corner, extent, size, way = view
            shape = (1, 3, self.window, self.window)
            window = lax.dynamic_slice(pages.pixels, (page, 0, *start), shape)[0].astype(jnp.float32)
            rows, columns = (
                self._weigh(first[axis], corner[axis], extent, size[axis], (way >> axis) & 1 > 0)
                for axis in (0, 1)
            )
            half = jnp.einsum("sh,chw->csw", rows, window, precision="highest")
            planes = jnp.einsum("tw,csw->cst", columns, half, precision="highest")
            return jnp.where(way & 4 > 0, planes.swapaxes(1, 2), planes)

        views = (places[:, 0], starts, first, corners, sides, sizes, ways)
        return PagedViews(lax.map(cut, views, batch_size=min(AT_ONCE, 2 * self.pairs)), cuts.regions)

    def _weigh(
        self,
        first: Float[Array, ""],
        corner: Float[Array, ""],
        extent: Float[Array, ""],
        size: Float[Array, ""],
        reversed_: Bool[Array, ""],
    ) -> Float[Array, "side window"]:
        """Weigh the pixels of a window along an axis, for each pixel of a view."""
        side = self.geometry.side
        pixel = first + jnp.arange(self.window, dtype=jnp.float32)[None]
        middle = jnp.arange(side, dtype=jnp.float32)[:, None] + 0.5
        center = corner + jnp.where(reversed_, side - middle, middle) * (extent / side)
        weights = jnp.maximum(1 - jnp.abs(pixel + 0.5 - center) / jnp.maximum(extent / side, 1), 0)
        end = jnp.minimum(jnp.ceil(corner + extent) + 1, size)  # the host cuts the same pixels out first
        weights = jnp.where((pixel >= jnp.floor(corner)) & (pixel < end), weights, 0)
        return weights / weights.sum(1, keepdims=True)


def make_cutter(fields: Sequence[Field], geometry: Geometry, pairs: int) -> Cutter:
    """Make what cuts views of any of these fields."""

    def bound(field: Field) -> float:
        coarsest = max(geometry.coarsest, geometry.finest, field.mpp / MAX_ENLARGEMENT)
        height, width = field.pixels.shape[:2]
        largest: float = min(geometry.side * coarsest / field.mpp, height, width)
        return largest

    return Cutter(geometry, pairs, min(PAGE, math.ceil(max(map(bound, fields))) + 3))


def place_fields(fields: Sequence[Field]) -> Int[np.ndarray, "n 3"]:
    """Place fields on pages, the highest first, in rows: page, top and left of each.

    Raises:
        InputError: A field is larger than a page.
    """
    for field in fields:
        if max(field.pixels.shape) > PAGE:
            height, width = field.pixels.shape[:2]
            raise InputError(f"a field of {height} × {width} pixels: cut it to {PAGE} at most")
    places = np.zeros((len(fields), 3), np.int32)
    page = top = left = row_height = 0
    for number in sorted(range(len(fields)), key=lambda i: fields[i].pixels.shape[:2], reverse=True):
        height, width = fields[number].pixels.shape[:2]
        if left + width > PAGE:
            top, left, row_height = top + row_height, 0, 0
        if top + height > PAGE:
            page, top, left, row_height = page + 1, 0, 0, 0
        places[number] = page, top, left
        left, row_height = left + width, max(row_height, height)
    return places


def lay_out_pages(
    fields: Sequence[Field], places: Int[np.ndarray, "n 3"], pages: int
) -> UInt8[np.ndarray, "pages 3 side side"]:
    """Lay fields out on so many pages."""
    pixels = np.zeros((pages, 3, PAGE, PAGE), np.uint8)

    def lay_out(field: Field, place: Int[np.ndarray, "3"]) -> None:
        page, top, left = place
        height, width = field.pixels.shape[:2]
        pixels[page, :, top : top + height, left : left + width] = np.moveaxis(field.pixels, -1, 0)

    with ThreadPoolExecutor(thread_name_prefix="fseg-pages") as pool:
        list(pool.map(lay_out, fields, places))
    return pixels
