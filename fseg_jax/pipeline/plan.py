"""Lay out a slide: at which resolution it is worked on, which tiles it has, and which of them hold tissue."""

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8

from fseg_jax.codebook import Codebook
from fseg_jax.encoders.encoder import EncoderCard
from fseg_jax.errors import InputError
from fseg_jax.methods import fseg
from fseg_jax.pipeline.slide_facts import SlideFacts, slide_facts
from fseg_jax.slides.bounds import Frame
from fseg_jax.slides.reader import Slide, compute_shape, make_picture
from fseg_jax.slides.stain_normalization import Gains, measure_slide
from fseg_jax.slides.tiles import TileGrid, find_tissue_tiles, make_grid
from fseg_jax.slides.tissue import Tissue, choose_tissue, describe_absence, read_overview

_log = logging.getLogger(__name__)

FIGURE_SIDE = 1600  # pixels of the longer side of the picture of a whole slide
_SMOOTHING_TOKENS = 1.0  # the standard deviation of the Gaussian by which W is averaged
_MIN_REGION_TOKENS = 6  # the area below which a region is given to its neighbours
_MAX_ENLARGEMENT = 4  # a finer working resolution than this shows nothing more

Tile = tuple[int, int]  # row and column in the grid


@dataclass(frozen=True)
class Settings:
    """How to segment a slide. All but ``batch`` and ``threads`` affect the result and are in its record.

    Attributes:
        k: Clusters to fit on the slide itself where there is no codebook.
        mode: ``"fixed"`` or ``"assign"`` (``methods.fseg``).
        resize: ``"bilinear"`` or ``"nearest"``.
        concepts: Concepts of each tile in the mode ``"assign"``.
        mpp: Working resolution in µm per pixel; None: the codebook's, or else the encoder's.
        tile: Side of a tile in pixels; None: the encoder's.
        halo: Overlap with the next tile, as a fraction of the tile.
        tissue: ``"find"``, ``"all"``, or the path of a mask or outline.
        stain_normalization: Whether the encoder sees slides in the colours of a standard stain; None: as the
            codebook's tiles were seen, and without a codebook as scanned.
        artefacts: Whether ink, folds and what is out of focus ``"keep"`` their labels, where they are tissue,
            or are left out (``"drop"``). No centre is fitted on them in either case.
        smoothing: Standard deviation, in µm, of the Gaussian by which W is averaged, within tissue and over
            tokens that are alike (``numerics.smoothing``); 0: none; None: one token.
        min_region: Area, in µm², below which a region is given to its neighbours; 0: none; None: that of 6
            tokens.
        mixtures: Centres of mixed tokens that a codebook fitted on the slide gets besides. A codebook that is
            given has its own. 0: neither are used.
        seed: Random seed.
        mpp_override: µm per pixel of the slide's finest level, in place of what its file says.
        frame: What coordinates count from, where the file is a scan on a larger canvas (``slides.bounds``).
        series: Which image of the file to read, where it has several; None: the largest.
        features: Dtype that features are rounded to first.
        batch: Tiles that go to the encoder at once; None: by the device (``batching``).
        threads: Threads that decode; None: by the device.
    """

    k: int = 8
    mode: fseg.Mode = "fixed"
    resize: fseg.Resize = "bilinear"
    concepts: int = fseg.CONCEPTS
    mpp: float | None = None
    tile: int | None = None
    halo: float = 1 / 16
    tissue: str = "find"
    stain_normalization: bool | None = None
    artefacts: Literal["keep", "drop"] = "keep"
    smoothing: float | None = None
    min_region: float | None = None
    mixtures: int = 4
    seed: int = 0
    mpp_override: float | None = None
    frame: Frame = "bounds"
    series: int | None = None
    features: Literal["float32", "bfloat16"] = "float32"
    batch: int | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Plan:
    """A slide laid out in tiles.

    Attributes:
        name: The slide's name, with which its outputs begin.
        slide: Which file it is.
        mpp: Working resolution in µm per pixel.
        grid: The tiles over the slide at that resolution.
        tissue: Where tissue is.
        tissue_tiles: Which tiles of the grid hold tissue.
        image: A picture of the whole slide.
        image_mpp: µm per pixel of that picture.
        gains: What the encoder sees the optical densities of red, green and blue multiplied by; None: stains
            are not normalized.
    """

    name: str
    slide: SlideFacts
    mpp: float
    grid: TileGrid
    tissue: Tissue
    tissue_tiles: Bool[np.ndarray, "rows columns"]
    image: UInt8[np.ndarray, "h w 3"]
    image_mpp: float
    gains: Gains | None = None

    def tiles(self) -> list[Tile]:
        """List the tiles that hold tissue, row by row."""
        return [(int(r), int(c)) for r, c in np.argwhere(self.tissue_tiles)]

    def core_mask(self, row: int, column: int) -> Bool[np.ndarray, "h w"]:
        """Mask the tokens of a whole tile whose centres lie in its core, on the slide and on tissue."""
        grid = self.grid
        stride = grid.stride
        side = grid.tile // stride
        y, x, height, width = grid.locate_core(row, column)
        mask = np.zeros((side, side), bool)
        h, w, begin = -(-height // stride), -(-width // stride), grid.halo // stride
        mask[begin : begin + h, begin : begin + w] = self.tissue.crop(
            y // stride, x // stride, h, w, self.mpp * stride
        )
        return mask


def lay_out(slide: Slide, card: EncoderCard, settings: Settings, codebook: Codebook | None) -> Plan:
    """Find a slide's tissue and lay tiles over it.

    Raises:
        InputError: The slide has no tissue, or the settings do not fit the slide or the encoder.
    """
    mpp = choose_mpp(card, settings, codebook)
    is_normalized = choose_stain_normalization(settings.stain_normalization, codebook)
    warn_if_mpp_differs(slide.path.name, mpp, codebook)
    height, width = compute_shape(slide, mpp)
    if mpp < slide.mpp / _MAX_ENLARGEMENT:
        raise InputError(
            f"--mpp {mpp:g}: {slide.path.name} has {slide.mpp:.4g} µm per pixel, and there is nothing to see "
            f"below {slide.mpp / _MAX_ENLARGEMENT:.3g}"
        )
    tile = card.tile if settings.tile is None else settings.tile
    grid = make_grid(height, width, card.stride, tile, settings.halo)
    if settings.mode == "assign":
        fseg.check_concepts(settings.concepts, (tile // card.stride) ** 2)
    with ThreadPoolExecutor(1, thread_name_prefix="fseg-picture") as pool:
        overview = read_overview(slide) if settings.tissue == "find" else None
        picture = pool.submit(make_picture, slide, FIGURE_SIDE, overview)
        tissue = choose_tissue(slide, settings.tissue, overview)
    tissue_tiles = find_tissue_tiles(grid, tissue.mask, tissue.mpp, mpp)
    if not tissue_tiles.any():
        raise InputError(
            f"{slide.path}: {describe_absence(tissue)}; --no-tissue segments everything, "
            "--tissue FILE says where it is"
        )
    gains = measure_slide(slide, tissue.drop_artefacts(), mpp) if is_normalized else None
    return Plan(slide.name, slide_facts(slide), mpp, grid, tissue, tissue_tiles, *picture.result(), gains)


def choose_mpp(card: EncoderCard, settings: Settings, codebook: Codebook | None) -> float:
    """Choose the working resolution: as set, or the codebook's, or the encoder's."""
    codebook_mpp = codebook.provenance.mpp if codebook else None
    return settings.mpp if settings.mpp is not None else codebook_mpp or card.mpp


def choose_stain_normalization(wanted: bool | None, codebook: Codebook | None) -> bool:
    """Choose whether stains are normalized: as the codebook's were; a slide fitted alone, only where set.

    Raises:
        InputError: The codebook's tiles were seen otherwise than is wanted.
    """
    if codebook is None or not codebook.provenance.encoder:
        return bool(wanted)
    fitted = codebook.provenance.stain_normalization
    if wanted not in (None, fitted):
        raise InputError(
            f"--{'no-' if fitted else ''}stain-normalization: the codebook was fitted with"
            f"{'' if fitted else 'out'} it; leave the option out, or fit another codebook"
        )
    return fitted


def choose_smoothing(settings: Settings, mpp: float, stride: int) -> float:
    """Choose by how many µm W is smoothed: as set, or by one token."""
    return _SMOOTHING_TOKENS * mpp * stride if settings.smoothing is None else settings.smoothing


def choose_mixtures(settings: Settings, codebook: Codebook) -> Float[np.ndarray, "m c"] | None:
    """Choose the centres of mixed tokens: the codebook's, unless the settings want none."""
    return codebook.mixtures if settings.mixtures else None


def choose_min_region(settings: Settings, mpp: float, stride: int) -> float:
    """Choose below how many µm² a region is given to its neighbours: as set, or the area of 6 tokens."""
    return _MIN_REGION_TOKENS * (mpp * stride) ** 2 if settings.min_region is None else settings.min_region


def check_min_region(plan: Plan, settings: Settings) -> None:
    """Check the least area of regions, where one is set.

    Raises:
        InputError: It is none, or larger than the slide's tissue.
    """
    min_region = settings.min_region
    if min_region is None:
        return
    if not 0 <= min_region < math.inf:
        raise InputError(f"--min-region {min_region:g}: give an area in µm², 0 or more")
    area = float(np.count_nonzero(plan.tissue.mask)) * plan.tissue.mpp**2
    if min_region > area:
        raise InputError(
            f"--min-region {min_region:g}: {plan.name} has {area:.0f} µm² of tissue; choose a smaller area"
        )


def warn_if_mpp_differs(name: str, mpp: float, codebook: Codebook | None) -> None:
    """Warn where a codebook was made at another resolution than it is used at."""
    codebook_mpp = codebook.provenance.mpp if codebook else None
    if codebook_mpp and abs(mpp - codebook_mpp) > 0.01 * codebook_mpp:
        _log.warning(
            "%s: the codebook was made at %g µm per pixel, and is used at %g", name, codebook_mpp, mpp
        )
