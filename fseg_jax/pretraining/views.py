"""Pairs of views of tissue, for self-supervision: where to cut, at which resolution, and what both see.

The geometry only, on the host: crops, turns and flips. What stain and focus change is in ``augment``. A
step's views follow from the seed and the step's number alone, so that a run that was interrupted goes on as
it would have.
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

FIELD = 512  # pixels: larger images are cut into fields of this side, of which those with tissue are drawn
ENLARGED = 1.5  # times that a view may enlarge its field
SHIFT = 0.4  # of the larger view's side: how far apart two views' centres lie at most, along each axis
REGION = (0.35, 0.7)  # of the overlap's shorter side: the side of a region


@dataclass(frozen=True)
class Field:
    """A piece of tissue to cut views of: its pixels, their µm, and the site it is from."""

    pixels: UInt8[np.ndarray, "h w 3"]
    mpp: float
    site: str


@dataclass(frozen=True)
class Geometry:
    """Views of ``side`` pixels at between ``finest`` and ``coarsest`` µm each, and how many ``regions`` of
    their overlap are compared.
    """

    side: int = 112
    finest: float = 0.5
    coarsest: float = 1.5
    regions: int = 4


class Views(NamedTuple):
    """``n`` pairs of views, and where the regions lie in them: (top, left, bottom, right), 0 … 1 of a
    view.
    """

    images: UInt8[np.ndarray, "2 n side side 3"]
    regions: Float[np.ndarray, "2 n r 4"]


def fields_of(slide: Slide, site: str, geometry: Geometry, most: int, seed: int) -> list[Field]:
    """At most ``most`` fields of a slide's tissue, drawn by the seed and the slide's name alone.

    A slide of at most 1024 pixels a side, at the finest resolution that views need, is one field. InputError
    for one too small to cut a view of.
    """
    mpp = max(slide.mpp, geometry.finest)
    height, width = compute_shape(slide, mpp)
    if min(height, width) * ENLARGED < geometry.side:
        raise InputError(
            f"{slide.path}: {height} × {width} pixels at {mpp:.3g} µm are too few for views of "
            f"{geometry.side}: leave it out, or lower --crop"
        )
    if max(height, width) <= 2 * FIELD:
        return [Field(slide.read(0, 0, height, width, mpp), mpp, site)]
    side = min(FIELD, height, width)
    grid = make_grid(height, width, 1, side, 0)
    tissue = find_tissue(slide)
    found = np.argwhere(find_tissue_tiles(grid, tissue.mask, tissue.mpp, mpp))
    named = int.from_bytes(hashlib.sha256(slide.name.encode()).digest()[:8], "little")
    order = np.random.default_rng([seed, named]).permutation(len(found))[:most]
    fields = []
    for row, column in found[np.sort(order)]:
        y, x = (min(int(i) * side, size - side) for i, size in ((row, height), (column, width)))
        fields.append(Field(slide.read(y, x, side, side, mpp), mpp, site))
    return fields


def chances(fields: Sequence[Field]) -> Float[np.ndarray, " n"]:
    """How likely each field is drawn: a site in proportion to the root of its area, and its fields by
    area.
    """
    area = np.array([field.pixels[..., 0].size * field.mpp**2 for field in fields])
    sites = {site: i for i, site in enumerate(sorted({field.site for field in fields}))}
    of = np.array([sites[field.site] for field in fields])
    weight = area / np.sqrt(np.bincount(of, area))[of]
    return weight / weight.sum()


def draw(
    fields: Sequence[Field],
    chance: Float[np.ndarray, " n"],
    geometry: Geometry,
    pairs: int,
    *,
    seed: int,
    step: int,
) -> Views:
    """Draw a step's views."""
    rng = np.random.default_rng([seed, step])
    drawn = rng.choice(len(fields), pairs, p=chance)
    made = [_pair(fields[i], geometry, rng) for i in drawn]
    return Views(
        np.stack([images for images, _ in made], axis=1), np.stack([regions for _, regions in made], axis=1)
    )


def stream(drawn: Callable[[int], Views], start: int, stop: int) -> Iterator[Views]:
    """The views of each step, the next ones drawn in a thread while one is trained on."""
    with ThreadPoolExecutor(1, thread_name_prefix="fseg-views") as pool:
        waiting = [pool.submit(drawn, step) for step in range(start, min(start + 2, stop))]
        for step in range(start, stop):
            views = waiting.pop(0).result()
            if step + 2 < stop:
                waiting.append(pool.submit(drawn, step + 2))
            yield views


def _pair(
    field: Field, geometry: Geometry, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "2 side side 3"], Float[np.ndarray, "2 r 4"]]:
    """Two views of a field that overlap, and the regions of the overlap in each."""
    height, width = field.pixels.shape[:2]
    low = max(geometry.finest, field.mpp / ENLARGED)
    high = max(low, min(geometry.coarsest, min(height, width) * field.mpp / geometry.side))
    mpp = np.exp(rng.uniform(math.log(low), math.log(high), 2))
    sides = np.minimum(geometry.side * mpp / field.mpp, min(height, width))  # in the field's pixels
    larger = int(np.argmax(sides))
    size = np.array([height, width], float)
    corners = np.empty((2, 2))
    corners[larger] = rng.uniform(0, size - sides[larger])
    centre = corners[larger] + sides[larger] / 2 + rng.uniform(-SHIFT, SHIFT, 2) * sides[larger]
    corners[1 - larger] = np.clip(centre - sides[1 - larger] / 2, 0, size - sides[1 - larger])

    top, bottom = corners.max(0), (corners + sides[:, None]).min(0)
    side = rng.uniform(*REGION, (geometry.regions, 1)) * (bottom - top).min()
    begin = top + rng.uniform(0, 1, (geometry.regions, 2)) * (bottom - top - side)
    boxes = np.concatenate([begin, begin + side], axis=1)  # top, left, bottom, right

    images, regions = [], []
    for corner, extent in zip(corners, sides, strict=True):
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        image = np.rot90(_cut(field.pixels, corner, extent, geometry.side), turns)
        images.append(image[:, ::-1] if flip else image)
        regions.append(_turned((boxes - np.tile(corner, 2)) / extent, turns, flip))
    return np.stack(images), np.stack(regions).astype(np.float32)


def _cut(
    pixels: UInt8[np.ndarray, "h w 3"], corner: Float[np.ndarray, " 2"], extent: float, side: int
) -> UInt8[np.ndarray, "side side 3"]:
    """A square of a field, resampled to a view: averaged down, or interpolated up."""
    y, x = (int(c) for c in corner)
    part = pixels[y : math.ceil(corner[0] + extent) + 1, x : math.ceil(corner[1] + extent) + 1]
    top, left = corner[0] - y, corner[1] - x
    box = (left, top, min(left + extent, part.shape[1]), min(top + extent, part.shape[0]))
    image = Image.fromarray(np.ascontiguousarray(part))
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=box))


def _turned(boxes: Float[np.ndarray, "r 4"], turns: int, flip: bool) -> Float[np.ndarray, "r 4"]:
    """Where boxes (0 … 1) lie after ``np.rot90`` by so many turns, and then a flip of left and right."""
    top, left, bottom, right = boxes.T
    for _ in range(turns):  # what was on the right comes to the top
        top, left, bottom, right = 1 - right, top, 1 - left, bottom
    if flip:
        left, right = 1 - right, 1 - left
    return np.stack([top, left, bottom, right], axis=1)
