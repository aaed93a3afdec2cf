"""The tissue mask of a slide: found on a thumbnail, or read from a mask image or a GeoJSON file."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import shapely
from jaxtyping import Bool, Float32, Int64, UInt8
from PIL import Image

from fseg_jax.errors import InputError, first_line
from fseg_jax.slides.artefacts import INK, KINDS
from fseg_jax.slides.bounds import check_frame, explain_frame
from fseg_jax.slides.masks import read_marked
from fseg_jax.slides.reader import Slide, Thumbnail, compute_shape, read_thumbnail
from fseg_jax.slides.tissue_outlines import fill_artefacts, fill_tissue, is_of_artefacts, parse_outlines
from fseg_jax.slides.tissue_segmentation import segment_tissue

_THUMBNAIL_MPP = 4.0  # µm per pixel
_LEVEL_MPP = (3.0, 8.5)  # µm per pixel of a level of the slide that is taken as it is
_MIN_SHORT_SIDE = 256  # pixels of the thumbnail's shorter side, where the slide has as many
_MAX_PIXELS = 32_000_000  # of the thumbnail
_MAX_OUTLINE_SIDE = 8192  # pixels of the longer side of a mask that is drawn from outlines
_MAX_SKEW = 1.02  # factor by which a mask's aspect ratio may differ from the slide's


class Tissue(NamedTuple):
    """A tissue mask that covers a slide.

    Attributes:
        mask: True on tissue; its top left corner is the slide's.
        mpp: µm per mask pixel.
        artefacts: The kinds of artefacts (``artefacts.KINDS``), on tissue and beside it, 0 where there is
            none; None where nobody has looked for them.
        scanned: What of the slide was scanned; None: all of it, or its file does not say.
    """

    mask: Bool[np.ndarray, "height width"]
    mpp: float
    artefacts: UInt8[np.ndarray, "height width"] | None = None
    scanned: Bool[np.ndarray, "height width"] | None = None

    @property
    def fraction(self) -> float:
        """The share of what was scanned that is tissue."""
        return int(np.count_nonzero(self.mask)) / self._count_scanned()

    def measure_share(self, kind: int) -> float:
        """Measure the share of what was scanned that is a kind of artefact."""
        if self.artefacts is None:
            return 0.0
        return int(np.count_nonzero(self.artefacts == kind)) / self._count_scanned()

    def _count_scanned(self) -> int:
        return max(1, self.mask.size if self.scanned is None else int(np.count_nonzero(self.scanned)))

    def drop_unscanned(self, slide: Slide) -> "Tissue":
        """Leave what was never scanned out of all masks."""
        scanned = slide.read_scanned(self.mpp)
        if scanned is None:
            return self
        artefacts = None if self.artefacts is None else self.artefacts * scanned
        return Tissue(self.mask & scanned, self.mpp, artefacts, scanned)

    def count_artefacts(self) -> Int64[np.ndarray, " kinds+1"]:
        """Count the mask's pixels of each kind of artefact, those of none first; nobody looked: no pixels."""
        if self.artefacts is None:
            return np.zeros(len(KINDS) + 1, np.int64)
        return np.array(
            [np.count_nonzero(self.artefacts == kind) for kind in range(len(KINDS) + 1)], np.int64
        )

    def drop_artefacts(self) -> "Tissue":
        """Leave artefacts out of the mask."""
        if self.artefacts is None or not (self.artefacts > 0).any():
            return self
        return self._replace(mask=self.mask & (self.artefacts == 0))

    def crop(self, y: int, x: int, height: int, width: int, mpp: float) -> Bool[np.ndarray, "height width"]:
        """Resample the mask in a box whose corner and size are in pixels of ``mpp`` µm.

        The mask is interpolated linearly between its pixels; tissue is where it is 0.5 or more. Pixels past
        the slide are False.
        """
        rows, rows_inside = _interpolate_axis(y, height, mpp / self.mpp, self.mask.shape[0])
        columns, columns_inside = _interpolate_axis(x, width, mpp / self.mpp, self.mask.shape[1])
        top, left = rows.before[0], columns.before[0]
        part = self.mask[top : rows.after[-1] + 1, left : columns.after[-1] + 1]
        if part.all() or not part.any():  # as most boxes are
            return np.asarray(rows_inside[:, None] & columns_inside & part[0, 0])
        part = _interpolate(part.astype(np.float32), rows, top, 0)
        inside = _interpolate(part, columns, left, 1) >= 0.5
        inside &= rows_inside[:, None]
        inside &= columns_inside
        return inside

    def crop_artefacts(
        self, y: int, x: int, height: int, width: int, mpp: float
    ) -> UInt8[np.ndarray, "height width"]:
        """Resample the kinds of artefacts in a box, as ``crop`` does tissue: each pixel takes the nearest.

        Where nobody has looked for them, there are none.
        """
        if self.artefacts is None:
            return np.zeros((height, width), np.uint8)
        at, inside = [], []
        for start, count, size in zip((y, x), (height, width), self.artefacts.shape, strict=True):
            neighbours, is_inside = _interpolate_axis(start, count, mpp / self.mpp, size)
            at.append(np.where(neighbours.weight < 0.5, neighbours.before, neighbours.after))
            inside.append(is_inside)
        if not self.artefacts[at[0][0] : at[0][-1] + 1].any():
            return np.zeros((height, width), np.uint8)
        nearest = self.artefacts[at[0][:, None], at[1]]
        return np.where(inside[0][:, None] & inside[1], nearest, np.uint8(0))


