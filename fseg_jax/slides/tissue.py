"""Where the tissue is: found on a thumbnail, or given as a mask image or as GeoJSON."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio.features
import shapely
from PIL import Image
from rasterio import Affine
from scipy import ndimage
from skimage import filters

from fseg_jax.errors import InputError, first_line
from fseg_jax.slides.masks import read_marked
from fseg_jax.slides.reader import Slide, read_thumbnail, shape_at

THUMBNAIL_MPP = 8.0  # µm per pixel of the thumbnail
# Optical density, the strongest channel's less half of the weakest's: tissue goes on above the first value
# where it is joined to a place above the second.
TISSUE_OD = (0.03, 0.05)
SMOOTHING = 8.0  # µm, the Gaussian's sigma
GAP = 16.0  # µm: gaps narrower than twice this are closed
HOLE = 10_000.0  # µm²: smaller holes are filled (a circle of 113 µm)
SPECK = 10_000.0  # µm²: smaller pieces are dropped (a circle of 113 µm)
INK_FRINGE = 32.0  # µm that ink bleeds past what is recognised as ink
INK_AREA = 4_000.0  # µm²: smaller patches of an ink's colour are taken as tissue
# Pixels: the thumbnail's shorter side at least (where the slide has as many), its longer side at most.
_SIDES = (256, 1536)
_FARTHEST = 1e9  # level-0 pixels from the corner that an outline may go
_MASK_SIDE = 8192  # pixels of the longer side that a drawn outline is rasterized on


class Tissue(NamedTuple):
    """A mask over a slide, from its top left corner on."""

    mask: np.ndarray  # bool (height, width)
    mpp: float  # µm per mask pixel

    @property
    def fraction(self) -> float:
        """The share of the slide that is tissue."""
        return float(self.mask.mean())

    def crop(self, y: int, x: int, height: int, width: int, mpp: float) -> np.ndarray:
        """The mask of a box in pixels of ``mpp`` µm: bool (height, width), False past the slide.

        The border runs smoothly between the mask's pixels: a point is tissue where the four nearest, weighted
        by their nearness, are so by half or more.
        """
        rows, row_inside = _between(y, height, mpp / self.mpp, self.mask.shape[0])
        columns, column_inside = _between(x, width, mpp / self.mpp, self.mask.shape[1])
        top, left = rows[0][0], columns[0][0]
        part = self.mask[top : rows[1][-1] + 1, left : columns[1][-1] + 1].astype(np.float32)
        low, high, share = (rows[0] - top, rows[1] - top, rows[2][:, None])
        part = part[low] * (1 - share) + part[high] * share
        low, high, share = (columns[0] - left, columns[1] - left, columns[2])
        part = part[:, low] * (1 - share) + part[:, high] * share
        return (part >= 0.5) & row_inside[:, None] & column_inside


def _between(
    start: int, count: int, scale: float, size: int
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """The mask pixels before and after each of some pixels with the later's share, and which are inside."""
    position = (np.arange(start, start + count) + 0.5) * scale
    # A pixel belongs to the slide if it begins on it: the last one may be covered in part.
    inside = (position >= 0) & (position - 0.5 * scale < size)
    position = np.clip(position - 0.5, 0, size - 1).astype(np.float32)
    before = np.floor(position).astype(np.int64)
    return (before, np.minimum(before + 1, size - 1), position - before), inside


def choose_tissue(slide: Slide, how: str) -> Tissue:
    """The slide's tissue as a setting has it: ``"find"``, ``"all"``, or a file that marks it."""
    if how == "find":
        return find_tissue(slide)
    return take_whole_slide(slide) if how == "all" else load_tissue(how, slide)


def find_tissue(slide: Slide) -> Tissue:
    """Find the tissue of an H&E or IHC slide on a thumbnail of about 8 µm per pixel."""
    image, mpp = read_thumbnail(slide, _thumbnail_side(slide))
    return Tissue(segment_tissue(image, mpp), mpp)


