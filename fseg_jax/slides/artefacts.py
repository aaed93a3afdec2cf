"""Artefacts on a slide: pen ink, folds, and parts out of focus."""

import numpy as np
from scipy import ndimage

from fseg_jax.slides.glass import CELL, COARSE_MPP
from fseg_jax.slides.planes import (
    Mask,
    Plane,
    Planes,
    average,
    close_mask,
    dilate,
    drop_small,
    erode,
    fit_surface,
    keep_seeded,
    reduce_plane,
    repeat,
)

# The kinds, as a mask of artefacts numbers them: 0 is none. Where several overlap, the first one counts.
KINDS = ("ink", "fold", "out of focus", "other")
INK, FOLD, OUT_OF_FOCUS, OTHER = range(1, 5)  # other: never found, but marked in a file

INK_AREA = 4_000.0  # µm²: smaller patches of an ink's colour are taken as tissue
INK_TEXTURE = 0.2  # standard deviation over density, less of which ink of an ink's colour has
INK_FRINGE = 26.0  # µm that ink bleeds past what is recognised as ink
STROKE_AREA = 20_000.0  # µm²: an even and dense patch, which may be ink of a stain's colour, is as large
EVEN_REACH = 26.0  # µm: strokes are twice as wide at least
EVEN = 0.025  # standard deviation over mean of density; less is ink
# Artefacts. Detail: density's energy within 24 µm over that within 136 µm.
BLURRED = 0.1  # times the detail that the slide's tissue has, or less, is out of focus
BLURRED_AREA = 60_000.0  # µm², or more
BLURRED_GAP = 5  # cells: half of the width of an even place between blurred ones
CONTRAST = 0.006  # optical density: where tissue varies by less, its focus cannot be told
FOLDED = 1.6  # times the density of tissue round it, or more, in the same colour
FOLD_WINDOW = 512.0  # µm, the cells within which the usual density is taken
FOLDED_ALIKE = 0.997  # cosine of the angle between the two colours, or more
FOLDED_DENSITY = 0.4  # optical density of the strongest channel, or more
FOLDED_LENGTH, FOLDED_SHAPE = 300.0, 5.0  # µm, or more; times its width, or more


