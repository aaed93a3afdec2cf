"""The glass of a slide: its usual colour and texture, and a smooth background under haze and shade."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from fseg_jax.slides.planes import (
    Colour,
    Mask,
    Plane,
    Planes,
    average,
    compute_density,
    dilate,
    fit_surface,
    make_odd,
)

COARSE_MPP = 8.0  # µm per pixel at which tissue is told from glass; the border is drawn at the image's own
WINDOW = 40.0  # µm, the side of the square whose texture is measured: a few cells
CELL = 32.0  # µm, the side of a cell of the background's grid
# Texture: standard deviation of optical density within WINDOW. Glass has less than SMOOTH_NOISE times its own
# median, within the limits; tissue of little density has TEXTURED times that.
SMOOTH_NOISE, LONE_NOISE, SMOOTH_LIMITS, TEXTURED = 2.0, 1.6, (0.0025, 0.009), 2.0
HAZE = 0.22  # optical density: haze and shade are paler than this, or are no background
CLEAR = 0.01  # optical density: a smooth place joined to one paler than this over the glass is background
LOCAL = 0.05  # optical density: and so is one that differs less from the background round it
# Density of tissue over the background: from the lower value on, joined to a place of the higher. Both are
# SPREAD times what glass itself varies by, within the limits.
SPREAD, LOW_LIMITS, HIGH_FACTOR = 4.0, (0.012, 0.05), 2.0
UNSURE = 0.1  # share of the density of haze by which it may be wrong beside tissue


class Background(NamedTuple):
    """The glass under a picture: its density, and how far the score of glass varies."""

    density: Planes
    spread: Plane


def find_blank(darkest: Plane) -> Mask:
    """Find pure white, which a scanner leaves where it did not look, and a file may not say so."""
    white = ndimage.minimum_filter(darkest, 3, mode="nearest") >= 254.5
    return dilate(white, 1) & (darkest > 250) if white.any() else white


def measure_texture(density: Plane, mpp: float) -> Plane:
    """Take the standard deviation of density round each pixel, without slow changes."""
    side = make_odd(WINDOW / mpp)
    detail = density - average(density, side)
    detail *= detail
    return np.asarray(np.sqrt(np.maximum(average(detail, side), 0)))


def estimate_glass(
    levels: Planes, darkest: Plane, brightest: Plane, texture: Plane, blank: Mask, scanned: Mask
) -> tuple[float, Colour | None]:
    """Estimate the texture of glass, and the density of the usual glass, None where a slide has none.

    Glass is smooth, bright and has hardly a colour; where little of what was scanned is so, it must be white.
    What is blank is taken for glass where there is no other.
    """
    size = max(1, int(np.count_nonzero(scanned)))
    plain = (texture < SMOOTH_LIMITS[1]) & (darkest > 110) & (brightest < 1.3 * darkest) & scanned
    for candidates in (plain & ~blank, plain):
        share = np.count_nonzero(candidates) / size
        if share < 0.03:
            candidates = candidates & (darkest > 195) & (brightest < 1.12 * darkest)
            candidates &= texture < 0.5 * SMOOTH_LIMITS[1]
            share = np.count_nonzero(candidates) / size
        if share > 0.004:
            thin = candidates.ravel().nonzero()[0]
            thin = thin[:: max(1, len(thin) // 200_000)]  # as many tell as much
            sample = levels.reshape(3, -1)[:, thin]
            bright = sample.mean(axis=0)
            glass = np.median(sample[:, bright >= np.percentile(bright, 70)], axis=1).astype(np.float32)
            near = np.abs(sample - glass[:, None]).max(axis=0) < 0.06 * glass.mean()
            noise = float(np.median(texture.ravel()[thin[near]])) if near.any() else 0.0
            return noise, compute_density(glass)
    return 0.0, None


def fit_background(
    density: Planes, texture: Plane, glass: Colour, noise: float, unscanned: Mask, mpp: float
) -> Background:
    """Fit a smooth surface of glass to the smooth and pale places, in four passes.

    Haze, shade and an uneven lamp change slowly and belong to the glass. A smooth place is glass where it is
    joined to clear glass, or differs little from the glass round it and is as smooth as glass usually is.
    """
    limit = float(np.clip(SMOOTH_NOISE * noise, *SMOOTH_LIMITS))
    side = max(1, round(CELL / mpp))
    most = find_max_difference(density, glass[:, None, None])
    pale = (most < HAZE) & ~unscanned
    smooth = (texture < limit) & pale
    labels, count = ndimage.label(smooth)
    size = np.bincount(labels.ravel(), minlength=count + 1)
    clear = np.bincount(labels[smooth & (most < CLEAR)], minlength=count + 1)
    kept = (clear >= 4) & (clear > 0.02 * size)
    kept[0] = False
    seen = kept[labels]
    if not seen.any():
        spread = np.full(most.shape, LOW_LIMITS[0] / SPREAD, np.float32)
        return Background(np.broadcast_to(glass[:, None, None], density.shape), spread)
    lone = smooth & ~seen
    alone = labels[lone]
    plain = np.bincount(alone, texture[lone], count + 1) < LONE_NOISE * max(noise, 0.001) * size
    lone[lone] = ~plain[alone]
    del labels
    surface = fit_surface(density, seen, side)
    reach = int(WINDOW / mpp / 2)
    for i, extended in enumerate((smooth, dilate(smooth, reach), dilate(smooth, reach + 1))):
        near: Plane | float = LOCAL if i == 0 else LOW_LIMITS[0] / 2 + UNSURE * measure_haze(surface, glass)
        seen = extended & pale & ~lone & (find_max_difference(density, surface) < near)
        surface = fit_surface(density, seen, side)
    residual = (density - surface).max(axis=0)
    residual *= residual
    spread = np.sqrt(np.maximum(fit_surface(residual[None], seen & smooth, 4 * side)[0], 0))
    return Background(surface, spread)


def measure_haze(surface: Planes, glass: Colour) -> Plane:
    """Take the density of haze and shade in a background, over the usual glass."""
    haze = surface[0] - glass[0]
    for channel in (1, 2):
        np.maximum(haze, surface[channel] - glass[channel], out=haze)
    return np.asarray(np.maximum(haze, 0, out=haze))


def find_max_difference(planes: Planes, others: Planes) -> Plane:
    """Take the largest difference of the three channels."""
    result = np.abs(planes[0] - others[0])
    for channel in (1, 2):
        np.maximum(result, np.abs(planes[channel] - others[channel]), out=result)
    return np.asarray(result)
