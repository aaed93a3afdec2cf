"""The segmentation of a thumbnail into tissue and background, by optical density."""

import math

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from scipy import ndimage
from skimage import filters

# A pixel's stain is the optical density of its strongest channel less half of its weakest's. Tissue is where
# it is above the first threshold, in pieces that also reach above the second.
STAIN_THRESHOLDS = (0.03, 0.05)
SMOOTHING = 8.0  # µm: two standard deviations of the Gaussian
CLOSING_RADIUS = 16.0  # µm: gaps narrower than twice this are closed
MAX_HOLE = 10_000.0  # µm²: smaller holes are filled (a circle of 113 µm)
MIN_PIECE = 10_000.0  # µm²: smaller pieces are dropped (a circle of 113 µm)
INK_MARGIN = 32.0  # µm around recognised ink that are taken as ink too
MIN_INK = 4_000.0  # µm²: smaller patches of an ink's colour are taken as tissue


def segment_tissue(image: UInt8[np.ndarray, "h w 3"], mpp: float) -> Bool[np.ndarray, "h w"]:
    """Tell tissue from glass, pen ink, scanner borders and dust in an RGB image of ``mpp`` µm per pixel.

    1. Blur, and take each channel's optical density against the glass.
    2. Threshold the stain, strongest channel − ½ weakest, with hysteresis at 0.03 and 0.05: grey shadows
       count less than colour. Ink has no stain.
    3. Close gaps, fill holes under 10,000 µm² (or 5 % of the image), and drop pieces under 10,000 µm² (or
       1 % of the image).
    """
    density = image.astype(np.float32)  # every step overwrites it: thumbnails of large slides are large
    for channel in range(3):
        ndimage.gaussian_filter(density[..., channel], SMOOTHING / mpp / 2, output=density[..., channel])
    glass = np.log10(_measure_glass(density) + 1)
    np.log10(np.add(density, 1, out=density), out=density)
    np.maximum(np.subtract(glass, density, out=density), 0, out=density)
    ink = _find_ink(density, mpp)
    stain = density.max(axis=-1) - 0.5 * density.min(axis=-1)
    mask = filters.apply_hysteresis_threshold(np.where(ink, 0, stain), *STAIN_THRESHOLDS)
    area = image.shape[0] * image.shape[1] * mpp**2
    mask = _close_gaps(mask, CLOSING_RADIUS / mpp)
    mask = ~_drop_small(~mask, min(MAX_HOLE, 0.05 * area) / mpp**2)
    mask &= ~ink
    return _drop_small(mask, min(MIN_PIECE, 0.01 * area) / mpp**2)


def _measure_glass(image: Float32[np.ndarray, "h w 3"]) -> Float[np.ndarray, "3"]:
    """Measure the colour of empty glass: the median where the image is bright, hardly coloured and smooth.

    Where that is less than 0.5 % of the image, a usual white is returned.
    """
    level = image.mean(axis=-1)
    spread = np.sqrt(
        np.maximum(ndimage.uniform_filter(level**2, 5) - ndimage.uniform_filter(level, 5) ** 2, 0)
    )
    plain = (image.min(axis=-1) > 180) & (np.ptp(image, axis=-1) < 40) & (spread < 2)
    scanned = plain & (image.min(axis=-1) < 254.5)  # scanners write pure white where they did not scan
    for candidates in (scanned, plain):
        if candidates.sum() > 0.005 * level.size:
            brightest = level >= np.percentile(level[candidates], 75)
            return np.asarray(np.median(image[candidates & brightest], axis=0))
    return np.full(3, 245, np.float32)


def _find_ink(density: Float32[np.ndarray, "h w 3"], mpp: float) -> Bool[np.ndarray, "h w"]:
    """Find pen marks and black scanner borders by their optical densities in red, green and blue.

    Each kind of ink has a strict and a loose test: ink is where the loose one holds, in pieces that contain
    ``MIN_INK`` connected µm² of the strict one.
    """
    red, green, blue = np.moveaxis(density, -1, 0)
    ink = np.zeros(red.shape, bool)
    for strict, loose in (
        # Green and blue pens absorb red more than green; haematoxylin absorbs both alike. The second terms
        # are for blue ink over stained tissue.
        (
            (red - green > 0.12) | ((red > 0.75) & (red > 1.2 * blue)),
            (red - green > 0.05) | ((red > 0.6) & (red > 1.2 * blue)),
        ),
        # Red pens absorb green and blue and hardly any red; eosin absorbs little blue, DAB more blue than
        # green. The second terms are for red ink over stained tissue.
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
        # Black pens, and the borders of some scanners, absorb all channels alike and strongly.
        (density.min(axis=-1) > 0.75 * density.max(axis=-1).clip(0.7), density.min(axis=-1) > 0.4),
    ):
        seeds = _drop_small(strict, MIN_INK / mpp**2)
        if seeds.any():
            ink |= filters.apply_hysteresis_threshold(loose.astype(np.float32) + seeds, 0.5, 1.5)
    return _dilate(ink, INK_MARGIN / mpp) if ink.any() else ink


def _drop_small(mask: Bool[np.ndarray, "h w"], pixels: float) -> Bool[np.ndarray, "h w"]:
    """Drop the 8-connected pieces of fewer than ``pixels`` pixels."""
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    return np.asarray(mask & (np.bincount(labels.ravel()) >= pixels)[labels])


def _dilate(mask: Bool[np.ndarray, "h w"], radius: float) -> Bool[np.ndarray, "h w"]:
    """Dilate a mask by a disc."""
    return np.asarray(ndimage.distance_transform_edt(~mask) <= radius)


def _close_gaps(mask: Bool[np.ndarray, "h w"], radius: float) -> Bool[np.ndarray, "h w"]:
    """Close a mask by a disc: dilate it, then erode it by as much."""
    pad = math.ceil(radius) + 1  # without it the erosion would eat into tissue at the border
    grown = _dilate(np.pad(mask, pad), radius) if mask.any() else np.pad(mask, pad)
    distance = ndimage.distance_transform_edt(np.pad(grown, 1, mode="edge"))
    return np.asarray(distance > radius)[1:-1, 1:-1][pad:-pad, pad:-pad]
