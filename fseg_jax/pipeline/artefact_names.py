"""What artefacts are called, and how they and tissue are drawn, in all outputs."""

import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool

from fseg_jax.outputs.colours import format_hex
from fseg_jax.outputs.outlines import Outline
from fseg_jax.slides.artefacts import KINDS
from fseg_jax.slides.planes import reduce_plane
from fseg_jax.slides.tissue import Tissue

TISSUE_COLOUR = (0, 104, 71)
# Of the kinds, in order:
NAMES = ("Ink", "Fold", "Out of focus", "Other artefact")
COLOURS = np.array([(28, 30, 36), (213, 94, 0), (0, 114, 178), (120, 72, 0)], np.uint8)
_HATCHES = ("..", "//", "xx", "--")
_LONGEST_SIDE = 4096  # pixels of what is outlined: pictures have fewer


def name_areas(pixels: np.ndarray, mpp: float) -> dict[str, float]:
    """Turn the pixels of each kind, those of none first, into areas in mm² by their names in records."""
    return {
        kind.replace(" ", "_"): round(float(count) * mpp**2 * 1e-6, 6)
        for kind, count in zip(KINDS, pixels[1:], strict=True)
    }


def list_outlines(tissue: Tissue) -> list[Outline]:
    """List what pictures outline: tissue, and the kinds of artefacts that there are."""
    step = max(1, math.ceil(max(tissue.mask.shape) / _LONGEST_SIDE))

    def outline(name: str, mask: Bool[np.ndarray, "h w"], colour: Iterable[int], hatch: str) -> Outline:
        if step > 1:
            mask = reduce_plane(mask, step) >= 0.5
        return Outline(name, mask, tissue.mpp * step, format_hex(colour), hatch)

    outlines = [outline("Tissue", tissue.mask, TISSUE_COLOUR, "")]
    if tissue.artefacts is not None:
        for kind, (name, colour, hatch) in enumerate(zip(NAMES, COLOURS, _HATCHES, strict=True), 1):
            mask = tissue.artefacts == kind
            if mask.any():
                outlines.append(outline(name, mask, colour, hatch))
    return outlines
