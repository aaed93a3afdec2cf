"""The segmentation of a thumbnail into tissue, glass and artefacts, against a local background of glass."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from scipy import ndimage

from fseg_jax.slides.artefacts import (
    FOLD,
    INK,
    INK_AREA,
    INK_FRINGE,
    OUT_OF_FOCUS,
    find_blurred,
    find_folds,
    find_ink,
)
from fseg_jax.slides.glass import (
    COARSE_MPP,
    HIGH_FACTOR,
    LOW_LIMITS,
    SMOOTH_LIMITS,
    SMOOTH_NOISE,
    SPREAD,
    TEXTURED,
    UNSURE,
    estimate_glass,
    find_blank,
    fit_background,
    measure_haze,
    measure_texture,
)
from fseg_jax.slides.planes import (
    Colour,
    Mask,
    Plane,
    Planes,
    average,
    close_mask,
    compute_density,
    dilate,
    drop_small,
    erode,
    keep_seeded,
    make_odd,
    reduce_image,
    reduce_plane,
    repeat,
)

COARSE_PIXELS = 8_000_000  # at most, at which tissue is told from glass
FINEST_MPP = 4.0  # µm per pixel: a finer image is reduced to about this first
COVERED = 0.4  # share of a border pixel that tissue covers at least
GAP = 32.0  # µm: narrower gaps are closed where they are not clear glass
HOLE = 10_000.0  # µm²: smaller holes are filled, but for
LUMEN = 40.0  # µm: those that hold a disc of clear glass of this diameter,
FAT, CELLS = 0.4, 4  # but not where as many holes take up this share of the tissue in
FAT_HOLES = 4.0  # times HOLE, which cells of fat may have whose walls are torn
FAT_WINDOW = 320.0  # µm: a square of this side
SPECK = 10_000.0  # µm²: smaller pieces are dropped (a circle of 113 µm)
SPLINTER = 500.0  # µm²: smaller pieces that come off where the border is drawn anew are dropped
GREY = 0.72  # weakest channel's density over the strongest's: dust, shadows and edges of glass have more
USUAL_WHITE = 245.0  # grey level of glass where a picture has none
DARK, BORDER, BLACK = 45.0, 20.0, 12.0  # grey levels: a black ground is below, a border, what was not scanned


class TissueMasks(NamedTuple):
    """What a thumbnail shows, pixel by pixel.

    Attributes:
        tissue: bool (h, w), tissue; folded and blurred parts with it, ink on it not.
        ink: bool (h, w), pen marks, on glass and on tissue; the black borders of some scanners are none.
        folded: bool (h, w), tissue that lies double.
        blurred: bool (h, w), tissue out of focus.
        glass: (3,), the usual colour of glass in grey levels.
    """

    tissue: Mask
    ink: Mask
    folded: Mask
    blurred: Mask
    glass: Colour

    def number_artefacts(self) -> UInt8[np.ndarray, "h w"]:
        """Number the artefacts by their kinds (``artefacts.KINDS``); 0 where there is none."""
        numbers = np.zeros(self.tissue.shape, np.uint8)
        for mask, kind in ((self.blurred, OUT_OF_FOCUS), (self.folded, FOLD), (self.ink, INK)):
            numbers[mask] = kind
        return numbers


def segment_tissue(
    image: UInt8[np.ndarray, "h w 3"], mpp: float, scanned: Bool[np.ndarray, "h w"] | None = None
) -> TissueMasks:
    """Tell tissue from glass, haze, ink, shadows and what was not scanned.

    Args:
        image: The picture.
        mpp: Its µm per pixel.
        scanned: Which of its pixels were scanned, where the file says so; None: all, or it does not say.
    """
    if scanned is None or scanned.all():
        return _segment_scanned(image, mpp, np.ones(image.shape[:2], bool))
    if not scanned.any():
        nothing = np.zeros(image.shape[:2], bool)
        return TissueMasks(nothing, nothing, nothing, nothing, np.full(3, USUAL_WHITE, np.float32))
    # Whatever colour a file gives to what was not scanned, it looks like blank paper from here on.
    masks = _segment_scanned(np.where(scanned[..., None], image, np.uint8(255)), mpp, scanned)
    tissue, ink, folded, blurred = (mask & scanned for mask in masks[:4])
    return TissueMasks(tissue, ink, folded, blurred, masks.glass)


def _segment_scanned(
    image: UInt8[np.ndarray, "h w 3"], mpp: float, scanned: Bool[np.ndarray, "h w"]
) -> TissueMasks:
    """Reduce an image that is finer than needed, and choose how coarse tissue is told from glass."""
    height, width = image.shape[:2]
    most = max(1, min(height, width) // 32)  # a small picture is not reduced to nothing
    finer = min(round(FINEST_MPP / mpp), most)
    if mpp < 0.7 * FINEST_MPP and finer > 1:
        planes = np.clip(np.rint(reduce_image(image, finer)), 0, 255).astype(np.uint8)
        smaller = np.ascontiguousarray(planes.transpose(1, 2, 0))
        result = _segment_scanned(smaller, mpp * finer, reduce_plane(scanned, finer) > 0)
        tissue, ink, folded, blurred = (repeat(mask, finer)[:height, :width] for mask in result[:4])
        return TissueMasks(tissue, ink, folded, blurred, result.glass)
    step = max(round(COARSE_MPP / mpp), math.ceil(math.sqrt(height * width / COARSE_PIXELS)))
    step = min(max(1, step), most)
    return _segment(image, scanned, step, mpp * step)


def _segment(
    image: UInt8[np.ndarray, "H W 3"], scanned: Bool[np.ndarray, "H W"], step: int, mpp: float
) -> TissueMasks:
    """Find tissue on means of ``step`` × ``step`` pixels, of ``mpp`` µm, and draw its border in all."""
    height, width = image.shape[:2]
    levels = reduce_image(image, step)
    darkest, brightest = levels.min(axis=0), levels.max(axis=0)
    share = reduce_plane(scanned, step)
    scanned, whole = share > 0, share > 0.999  # in part, or all of it
    del share
    blank = find_blank(darkest) | ~whole
    dark = float((brightest[scanned] < DARK).mean())
    grey = bool((brightest[scanned] - darkest[scanned] <= 3).mean() > 0.98)
    black, border = brightest < BLACK, brightest < BORDER
    density = compute_density(levels)
    # Every usual stain absorbs green.
    texture = measure_texture(0.5 * density[1] + 0.25 * (density[0] + density[2]), mpp)
    noise, glass = estimate_glass(levels, darkest, brightest, texture, blank, whole)
    if glass is None:
        if 0.1 < dark < 0.99:
            light = np.where(scanned, brightest, np.float32(0))
            return _segment_on_black(light, (height, width), step, mpp)
        glass = np.full(3, compute_density(np.asarray(USUAL_WHITE, np.float32)), np.float32)
    del levels, darkest, brightest
    limit = float(np.clip(SMOOTH_NOISE * noise, *SMOOTH_LIMITS))
    background = fit_background(density, texture, glass, noise, blank | black, mpp)
    over = np.subtract(density, background.density, out=density)
    np.maximum(over, 0, out=over)
    strongest, weakest = over.max(axis=0), over.min(axis=0)
    score = strongest if grey else strongest - 0.5 * weakest
    low = np.clip(SPREAD * background.spread, *LOW_LIMITS)
    low += UNSURE * measure_haze(background.density, glass)
    ink = find_ink(over, texture, mpp) | black
    never = ink | (blank & whole) | ~scanned
    score[never] = 0
    mask = _threshold_density(score, low, texture, limit)
    mask = _close_gaps(mask, score, low, mpp) & ~never
    if not grey:
        mask = _drop_grey(mask, strongest, weakest)
    area = np.count_nonzero(scanned) * mpp**2
    mask = _fill_holes(mask, score < low, never, min(HOLE, 0.05 * area), mpp)
    mask = drop_small(mask, min(SPECK, 0.01 * area) / mpp**2)
    half = min(2, max(1, min(mask.shape) // 32))
    folded = find_folds(
        reduce_plane(mask, half) > 0.99, np.stack([reduce_plane(p, half) for p in over]), mpp * half
    )
    folded = repeat(folded, half)[: mask.shape[0], : mask.shape[1]]
    blurred = find_blurred(mask, over, mpp)
    fine = _redraw_border(mask, score, low, background.density, image, step, grey, never)
    fine = drop_small(fine, min(SPLINTER, 0.01 * area) * (step / mpp) ** 2)
    ink = _drop_borders(ink, black, border, mpp)
    ink, folded, blurred = (repeat(part, step)[:height, :width] for part in (ink, folded, blurred))
    ink &= ~fine
    return TissueMasks(fine, ink, folded & fine, blurred & fine, 256 * 10**-glass - 1)


def _drop_borders(ink: Mask, black: Mask, dark: Mask, mpp: float) -> Mask:
    """Drop from what is taken as ink what was not scanned: large black areas, borders, and their rims."""
    unscanned = drop_small(black, INK_AREA / mpp**2) if black.any() else black
    rows, columns = dark.mean(axis=1) > 0.5, dark.mean(axis=0) > 0.5
    unscanned = unscanned | (dark & (rows[:, None] | columns))
    return ink & ~dilate(unscanned, round(INK_FRINGE / mpp) + 2) if unscanned.any() else ink


def _threshold_density(score: Plane, low: Plane, texture: Plane, limit: float) -> Mask:
    """Find where density is above the low threshold and joined to a place that is surely tissue."""
    around = average(score, 3)
    sure = around > HIGH_FACTOR * low
    sure |= (texture > TEXTURED * limit) & (around > 0.7 * low)
    return keep_seeded(score > low, sure)


def _close_gaps(mask: Mask, score: Plane, low: Plane, mpp: float) -> Mask:
    """Close narrow gaps: those of a pixel, and wider ones where they are not clear glass."""
    radius = max(1, round(GAP / mpp / 2))
    mask = close_mask(mask, 1)
    gaps = close_mask(mask, radius) & ~mask
    if not gaps.any():
        return mask
    beside = (~mask).astype(np.float32)
    pale = average(score * beside, 3) > 0.6 * low * average(beside, 3)
    return np.asarray(mask | (gaps & pale))


def _drop_grey(mask: Mask, strongest: Plane, weakest: Plane) -> Mask:
    """Drop what absorbs all colours alike, unless tissue surrounds it: dust, shadows, edges, bubbles."""
    grey = mask & (average(weakest, 3) > GREY * average(strongest, 3))
    if grey.any():
        labels, count = ndimage.label(grey, np.ones((3, 3)))
        rim = dilate(grey, 1) & ~grey
        beside = ndimage.maximum_filter(labels, 3)[rim]  # the patch that a pixel of the rim lies beside
        around = np.bincount(beside, minlength=count + 1)
        tissue = np.bincount(beside, mask[rim], count + 1)
        alone = tissue < 0.6 * around
        alone[0] = False
        mask = mask & ~alone[labels]
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    pieces = labels[mask]
    least, most = (np.bincount(pieces, part[mask], count + 1) for part in (weakest, strongest))
    kept = least < GREY * most
    kept[0] = False
    return np.asarray(kept[labels])


def _fill_holes(mask: Mask, clear: Mask, never: Mask, area: float, mpp: float) -> Mask:
    """Fill small holes, but not lumens: a hole in which a few tokens see nothing but glass.

    Between fat cells there is nothing else, and fat is tissue: where such holes lie close together they are
    filled.
    """
    labels, count = ndimage.label(~mask)
    size = np.bincount(labels.ravel(), minlength=count + 1)
    small = size < FAT_HOLES * area / mpp**2
    small[0] = False
    small[labels[never]] = False
    if not small.any():
        return mask
    glass = erode(clear & ~mask, max(1, int(LUMEN / mpp / 2)))
    lumen = np.zeros(count + 1, bool)
    lumen[labels[glass]] = True
    lumen = small & (lumen | (size >= area / mpp**2))
    if lumen.any():
        window = make_odd(FAT_WINDOW / mpp)
        inside = lumen[labels]
        holes = labels[inside]
        share = average(inside.astype(np.float32), window)
        enough = share > FAT * (share + average(mask.astype(np.float32), window))
        number = np.zeros(mask.shape, np.float32)
        number[inside] = 1 / size[holes]
        enough &= average(number, window) * window**2 >= CELLS
        lumen &= np.bincount(holes, enough[inside], count + 1) < 0.5 * size
    return np.asarray(mask | (small & ~lumen)[labels])


def _redraw_border(
    mask: Mask,
    score: Plane,
    low: Plane,
    background: Planes,
    image: UInt8[np.ndarray, "H W 3"],
    step: int,
    grey: bool,
    never: Mask,
) -> Bool[np.ndarray, "H W"]:
    """Draw the border anew at the image's own resolution: where tissue covers enough of a pixel."""
    height, width = image.shape[:2]
    inner = erode(mask, 1)
    band = dilate(mask, 1) & ~inner & ~never
    y, x = band.nonzero()
    usual = np.zeros(len(y), np.float32)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            at = (np.clip(y + dy, 0, mask.shape[0] - 1), np.clip(x + dx, 0, mask.shape[1] - 1))
            np.maximum(usual, score[at] * mask[at], out=usual)
    needed = np.clip(COVERED * usual, low[y, x], 0.2)
    if step == 1:
        inner[y, x] = mask[y, x] & (score[y, x] > needed)
        return inner
    fine = repeat(inner, step)[:height, :width]
    glass = background[:, y, x]
    value = np.zeros((step, step, len(y)), np.float32)
    places = []
    for i in range(step):
        for j in range(step):
            at = (np.minimum(y * step + i, height - 1), np.minimum(x * step + j, width - 1))
            over = np.maximum(compute_density(image[at].T.astype(np.float32)) - glass, 0)
            value[i, j] = over.max(axis=0) - (0.0 if grey else 0.5) * over.min(axis=0)
            fine[at] = value[i, j] > needed
            places.append(at)
    rows, columns = (np.concatenate(parts) for parts in zip(*places, strict=True))
    # Single pixels at the border follow their neighbours.
    votes = np.zeros(len(rows), np.int8)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            votes += fine[np.clip(rows + dy, 0, height - 1), np.clip(columns + dx, 0, width - 1)]
    fine[rows, columns] = votes >= 5
    return fine


def _segment_on_black(light: Plane, shape: tuple[int, int], step: int, mpp: float) -> TissueMasks:
    """Find what shines on a black ground: fluorescence, or tissue that fills a black frame."""
    dark = light[light < DARK]
    ground = float(np.median(dark))
    spread = 1.4826 * float(np.median(np.abs(dark - ground)))
    rise = max(5 * spread, 6.0)
    mask = keep_seeded(light > ground + rise, light > ground + 2 * rise)
    area = mask.size * mpp**2
    nothing = np.zeros(mask.shape, bool)
    mask = _fill_holes(close_mask(mask, 1), light <= ground + rise, nothing, min(HOLE, 0.05 * area), mpp)
    mask = drop_small(mask, min(SPECK, 0.01 * area) / mpp**2)
    fine, none = (repeat(part, step)[: shape[0], : shape[1]] for part in (mask, nothing))
    return TissueMasks(fine, none, none, none, np.full(3, ground, np.float32))
