"""Fields: the pieces of tissue that views are cut from, for self-supervision."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

MAX_ENLARGEMENT = 1.5  # of a field's pixels in a view


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


def compute_probabilities(fields: Sequence[Field]) -> Float[np.ndarray, " n"]:
    """Compute how likely each field is drawn.

    A site counts by the square root of its area, and a field of it by the field's area.
    """
    areas = np.array([field.pixels[..., 0].size * field.mpp**2 for field in fields])
    numbers = {site: i for i, site in enumerate(sorted({field.site for field in fields}))}
    sites = np.array([numbers[field.site] for field in fields])
    weights = areas / np.sqrt(np.bincount(sites, areas))[sites]
    return np.asarray(weights / weights.sum())