def segment_tissue(image: np.ndarray, mpp: float) -> np.ndarray:
    """Tell tissue from glass, ink, scanner borders and dust: uint8 (h, w, 3) at ``mpp`` µm → bool (h, w).

    Tissue is where the stain's optical density, smoothed over 8 µm, stands out of the glass: strongest
    channel minus half of the weakest above 0.03, joined to a place above 0.05, so that grey shadows count
    less than colour. Holes under 10,000 µm² are filled, pieces under 10,000 µm² (or 1 % of a small image)
    dropped. Ink is what absorbs red more than green (green and blue pens), hardly any red but much green and
    blue (red pens), or all alike and strongly (black pens, borders).
    """
    density = image.astype(np.float32)  # in one array from here on: thumbnails of large slides are large
    for channel in range(3):
        ndimage.gaussian_filter(density[..., channel], SMOOTHING / mpp / 2, output=density[..., channel])
    glass = np.log10(_glass(density) + 1)
    np.log10(np.add(density, 1, out=density), out=density)
    np.maximum(np.subtract(glass, density, out=density), 0, out=density)
    ink = _ink(density, mpp)
    score = density.max(axis=-1) - 0.5 * density.min(axis=-1)
    mask = filters.apply_hysteresis_threshold(np.where(ink, 0, score), *TISSUE_OD)
    area = image.shape[0] * image.shape[1] * mpp**2
    mask = _closed(mask, GAP / mpp)
    mask = ~_without_small(~mask, min(HOLE, 0.05 * area) / mpp**2)
    mask &= ~ink
    return _without_small(mask, min(SPECK, 0.01 * area) / mpp**2)


