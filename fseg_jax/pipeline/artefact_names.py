"""What artefacts are called, and how they and tissue are drawn, in all outputs."""

import numpy as np

from fseg_jax.outputs.colours import format_hex
from fseg_jax.outputs.outlines import Outline
from fseg_jax.slides.artefacts import KINDS
from fseg_jax.slides.tissue import Tissue

TISSUE_COLOUR = (0, 104, 71)
# Of the kinds, in order:
NAMES = ("Ink", "Fold", "Out of focus", "Other artefact")
COLOURS = np.array([(28, 30, 36), (213, 94, 0), (0, 114, 178), (120, 72, 0)], np.uint8)
_HATCHES = ("..", "//", "xx", "--")


def name_areas(pixels: np.ndarray, mpp: float) -> dict[str, float]:
    """Turn the pixels of each kind, those of none first, into areas in mm² by their names in records."""
    return {
        kind.replace(" ", "_"): round(float(count) * mpp**2 * 1e-6, 6)
        for kind, count in zip(KINDS, pixels[1:], strict=True)
    }


def list_outlines(tissue: Tissue) -> list[Outline]:
    """List what pictures outline: tissue, and each kind of artefact, which may be empty."""
    outlines = [Outline("Tissue", tissue.mask, tissue.mpp, format_hex(TISSUE_COLOUR))]
    if tissue.artefacts is not None:
        outlines += [
            Outline(name, tissue.artefacts == kind, tissue.mpp, format_hex(colour), hatch)
            for kind, (name, colour, hatch) in enumerate(zip(NAMES, COLOURS, _HATCHES, strict=True), 1)
        ]
    return outlines
