"""The mask that patches vote for, at the resolution of a screen: what ``cohort.seeds.vote`` writes, quickly.

Between the lines on which patches begin and end every pixel lies in the same patches. So votes are counted
once for each such cell, however many pixels it has, and a click repaints a slide of 100,000 patches in
milliseconds. At the centre of each of its pixels the picture equals the mask that is written.
"""

import math

import numpy as np
from jaxtyping import Float, Int, UInt8

from fseg_jax.outputs.embeddings import Embeddings
from fseg_jax.slides.tissue import Tissue

_SIDE = 1536  # pixels of the picture's longer side, at most


class MaskPainter:
    """Paints labels of patches as a picture (height, width) of the slide, with pixels of ``mpp`` µm."""

    def __init__(self, embedded: Embeddings) -> None:
        made = embedded.provenance
        parameters = made["parameters"]
        step, side, fine = parameters["step"], parameters["patch"], parameters["mpp"]
        self.mpp = max(fine, fine * max(made["height"], made["width"]) / _SIDE)
        self.height, self.width = (max(1, round(made[s] * fine / self.mpp)) for s in ("height", "width"))
        begins = embedded.grid.astype(np.int64) * step
        # Lines along y and x, and for each patch which of them it begins and ends at.
        self._lines = tuple(np.unique([begins[:, i], begins[:, i] + side]) for i in range(2))
        self._edges = tuple(
            np.searchsorted(self._lines[i], begins[:, i] + end) for i in range(2) for end in (0, side)
        )
        self._cells = tuple(
            np.searchsorted(self._lines[i], (np.arange(size) + 0.5) * self.mpp / fine, side="right")
            for i, size in enumerate((self.height, self.width))
        )
        tissue = Tissue(embedded.tissue, made["tissue_mpp"])
        self._tissue = tissue.crop(0, 0, self.height, self.width, self.mpp)
        self._share = 1 / (2 * math.ceil(side / step) ** 2)

    def paint(
        self, labels: Int[np.ndarray, " n"], soft: Float[np.ndarray, "n k"]
    ) -> UInt8[np.ndarray, "h w"]:
        """Class j as j + 1, by most votes, then by the larger sum of ``soft``; 0 without patch or tissue."""
        k = soft.shape[1]
        top, bottom, left, right = self._edges
        # A line and column of zeros before all others: what lies before the first line is nobody's.
        shape = (len(self._lines[0]) + 1, len(self._lines[1]) + 1)
        ballots = np.eye(k)[labels] + soft * self._share
        best, winner = np.full(shape, 0.5), np.zeros(shape, np.uint8)
        for j in range(k):
            votes = np.zeros(shape)
            for y, x, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
                votes += np.bincount(
                    (y + 1) * shape[1] + x + 1, sign * ballots[:, j], shape[0] * shape[1]
                ).reshape(shape)
            votes = votes.cumsum(0).cumsum(1)
            ahead = votes > best + 1e-9  # sums leave rounding behind, which must not look like a vote
            best, winner = np.where(ahead, votes, best), np.where(ahead, np.uint8(j + 1), winner)
        picture = winner[self._cells[0][:, None], self._cells[1]]
        picture[~self._tissue] = 0
        return picture