def load_tissue(path: str | Path, slide: Slide) -> Tissue:
    """Read a slide's tissue from a file instead of finding it.

    A mask image marks tissue by anything but zero (a JPEG by what is above half: ``slides/masks.py``) and
    covers the slide (aspect ratio within 2 %). GeoJSON marks it by polygons in level-0 pixels, as QuPath
    writes them. InputError where the file is neither or marks nothing.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if path.suffix.lower() in (".json", ".geojson") or start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (
        b"{",
        b"[",
    ):
        tissue = _from_geojson(path, slide)
    else:
        tissue = _from_image(path, slide)
    if not tissue.mask.any():
        raise InputError(f"{path}: marks no tissue inside {slide.path.name}")
    return tissue


def take_whole_slide(slide: Slide) -> Tissue:
    """Take all of the slide as tissue."""
    mpp = slide.mpp * max(1.0, max(slide.height, slide.width) / _thumbnail_side(slide))
    return Tissue(np.ones(shape_at(slide, mpp), bool), mpp)


def _thumbnail_side(slide: Slide) -> int:
    longer, shorter = max(slide.height, slide.width), min(slide.height, slide.width)
    wanted = max(longer * slide.mpp / THUMBNAIL_MPP, longer / shorter * _SIDES[0])
    return max(1, round(min(wanted, longer, _SIDES[1])))


def _glass(image: np.ndarray) -> np.ndarray:
    """The colour of empty glass, (3,): where bright, hardly coloured and smooth; else a usual white."""
    level = image.mean(axis=-1)
    spread = np.sqrt(
        np.maximum(ndimage.uniform_filter(level**2, 5) - ndimage.uniform_filter(level, 5) ** 2, 0)
    )
    plain = (image.min(axis=-1) > 180) & (np.ptp(image, axis=-1) < 40) & (spread < 2)
    scanned = plain & (image.min(axis=-1) < 254.5)  # pure white is what a scanner leaves out
    for candidates in (scanned, plain):
        if candidates.sum() > 0.005 * level.size:
            brightest = level >= np.percentile(level[candidates], 75)
            return np.median(image[candidates & brightest], axis=0)
    return np.full(3, 245, np.float32)


def _ink(density: np.ndarray, mpp: float) -> np.ndarray:
    """Pen marks and black borders in optical densities (h, w, 3)."""
    red, green, blue = np.moveaxis(density, -1, 0)
    ink = np.zeros(red.shape, bool)
    for strong, weak in (
        # Green and blue pens; the second term is blue over stained tissue. Haematoxylin absorbs green as much
        # as red.
        (
            (red - green > 0.12) | ((red > 0.75) & (red > 1.2 * blue)),
            (red - green > 0.05) | ((red > 0.6) & (red > 1.2 * blue)),
        ),
        # Red pens; the second term is red over stained tissue. Eosin absorbs little blue, DAB more blue than
        # green.
        (
            (green > blue)
            & (
                ((green > 0.6) & (blue > 0.6 * green) & (red < 0.12 * green))
                | ((blue > 0.75) & (red < 0.4 * green))
            ),
            (green > blue)
            & (blue > 0.6 * green)
            & (((green > 0.3) & (red < 0.15 * green)) | ((blue > 0.5) & (red < 0.35 * green))),
        ),
        # Black pens and the borders of some scanners.
        (density.min(axis=-1) > 0.75 * density.max(axis=-1).clip(0.7), density.min(axis=-1) > 0.4),
    ):
        seeds = _without_small(strong, INK_AREA / mpp**2)
        if seeds.any():
            ink |= filters.apply_hysteresis_threshold(weak.astype(np.float32) + seeds, 0.5, 1.5)
    return _dilated(ink, INK_FRINGE / mpp) if ink.any() else ink


def _without_small(mask: np.ndarray, pixels: float) -> np.ndarray:
    """Drop the connected pieces of fewer pixels."""
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    return mask & (np.bincount(labels.ravel()) >= pixels)[labels]


def _dilated(mask: np.ndarray, radius: float) -> np.ndarray:
    return ndimage.distance_transform_edt(~mask) <= radius


def _closed(mask: np.ndarray, radius: float) -> np.ndarray:
    pad = math.ceil(radius) + 1  # or closing would eat into tissue at the border
    grown = _dilated(np.pad(mask, pad), radius) if mask.any() else np.pad(mask, pad)
    return (ndimage.distance_transform_edt(np.pad(grown, 1, mode="edge")) > radius)[1:-1, 1:-1][
        pad:-pad, pad:-pad
    ]


def _from_image(path: Path, slide: Slide) -> Tissue:
    mask = read_marked(path, "a mask image or GeoJSON")
    skew = mask.shape[1] / mask.shape[0] / (slide.width / slide.height)
    if not 1 / 1.02 <= skew <= 1.02:
        raise InputError(
            f"{path}: a mask of {mask.shape[1]} × {mask.shape[0]} pixels "
            f"does not have the shape of {slide.path.name}, {slide.width} × {slide.height}"
        )
    mpp = slide.mpp * max(slide.width / mask.shape[1], slide.height / mask.shape[0])
    height, width = shape_at(slide, mpp)
    if (height, width) != mask.shape:
        mask = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    return Tissue(mask, mpp)


def _from_geojson(path: Path, slide: Slide) -> Tissue:
    try:
        content = json.loads(path.read_text("utf-8-sig"))
        found = [shapely.make_valid(polygon) for polygon in _polygons(content)]
    except RecursionError:
        raise InputError(f"{path}: not valid GeoJSON: nested too deep") from None
    except (OSError, ValueError, shapely.GEOSException) as error:
        raise InputError(f"{path}: not valid GeoJSON: {first_line(error)}") from None
    polygons = [polygon for polygon in found if polygon.area > 0]
    if not polygons:
        raise InputError(f"{path}: the GeoJSON has no Polygon or MultiPolygon, or none with an area")
    mpp = slide.mpp * max(1.0, max(slide.height, slide.width) / _MASK_SIDE)
    mask = rasterio.features.rasterize(
        polygons, shape_at(slide, mpp), transform=Affine.scale(mpp / slide.mpp), dtype=np.uint8
    )
    return Tissue(mask.astype(bool), mpp)


def _polygons(content: Any) -> list[shapely.Polygon]:
    """The polygons of a GeoJSON document, or of a list of features, as QuPath also writes them.

    ValueError where it is none.
    """
    if content is None:
        return []
    if isinstance(content, list):
        return [polygon for item in content for polygon in _polygons(item)]
    kind = _member(content, "type")
    if kind == "FeatureCollection":
        return _polygons(_listed(_member(content, "features"), "features"))
    if kind == "Feature":
        return _polygons(_member(content, "geometry"))
    if kind == "GeometryCollection":
        return _polygons(_listed(_member(content, "geometries"), "geometries"))
    if kind == "Polygon":
        return [_polygon(_member(content, "coordinates"))]
    if kind == "MultiPolygon":
        parts = _listed(_member(content, "coordinates"), "coordinates")
        return [_polygon(rings) for rings in parts if rings is not None]
    return []


def _member(content: Any, name: str) -> Any:
    if not isinstance(content, dict) or name not in content:
        raise ValueError(f"{str(content)[:40]!r} has no {name}")
    return content[name]


def _listed(content: Any, name: str) -> list[Any]:
    if not isinstance(content, list):
        raise ValueError(f"{name} are {str(content)[:40]!r}, where a list is needed")
    return content


def _polygon(rings: Any) -> shapely.Polygon:
    """A polygon of rings, the first of which is its outline; an empty one of none."""
    if not rings:
        return shapely.Polygon()
    outline, *holes = (_ring(ring) for ring in _listed(rings, "coordinates"))
    return shapely.Polygon(outline, [hole for hole in holes if len(hole)])


def _ring(points: Any) -> np.ndarray:
    try:
        numbers = np.array(_listed(points, "coordinates"))
    except ValueError:  # lists of several lengths
        numbers = np.array("")
    if not numbers.size:
        return np.empty((0, 2))
    if numbers.ndim != 2 or numbers.shape[1] not in (2, 3) or numbers.dtype.kind not in "iuf":
        raise ValueError("coordinates are no rings of pairs of numbers")
    if not (np.abs(numbers) <= _FARTHEST).all():  # not a number is not, either
        raise ValueError(f"coordinates are not all within {_FARTHEST:.0e} level-0 pixels")
    return numbers[:, :2]