class _Neighbours(NamedTuple):
    """The two mask pixels between which each pixel of a box is interpolated, along one axis.

    Attributes:
        before: Index of the first of them.
        after: Index of the second; the same at the mask's edge.
        weight: Weight of the second; the first has the rest.
    """

    before: Int64[np.ndarray, " pixels"]
    after: Int64[np.ndarray, " pixels"]
    weight: Float32[np.ndarray, " pixels"]


def _interpolate_axis(
    start: int, count: int, scale: float, size: int
) -> tuple[_Neighbours, Bool[np.ndarray, " pixels"]]:
    """Find the neighbours of ``count`` pixels among ``size`` mask pixels, and which pixels are on the slide.

    ``scale`` is in mask pixels per pixel.
    """
    position = (np.arange(start, start + count) + 0.5) * scale
    # A pixel belongs to the slide if it begins on it: the last one may be covered in part.
    inside = (position >= 0) & (position - 0.5 * scale < size)
    position = np.clip(position - 0.5, 0, size - 1).astype(np.float32)
    before = np.floor(position).astype(np.int64)
    return _Neighbours(before, np.minimum(before + 1, size - 1), position - before), inside


def _interpolate(
    part: Float32[np.ndarray, "h w"], at: _Neighbours, first: int, axis: int
) -> Float32[np.ndarray, "h2 w2"]:
    """Interpolate along an axis of a part of the mask that begins at the mask's pixel ``first`` there."""
    weight = at.weight[:, None] if axis == 0 else at.weight
    before, after = (np.take(part, index - first, axis, mode="clip") for index in (at.before, at.after))
    before *= 1 - weight
    after *= weight
    before += after
    return before


def choose_tissue(slide: Slide, how: str, overview: Thumbnail | None = None) -> Tissue:
    """Make a slide's tissue mask as a setting says: ``"find"``, ``"all"``, or the path of a file.

    Args:
        slide: The slide.
        how: The setting.
        overview: What ``read_overview`` gave, where it was read.
    """
    if how == "find":
        return find_tissue(slide, overview)
    return take_whole_slide(slide) if how == "all" else load_tissue(how, slide)


def read_overview(slide: Slide) -> Thumbnail:
    """Read the thumbnail that tissue is found on, of about 4 µm per pixel."""
    return read_thumbnail(slide, _choose_thumbnail_side(slide))


def find_tissue(slide: Slide, overview: Thumbnail | None = None) -> Tissue:
    """Find the tissue of an H&E or IHC slide on its overview, which is read if it is not given."""
    image, mpp = overview or read_overview(slide)
    scanned = slide.read_scanned(mpp)
    masks = segment_tissue(image, mpp, scanned)
    return Tissue(masks.tissue, mpp, masks.number_artefacts(), scanned)


def describe_absence(tissue: Tissue) -> str:
    """Say that no tissue was found, and what was found in its place."""
    ink = tissue.measure_share(INK)
    return f"no tissue found, only ink on {ink:.0%} of the slide" if ink >= 0.005 else "no tissue found"


