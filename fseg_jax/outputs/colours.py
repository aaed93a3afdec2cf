"""The names and colours of clusters, which are the same in all outputs."""

from collections.abc import Iterable
from functools import cache

import numpy as np
from jaxtyping import Float64, UInt8

# Okabe and Ito's colours without their pink and their second blue, and four that colour-blind readers tell
# from them: nine hues that have names of their own, since over a slide lightness is its texture's. The ones
# that come first stand out over eosin's pink and haematoxylin's purple.
_FIRST = (
    (0, 158, 115),
    (230, 159, 0),
    (0, 114, 178),
    (240, 228, 66),
    (213, 94, 0),
    (255, 0, 255),
    (68, 0, 221),
    (120, 40, 20),
    (0, 240, 220),
)
# Glass and stained tissue, from which all colours keep their distance.
_SLIDE = ((255, 255, 255), (243, 214, 230), (226, 160, 196), (170, 120, 180), (110, 70, 140))

# OKLab (Ottosson 2020): linear RGB to the cones' responses, and their cube roots to lightness, a and b.
_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
# Deuteranopia on linear RGB: Machado, Oliveira and Fernandes 2009, severity 1.
_DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)


def _convert_to_oklab(rgb: UInt8[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 6"]:
    """Convert colours to OKLab, as seen with normal sight (3 columns) and with deuteranopia (3 columns).

    The columns for deuteranopia are multiplied by 0.6, so that they count less in distances.
    """
    value = np.asarray(rgb, np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    seen = [linear, np.clip(linear @ _DEUTERANOPIA.T, 0, 1)]
    return np.concatenate(
        [np.cbrt(x @ _TO_LMS.T) @ _TO_LAB.T * w for x, w in zip(seen, (1, 0.6), strict=True)], -1
    )


@cache
def _order_colours() -> UInt8[np.ndarray, "1024 3"]:
    """Make the palette's colours: the nine first ones, then always the one farthest from all before it."""
    steps = np.linspace(0, 255, 16).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    lightness, *chroma = _convert_to_oklab(grid)[:, :3].T
    # Greys are left out: outputs show tissue in grey under the clusters' colours.
    grid = grid[(lightness > 0.3) & (lightness < 0.92) & (np.hypot(*chroma) > 0.04)]
    points = _convert_to_oklab(grid)
    chosen = [np.array(colour, np.uint8) for colour in _FIRST]
    taken = _convert_to_oklab(np.array(_SLIDE + _FIRST))
    distance = ((points[:, None] - taken[None]) ** 2).sum(-1).min(1)
    for _ in range(1024 - len(chosen)):
        best = int(distance.argmax())
        chosen.append(grid[best])
        distance = np.minimum(distance, ((points - points[best]) ** 2).sum(-1))
    return np.stack(chosen)


def make_palette(k: int, first: int = 0) -> UInt8[np.ndarray, "k 3"]:
    """Make RGB colours for clusters 1…k that differ from each other and from stained tissue.

    A smaller palette is the beginning of a larger one. Colour-blind readers can tell the first nine apart.
    After 1024 the colours repeat.

    Args:
        k: Number of colours.
        first: Place of the first one; the colours before it come last. Of up to nine, all nine take part.
    """
    ordered = _order_colours()
    return ordered[(np.arange(k) + first) % max(k, len(_FIRST)) % len(ordered)].copy()


def make_default_names(k: int) -> tuple[str, ...]:
    """Make the names of clusters 1…k: ``("cluster 1", …)``."""
    return tuple(f"cluster {label}" for label in range(1, k + 1))


def format_hex(colour: Iterable[int]) -> str:
    """Format a colour, three values of 0…255, in hexadecimal digits.

    >>> format_hex((0, 158, 115))
    '#009e73'
    """
    return "#" + "".join(f"{int(value):02x}" for value in colour)
