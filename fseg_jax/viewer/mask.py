"""The mask that patches vote for, at screen resolution, so that a click repaints it in milliseconds.

At the centre of each of its pixels it equals the mask that ``fseg seed`` writes.
"""

import numpy as np
from jaxtyping import Float, Int, UInt8

from fseg_jax.outputs.embeddings import Embeddings
from fseg_jax.pipeline.patch_records import PatchProvenance
from fseg_jax.pipeline.voting import PatchVoter
from fseg_jax.slides.tissue import Tissue

_LONGEST_SIDE = 1536  # pixels of the mask


class MaskPainter:
    """Paints labels of patches as a mask of the slide.

    Attributes:
        mpp: Micrometres per pixel of the mask.
        height: Pixels of the mask.
        width: Pixels of the mask.
    """

    def __init__(self, embedded: Embeddings, facts: PatchProvenance) -> None:
        """Lay out the mask of an embedded slide; ``facts`` are those of ``embedded``."""
        patch_mpp = facts.parameters.mpp
        longest = max(facts.height, facts.width)
        self.mpp: float = max(patch_mpp, patch_mpp * longest / _LONGEST_SIDE)
        self.height, self.width = (
            max(1, round(side * patch_mpp / self.mpp)) for side in (facts.height, facts.width)
        )
        self._voter = PatchVoter(embedded.grid, facts.parameters.step, facts.parameters.patch)
        # The voter's cell under the centre of each row and column of the mask.
        self._rows, self._columns = (
            np.searchsorted(lines, (np.arange(size) + 0.5) * self.mpp / patch_mpp, side="right")
            for lines, size in ((self._voter.lines_y, self.height), (self._voter.lines_x, self.width))
        )
        tissue = Tissue(embedded.tissue, facts.tissue_mpp)
        self._tissue = tissue.crop(0, 0, self.height, self.width, self.mpp)

    def paint(
        self, labels: Int[np.ndarray, " n"], soft: Float[np.ndarray, "n k"]
    ) -> UInt8[np.ndarray, "h w"]:
        """Paint class j as j + 1, by most votes (``PatchVoter.count``); 0 without patch or tissue."""
        mask = np.zeros((self.height, self.width), np.uint8)
        for first, block in self._voter.count(labels, soft):
            inside = (self._rows >= first) & (self._rows < first + len(block))
            mask[inside] = block[self._rows[inside] - first][:, self._columns]
        mask[~self._tissue] = 0
        return mask
