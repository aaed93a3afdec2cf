"""The mask that patches vote for, at the resolution of a screen.

A click repaints a slide of 100,000 patches in milliseconds. At the centre of each of its pixels the picture
equals the mask that ``fseg seed`` writes.
"""

import numpy as np
from jaxtyping import Float, Int, UInt8

from fseg_jax.outputs.embeddings import Embeddings
from fseg_jax.pipeline.voting import PatchVoter
from fseg_jax.slides.tissue import Tissue

_SIDE = 1536  # pixels of the picture's longer side, at most


class MaskPainter:
    """Paints labels of patches as a picture (height, width) of the slide, with pixels of ``mpp`` µm."""

    def __init__(self, embedded: Embeddings) -> None:
        """Lay out the picture of an embedded slide."""
        made = embedded.provenance
        parameters = made["parameters"]
        fine = parameters["mpp"]
        self.mpp = max(fine, fine * max(made["height"], made["width"]) / _SIDE)
        self.height, self.width = (max(1, round(made[s] * fine / self.mpp)) for s in ("height", "width"))
        self._voter = PatchVoter(embedded.grid, parameters["step"], parameters["patch"])
        self._rows, self._columns = (
            np.searchsorted(lines, (np.arange(size) + 0.5) * self.mpp / fine, side="right")
            for lines, size in ((self._voter.lines_y, self.height), (self._voter.lines_x, self.width))
        )
        tissue = Tissue(embedded.tissue, made["tissue_mpp"])
        self._tissue = tissue.crop(0, 0, self.height, self.width, self.mpp)

    def paint(
        self, labels: Int[np.ndarray, " n"], soft: Float[np.ndarray, "n k"]
    ) -> UInt8[np.ndarray, "h w"]:
        """Paint class j as j + 1, by most votes (``PatchVoter.count``); 0 without patch or tissue."""
        picture = np.zeros((self.height, self.width), np.uint8)
        for first, block in self._voter.count(labels, soft):
            inside = (self._rows >= first) & (self._rows < first + len(block))
            picture[inside] = block[self._rows[inside] - first][:, self._columns]
        picture[~self._tissue] = 0
        return picture
