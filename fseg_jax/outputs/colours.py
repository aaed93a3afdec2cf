"""How clusters are named and coloured wherever people meet them: pictures, tables, QuPath, label viewers."""

from collections.abc import Iterable
from functools import cache

import numpy as np

# Okabe and Ito's colours, but for their pink, and three that keep away from them for the colour-blind too.
# First comes what stands out over eosin's pink and haematoxylin's purple.
_FIRST = (
    (0, 158, 115),
    (230, 159, 0),
    (0, 114, 178),
    (240, 228, 66),
    (213, 94, 0),
    (86, 180, 233),
    (20, 30, 70),
    (120, 40, 20),
    (0, 240, 220),
)
# Taken already: glass and stained tissue. No cluster may look like the slide under it.
_SLIDE = ((255, 255, 255), (243, 214, 230), (226, 160, 196), (170, 120, 180), (110, 70, 140))

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
# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
_DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)


def _oklab(rgb: np.ndarray) -> np.ndarray:
    """OKLab coordinates, (n, 3) for normal sight beside (n, 3) for deuteranopia, of uint8 (n, 3)."""
    value = np.asarray(rgb, np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    seen = [linear, np.clip(linear @ _DEUTERANOPIA.T, 0, 1)]
    return np.concatenate(
        [np.cbrt(x @ _TO_LMS.T) @ _TO_LAB.T * w for x, w in zip(seen, (1, 0.6), strict=True)], -1
    )


@cache
def _ordered() -> np.ndarray:
    """Every colour the palette gives, in order: the first ones, then always the farthest from all before."""
    steps = np.linspace(0, 255, 16).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    lightness, *chroma = _oklab(grid)[:, :3].T
    # Greys are the tissue's own, once its stain is taken away under the clusters.
    grid = grid[(lightness > 0.3) & (lightness < 0.92) & (np.hypot(*chroma) > 0.04)]
    points = _oklab(grid)
    chosen = [np.array(colour, np.uint8) for colour in _FIRST]
    taken = _oklab(np.array(_SLIDE + _FIRST))
    distance = ((points[:, None] - taken[None]) ** 2).sum(-1).min(1)
    for _ in range(1024 - len(chosen)):
        best = int(distance.argmax())
        chosen.append(grid[best])
        distance = np.minimum(distance, ((points - points[best]) ** 2).sum(-1))
    return np.stack(chosen)


def palette(k: int) -> np.ndarray:
    """Colours for clusters 1…k that stay apart from each other and from the stained tissue under them.

    Returns uint8 (k, 3), RGB, row i for cluster i + 1. The same for every call, and ``palette(a)`` opens
    ``palette(b)`` for a ≤ b. The first nine are told apart by colour-blind readers; after 1024 they repeat.
    """
    ordered = _ordered()
    return ordered[np.arange(k) % len(ordered)].copy()


def default_names(k: int) -> tuple[str, ...]:
    """Names for clusters 1…k that nobody has named yet: ``("cluster 1", …)``."""
    return tuple(f"cluster {label}" for label in range(1, k + 1))


def hex_colour(colour: Iterable[int]) -> str:
    """Write a colour, three values of 0…255, as pages and tables do.

    >>> hex_colour((0, 158, 115))
    '#009e73'
    """
    return "#" + "".join(f"{int(value):02x}" for value in colour)