def take_whole_slide(slide: Slide) -> Tissue:
    """Make a mask that takes the whole slide as tissue, but for what was never scanned."""
    mpp = slide.mpp * max(1.0, max(slide.height, slide.width) / _choose_thumbnail_side(slide))
    return Tissue(np.ones(compute_shape(slide, mpp), bool), mpp).drop_unscanned(slide)


def _choose_thumbnail_side(slide: Slide) -> int:
    """Choose the pixels of the thumbnail's longer side: where a level fits, its own, to read it as it is."""
    longer, shorter = max(slide.height, slide.width), min(slide.height, slide.width)
    fitting = [mpp for mpp in slide.level_mpps if _LEVEL_MPP[0] <= mpp <= _LEVEL_MPP[1]]
    wanted = longer * slide.mpp / (min(fitting) if fitting else _THUMBNAIL_MPP)
    largest = math.sqrt(_MAX_PIXELS * longer / shorter)
    return max(1, round(min(max(wanted, longer / shorter * _MIN_SHORT_SIDE), largest, longer)))


def load_tissue(path: str | Path, slide: Slide) -> Tissue:
    """Read a slide's tissue mask from a file.

    A mask image marks tissue by values other than 0 (a JPEG by values above half: ``slides/masks.py``) and
    covers the slide; its aspect ratio may differ by 2 %. GeoJSON marks tissue and artefacts by polygons in
    level-0 pixels (``tissue_outlines.py``); where it marks artefacts alone, tissue is found. Artefacts are
    those of the file, and none are looked for.

    What was never scanned is no tissue, whatever the file says.

    Raises:
        InputError: The file is neither, is damaged, or marks no tissue on the slide.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    looks_like_json = start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[")
    if path.suffix.lower() in (".json", ".geojson") or looks_like_json:
        tissue = _read_geojson(path, slide)
    else:
        tissue = _read_mask_image(path, slide)
    tissue = tissue.drop_unscanned(slide)
    if not tissue.mask.any():
        raise InputError(f"{path}: marks no tissue inside {slide.path.name}{explain_frame(slide.frame)}")
    return tissue


def _read_mask_image(path: Path, slide: Slide) -> Tissue:
    mask = read_marked(path, "a mask image or GeoJSON")
    skew = mask.shape[1] / mask.shape[0] / (slide.width / slide.height)
    if not 1 / _MAX_SKEW <= skew <= _MAX_SKEW:
        raise InputError(
            f"{path}: a mask of {mask.shape[1]} × {mask.shape[0]} pixels does not have the shape of "
            f"{slide.path.name}, {slide.width} × {slide.height}{explain_frame(slide.frame)}"
        )
    mpp = slide.mpp * max(slide.width / mask.shape[1], slide.height / mask.shape[0])
    height, width = compute_shape(slide, mpp)
    if (height, width) != mask.shape:
        mask = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    return Tissue(mask, mpp)


def _read_geojson(path: Path, slide: Slide) -> Tissue:
    try:
        content = json.loads(path.read_text("utf-8-sig"))
        outlines = parse_outlines(content)
    except RecursionError:
        raise InputError(f"{path}: not valid GeoJSON: nested too deep") from None
    except (OSError, ValueError, shapely.GEOSException) as error:
        raise InputError(f"{path}: not valid GeoJSON: {first_line(error)}") from None
    check_frame(path, content, slide.origin)
    if outlines.of_canvas and slide.origin != (0, 0):
        raise InputError(
            f"{path}: is as TRIDENT, HEST and GrandQC write outlines, which count from the corner of the "
            f"canvas that {slide.path.name} is a part of: give --frame canvas"
        )
    marks_artefacts = bool(outlines.artefacts) or is_of_artefacts(content)
    if not outlines.tissue and not marks_artefacts:
        raise InputError(
            f"{path}: the GeoJSON has no Polygon or MultiPolygon, or none with an area, "
            "but for background, glass and what is to be ignored"
        )
    if outlines.tissue:
        mpp = slide.mpp * max(1.0, max(slide.height, slide.width) / _MAX_OUTLINE_SIDE)
        tissue = Tissue(fill_tissue(outlines.tissue, compute_shape(slide, mpp), mpp / slide.mpp), mpp)
    else:
        tissue = find_tissue(slide)
    if not marks_artefacts:
        return tissue
    artefacts = fill_artefacts(outlines.artefacts, tissue.mask.shape, tissue.mpp / slide.mpp)
    return tissue._replace(artefacts=artefacts)
