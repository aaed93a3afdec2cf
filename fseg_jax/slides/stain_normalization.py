"""Stain normalization: a slide's colours made those of a standard stain, so that clusters follow tissue.

By Beer and Lambert's law the optical density −ln(I / 255) of a stain is proportional to its amount. Each
channel's densities are multiplied by a gain, the same all over the slide, that gives the mean over its tissue
the standard's value: I becomes 255·(I / 255)^gain. Glass, of density 0, stays as it is. A brown slide, denser
in blue than in green, is no haematoxylin and eosin, and stays too.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

from fseg_jax.slides.reader import Slide, compute_shape
from fseg_jax.slides.tissue import Tissue

Gains = tuple[float, float, float]  # of red, green and blue

STANDARD_DENSITY = (0.45, 0.95, 0.45)  # mean optical densities of haematoxylin and eosin on tissue
NO_GAINS: Gains = (1.0, 1.0, 1.0)
_TISSUE_DENSITY = (0.12, 2.0)  # mean of the channels, of a pixel of tissue: between glass, and ink or padding
_LEAST_PIXELS = 100  # of tissue, on fewer nothing is measured
_MOST_GAIN = 4.0
_BOXES, _SIDE = 24, 256  # boxes of a slide that are looked at, and their side in pixels
_COARSE = 16  # pixels of a box that are one of the grid on which it is chosen


def measure_slide(slide: Slide, tissue: Tissue, mpp: float) -> Gains:
    """Measure the gains that give a slide's tissue the standard densities.

    At most 24 boxes of 256 pixels are read, evenly spread over those that hold most tissue.

    Args:
        slide: An open slide.
        tissue: Where its tissue is.
        mpp: Resolution in µm per pixel.
    """
    height, width = compute_shape(slide, mpp)
    rows, columns = -(-height // _SIDE), -(-width // _SIDE)
    cells = _SIDE // _COARSE
    coarse = tissue.crop(0, 0, rows * cells, columns * cells, mpp * _COARSE)
    shares = coarse.reshape(rows, cells, columns, cells).mean((1, 3))
    candidates = np.argwhere((shares > 0) & (shares >= shares.max() / 2)) * _SIDE
    chosen = np.unique(np.linspace(0, len(candidates) - 1, min(_BOXES, len(candidates))).round().astype(int))
    parts = []
    for y, x in candidates[chosen].tolist():
        inside = tissue.crop(y, x, _SIDE, _SIDE, mpp)
        parts.append(slide.read(y, x, _SIDE, _SIDE, mpp)[inside])
    return measure_gains(np.concatenate(parts)) if parts else NO_GAINS


def measure_gains(pixels: UInt8[np.ndarray, "n 3"]) -> Gains:
    """Measure the gains that give the tissue among some pixels the standard densities."""
    densities = _density(pixels)
    mean = densities.mean(1)
    of_tissue = densities[(mean > _TISSUE_DENSITY[0]) & (mean < _TISSUE_DENSITY[1])]
    if len(of_tissue) < _LEAST_PIXELS:
        return NO_GAINS
    density = np.maximum(of_tissue.mean(0), 1e-6)
    if density[2] > density[1]:  # diaminobenzidine
        return NO_GAINS
    gains = np.asarray(STANDARD_DENSITY) / density
    red, green, blue = gains.clip(1 / _MOST_GAIN, _MOST_GAIN).round(4).tolist()
    return red, green, blue


def recolour(image: UInt8[np.ndarray, "h w 3"], gains: Gains) -> UInt8[np.ndarray, "h w 3"]:
    """Multiply the optical densities of an image by the gains of its channels."""
    if gains == NO_GAINS:
        return image
    return np.asarray(Image.fromarray(image).point(_make_table(gains)))


@lru_cache(maxsize=8)
def _make_table(gains: Gains) -> list[int]:
    """Make the table of all levels of red, of green and of blue: one for all tiles of a slide."""
    levels = np.arange(256) / 255
    table: list[int] = np.concatenate([255 * levels**gain for gain in gains]).round().astype(int).tolist()
    return table


def _density(pixels: UInt8[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 3"]:
    """Compute optical densities; black, of which there is no logarithm, counts as half a level."""
    table = -np.log(np.maximum(np.arange(256), 0.5) / 255)
    return np.asarray(table[pixels])
