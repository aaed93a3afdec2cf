"""Draw the fields of a slide's tissue."""

import hashlib

import numpy as np

from fseg_jax.errors import InputError
from fseg_jax.pretraining.fields import MAX_ENLARGEMENT, Field, Geometry
from fseg_jax.slides.reader import Slide, compute_shape
from fseg_jax.slides.tiles import find_tissue_tiles, make_grid
from fseg_jax.slides.tissue import find_tissue

FIELD_SIDE = 512  # pixels of the fields that larger images are cut into


def draw_fields(slide: Slide, site: str, geometry: Geometry, most: int, seed: int) -> list[Field]:
    """Draw at most ``most`` fields of a slide's tissue; they depend only on the seed and the slide's name.

    A slide of at most 1024 pixels a side, at the finest resolution that views need, is one field.

    Raises:
        InputError: The slide is too small to cut a view from.
    """
    mpp = max(slide.mpp, geometry.finest)
    height, width = compute_shape(slide, mpp)
    if min(height, width) * MAX_ENLARGEMENT < geometry.side:
        raise InputError(
            f"{slide.path}: {height} × {width} pixels at {mpp:.3g} µm are too few for views of "
            f"{geometry.side}: leave it out, or lower --crop"
        )
    if max(height, width) <= 2 * FIELD_SIDE:
        return [Field(slide.read(0, 0, height, width, mpp), mpp, site)]
    side = min(FIELD_SIDE, height, width)
    grid = make_grid(height, width, 1, side, 0)
    tissue = find_tissue(slide)
    tiles = np.argwhere(find_tissue_tiles(grid, tissue.mask, tissue.mpp, mpp))
    name_hash = int.from_bytes(hashlib.sha256(slide.name.encode()).digest()[:8], "little")
    order = np.random.default_rng([seed, name_hash]).permutation(len(tiles))[:most]
    fields = []
    for row, column in tiles[np.sort(order)]:
        y, x = (min(int(i) * side, size - side) for i, size in ((row, height), (column, width)))
        fields.append(Field(slide.read(y, x, side, side, mpp), mpp, site))
    return fields
