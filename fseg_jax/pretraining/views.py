"""Draw pairs of overlapping views of tissue, and the regions that both views show, for self-supervision.

This is the geometry alone, on the host: crops, turns and flips. ``augment`` varies stain and focus. A step's
views depend only on the seed and the step's number, so that an interrupted run goes on as if it had not been.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fseg_jax.errors import InputError
from fseg_jax.slides.reader import Slide, compute_shape
from fseg_jax.slides.tiles import find_tissue_tiles, make_grid
from fseg_jax.slides.tissue import find_tissue

FIELD_SIDE = 512  # pixels of the fields that larger images are cut into
MAX_ENLARGEMENT = 1.5  # of a field's pixels in a view
MAX_SHIFT = 0.4  # between two views' centres along each axis, as a fraction of the larger view's side
REGION_SIDES = (0.35, 0.7)  # shortest and longest, as fractions of the overlap's shorter side


@dataclass(frozen=True)
class Field:
    """A piece of tissue that views are cut from.

    Attributes:
        pixels: The image, RGB.
        mpp: µm per pixel.
        site: Name of the site that the slide is from.
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    mpp: float
    site: str


@dataclass(frozen=True)
class Geometry:
    """How views are cut.

    Attributes:
        side: Side of a view in pixels.
        finest: Finest resolution of a view in µm per pixel.
        coarsest: Coarsest resolution of a view in µm per pixel.
        regions: Number of regions of the overlap that are compared.
    """

    side: int = 112
    finest: float = 0.5
    coarsest: float = 1.5
    regions: int = 4


class Views(NamedTuple):
    """Pairs of views of the same tissue.

    Attributes:
        images: The two views of each pair, RGB.
        regions: Boxes of the same regions in each view: (top, left, bottom, right), as fractions 0…1 of it.
    """

    images: UInt8[np.ndarray, "2 n side side 3"]
    regions: Float[np.ndarray, "2 n r 4"]


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


def compute_probabilities(fields: Sequence[Field]) -> Float[np.ndarray, " n"]:
    """Compute how likely each field is drawn.

    A site counts by the square root of its area, and a field of it by the field's area.
    """
    areas = np.array([field.pixels[..., 0].size * field.mpp**2 for field in fields])
    numbers = {site: i for i, site in enumerate(sorted({field.site for field in fields}))}
    sites = np.array([numbers[field.site] for field in fields])
    weights = areas / np.sqrt(np.bincount(sites, areas))[sites]
    return np.asarray(weights / weights.sum())


def draw_views(
    fields: Sequence[Field],
    probabilities: Float[np.ndarray, " n"],
    geometry: Geometry,
    pairs: int,
    *,
    seed: int,
    step: int,
) -> Views:
    """Draw a step's views."""
    rng = np.random.default_rng([seed, step])
    chosen = rng.choice(len(fields), pairs, p=probabilities)
    drawn = [_draw_pair(fields[i], geometry, rng) for i in chosen]
    return Views(
        np.stack([images for images, _ in drawn], axis=1), np.stack([regions for _, regions in drawn], axis=1)
    )


def stream_views(draw: Callable[[int], Views], start: int, stop: int) -> Iterator[Views]:
    """Yield the views of each step; a thread draws the next two steps' meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="fseg-views") as pool:
        pending = [pool.submit(draw, step) for step in range(start, min(start + 2, stop))]
        for step in range(start, stop):
            views = pending.pop(0).result()
            if step + 2 < stop:
                pending.append(pool.submit(draw, step + 2))
            yield views


def _draw_pair(
    field: Field, geometry: Geometry, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "2 side side 3"], Float[np.ndarray, "2 r 4"]]:
    """Draw two overlapping views of a field, and regions of the overlap as boxes in each view."""
    height, width = field.pixels.shape[:2]
    low = max(geometry.finest, field.mpp / MAX_ENLARGEMENT)
    high = max(low, min(geometry.coarsest, min(height, width) * field.mpp / geometry.side))
    mpp = np.exp(rng.uniform(math.log(low), math.log(high), 2))
    sides = np.minimum(geometry.side * mpp / field.mpp, min(height, width))  # in the field's pixels
    larger = int(np.argmax(sides))
    size = np.array([height, width], float)
    corners = np.empty((2, 2))
    corners[larger] = rng.uniform(0, size - sides[larger])
    center = corners[larger] + sides[larger] / 2 + rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2) * sides[larger]
    corners[1 - larger] = np.clip(center - sides[1 - larger] / 2, 0, size - sides[1 - larger])

    top, bottom = corners.max(0), (corners + sides[:, None]).min(0)
    side = rng.uniform(*REGION_SIDES, (geometry.regions, 1)) * (bottom - top).min()
    begin = top + rng.uniform(0, 1, (geometry.regions, 2)) * (bottom - top - side)
    boxes = np.concatenate([begin, begin + side], axis=1)  # top, left, bottom, right

    images, regions = [], []
    for corner, extent in zip(corners, sides, strict=True):
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        image = np.rot90(_cut_view(field.pixels, corner, extent, geometry.side), turns)
        images.append(image[:, ::-1] if flip else image)
        regions.append(_turn_boxes((boxes - np.tile(corner, 2)) / extent, turns, flip))
    return np.stack(images), np.stack(regions).astype(np.float32)


def _cut_view(
    pixels: UInt8[np.ndarray, "h w 3"], corner: Float[np.ndarray, " 2"], extent: float, side: int
) -> UInt8[np.ndarray, "side side 3"]:
    """Cut a square of a field, and resample it to a view: averaged down, or interpolated up."""
    y, x = (int(c) for c in corner)
    part = pixels[y : math.ceil(corner[0] + extent) + 1, x : math.ceil(corner[1] + extent) + 1]
    top, left = corner[0] - y, corner[1] - x
    box = (left, top, min(left + extent, part.shape[1]), min(top + extent, part.shape[0]))
    image = Image.fromarray(np.ascontiguousarray(part))
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=box))


def _turn_boxes(boxes: Float[np.ndarray, "r 4"], turns: int, flip: bool) -> Float[np.ndarray, "r 4"]:
    """Turn boxes (0…1) as ``np.rot90`` turns their image ``turns`` times, then flip left and right."""
    top, left, bottom, right = boxes.T
    for _ in range(turns):  # a quarter turn brings the right side to the top
        top, left, bottom, right = 1 - right, top, 1 - left, bottom
    if flip:
        left, right = 1 - right, 1 - left
    return np.stack([top, left, bottom, right], axis=1)