def find_ink(over: Planes, texture: Plane, mpp: float) -> Mask:
    """Find pen marks: colours that no usual stain has, and even, dense strokes of any colour."""
    height, width = texture.shape
    step = max(1, min(round(2 * COARSE_MPP / mpp), min(height, width) // 32))
    over = np.stack([reduce_plane(plane, step) for plane in over])
    texture, mpp = reduce_plane(texture, step), mpp * step
    red, green, blue = over
    strongest, weakest = over.max(axis=0), over.min(axis=0)
    stained = int((strongest > 0.1).sum())
    ink = np.zeros(red.shape, bool)
    smooth = texture < INK_TEXTURE * strongest
    for strong, weak in (
        # Green and blue pens; the second term is blue over stained tissue. Haematoxylin absorbs green as much
        # as red.
        (
            smooth & ((red - green > 0.12) | ((red > 0.75) & (red > 1.2 * blue))),
            (red - green > 0.05) | ((red > 0.6) & (red > 1.2 * blue)),
        ),
        # Red pens; the second term is red over stained tissue. Eosin absorbs little blue, DAB more blue than
        # green.
        (
            smooth
            & (green > blue)
            & (
                ((green > 0.6) & (blue > 0.6 * green) & (red < 0.12 * green))
                | ((blue > 0.75) & (red < 0.4 * green))
            ),
            (green > blue)
            & (blue > 0.6 * green)
            & (((green > 0.3) & (red < 0.15 * green)) | ((blue > 0.5) & (red < 0.35 * green))),
        ),
        # Black pens and the borders of some scanners. DAB over haematoxylin is nearly black, and less even.
        (
            smooth & (weakest > 0.82 * strongest.clip(0.65)),
            (weakest > 0.4) & (weakest > 0.65 * strongest),
        ),
    ):
        if strong.sum() > 0.25 * stained:  # a stain of the slide, but for where it is even
            strong = strong & (texture < 0.12 * strongest)
        if strong.any():
            seeds = drop_small(strong, INK_AREA / mpp**2)
            if seeds.any():
                ink |= keep_seeded(weak | seeds, seeds)
    strokes = _find_strokes(over, strongest, texture, ink, mpp)
    ink = repeat(ink, step)[:height, :width]
    ink = dilate(ink, max(1, round(INK_FRINGE * step / mpp))) if ink.any() else ink
    return np.asarray(ink | repeat(strokes, step)[:height, :width])


def _find_strokes(over: Planes, strongest: Plane, texture: Plane, ink: Mask, mpp: float) -> Mask:
    """Find even, dense patches that end in glass, and their continuation over tissue."""
    strokes = np.zeros(strongest.shape, bool)
    even = (strongest > 0.4) & (texture < EVEN * strongest) & ~ink
    if not even.any():
        return strokes
    radius = max(1, round(EVEN_REACH / mpp))
    even = drop_small(dilate(erode(even, radius), radius), STROKE_AREA / mpp**2)
    labels, count = ndimage.label(even, np.ones((3, 3)))
    boxes = ndimage.find_objects(labels)
    reach = max(3, round(64 / mpp))  # beyond a stroke's blurred edge
    for label in range(1, count + 1):
        stroke = labels == label
        box = boxes[label - 1]
        around = tuple(slice(max(0, s.start - reach - 2), s.stop + reach + 2) for s in box)
        part = stroke[around]
        rim = dilate(part, reach) & ~dilate(part, reach - 2)
        if (strongest[around][rim] < 0.08).mean() <= 0.25:
            continue
        colour = 0.8 * np.median(over[:, stroke], axis=1)
        alike = (over >= colour[:, None, None]).all(axis=0)
        alike = dilate(erode(alike, radius), radius)
        strokes |= keep_seeded(alike | stroke, stroke)
    return dilate(strokes, max(1, round(INK_FRINGE / mpp))) & (strongest > 0.03)


def find_folds(mask: Mask, over: Planes, mpp: float) -> Mask:
    """Find folds: long bands, twice as dense as the tissue round them and of its colour."""
    folded = np.zeros(mask.shape, bool)
    side = max(1, round(FOLD_WINDOW / mpp))
    core = erode(mask, 1)
    if not core.any():
        return folded
    density = over.mean(axis=0)
    dense = core & (average(density, 3) > FOLDED * fit_surface(density[None], core, side)[0])
    if dense.sum() * mpp**2 < FOLDED_LENGTH**2 / FOLDED_SHAPE:
        return folded
    usual = fit_surface(over, core, side)
    over = np.stack([average(plane, 3) for plane in over])
    dense &= over.max(axis=0) > FOLDED_DENSITY
    across = (over * usual).sum(axis=0)
    dense &= across > FOLDED_ALIKE * np.sqrt((over * over).sum(axis=0) * (usual * usual).sum(axis=0))
    labels, _ = ndimage.label(close_mask(dense, 1), np.ones((3, 3)))
    for label, box in enumerate(ndimage.find_objects(labels), 1):
        part = labels[box] == label
        area = part.sum() * mpp**2
        if max(part.shape) * mpp < 0.7 * FOLDED_LENGTH or area < FOLDED_LENGTH * 2 * mpp:
            continue
        points = np.argwhere(part) * mpp
        length = np.sqrt(12 * np.linalg.eigvalsh(np.cov(points.T))[1])
        if length >= FOLDED_LENGTH and length >= FOLDED_SHAPE * area / length:
            folded[box] |= part
    return np.asarray(folded & mask)


def find_blurred(mask: Mask, over: Planes, mpp: float) -> Mask:
    """Find tissue whose fine detail is far less than its coarse detail would have one expect."""
    nothing = np.zeros(mask.shape, bool)
    inner = erode(mask, 2)
    if not inner.any():
        return nothing
    density = over.mean(axis=0)
    near = average(density, 3)
    fine, coarse = density - near, near - average(near, 17)
    side = max(1, round(CELL / mpp))
    weight = reduce_plane(inner.astype(np.float32), side)
    enough = weight > 0.5
    if not enough.any():
        return nothing
    sums = [average(reduce_plane(part * part * inner, side), 3) for part in (fine, coarse)]
    total = np.maximum(average(weight, 3), 1e-6)
    detail = sums[0] / np.maximum(sums[1], 1e-9)
    told = enough & (sums[1] / total > CONTRAST**2)
    if not told.any():
        return nothing
    usual = float(np.median(detail[told]))
    blurred = told & (detail < BLURRED * usual)
    # Between blurred places, what is too even to tell is blurred too.
    blurred |= close_mask(blurred, BLURRED_GAP) & enough & ~told
    blurred = drop_small(blurred, BLURRED_AREA / (mpp * side) ** 2)
    return np.asarray(repeat(blurred, side)[: mask.shape[0], : mask.shape[1]] & mask)
