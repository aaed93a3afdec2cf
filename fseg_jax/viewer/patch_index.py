"""The positions of a slide's embedded patches, and queries by position."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree

from fseg_jax.outputs.embeddings import Embeddings
from fseg_jax.pipeline.clicks import assign_seeds
from fseg_jax.pipeline.patch_records import read_provenance
from fseg_jax.viewer.annotation import Annotation

_CANDIDATES = 2000  # patches from which disjoint ones are selected


class PatchIndex:
    """The patches of an embedded slide, indexed by position. Points are (x, y) in level-0 pixels.

    Attributes:
        embedded: The embeddings; ``centers`` are (y, x).
        facts: What they were made with.
        shape: Height and width of the slide, level-0 pixels.
        mpp: Micrometres per level-0 pixel.
        side: Side of a patch, level-0 pixels.
        step: Distance of neighbouring patches, level-0 pixels.
    """

    def __init__(self, embedded: Embeddings) -> None:
        """Index the patches of an embedded slide."""
        facts = read_provenance(embedded)
        self.embedded, self.facts = embedded, facts
        self.shape = (facts.slide.height, facts.slide.width)
        self.mpp = facts.slide.mpp
        self.side = facts.parameters.side_level0
        self.step = facts.parameters.step * self.side / facts.parameters.patch
        self._tree = cKDTree(embedded.centers)

    def __len__(self) -> int:
        return len(self.embedded.centers)

    def locate_centers(self) -> Float[np.ndarray, "n 2"]:
        """Convert the centres (y, x) to µm."""
        return np.asarray(self.embedded.centers * self.mpp)

    def find_covered(self, points: Float[np.ndarray, "m 2"]) -> Bool[np.ndarray, " m"]:
        """Find which points are on the slide and on a patch."""
        xy = np.asarray(points, np.float64).reshape(-1, 2)
        height, width = self.shape
        inside = (xy >= 0).all(1) & (xy[:, 0] < width) & (xy[:, 1] < height)
        distance, _ = self._tree.query(np.where(inside[:, None], xy[:, ::-1], 0), p=np.inf)
        return np.asarray(inside & (distance <= self.side / 2))

    def sample_stroke(self, path: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, "p 2"]:
        """Take a point on each patch that a line crosses, in the order of crossing."""
        points: Float[np.ndarray, "p 2"] = interpolate_line(path, self.step / 4)
        points = points[self.find_covered(points)]
        if len(points):
            _, nearest = self._tree.query(points[:, ::-1])
            points = points[np.sort(np.unique(nearest, return_index=True)[1])]
        return points

    def assign_classes(self, annotation: Annotation, path: Path) -> Int[np.ndarray, " n"]:
        """Give each patch the class of its seeds, −1 without seeds (``assign_seeds``).

        Args:
            annotation: Classes and seeds.
            path: Their file, for messages.

        Raises:
            InputError: A seed is outside the slide or on no patch.
        """
        y = np.full(len(self), -1, np.int32)
        if annotation.seeds:
            xy = np.array([(seed.x, seed.y) for seed in annotation.seeds])
            seed_classes = np.array([seed.class_index for seed in annotation.seeds])
            # assign_seeds compares every seed with every patch: give it the patches near seeds only.
            near = self._tree.query_ball_point(xy[:, ::-1], self.side / 2 * 1.001, p=np.inf)
            rows = np.unique([i for indices in near for i in indices] or [0]).astype(int)
            centers = self.embedded.centers[rows]
            y[rows], _ = assign_seeds(xy, seed_classes, centers, self.side, self.shape, path)
        return y

    def select_disjoint(self, order: Int[np.ndarray, " m"], count: int) -> list[int]:
        """Select the first ``count`` patches of an order that do not overlap."""
        selected: list[int] = []
        centers = self.embedded.centers
        for i in order[:_CANDIDATES]:
            if all(np.abs(centers[i] - centers[other]).max() >= self.side for other in selected):
                selected.append(int(i))
                if len(selected) == count:
                    break
        return selected


def interpolate_line(path: Float[np.ndarray, "m 2"], step: float) -> Float[np.ndarray, "p 2"]:
    """Add points to a line so that consecutive ones are at most ``step`` apart."""
    path = np.asarray(path, np.float64).reshape(-1, 2)

    def generate_segments() -> Iterator[Float[np.ndarray, "s 2"]]:
        yield path[:1]
        for a, b in pairwise(path):
            n = max(1, int(np.ceil(np.hypot(*(b - a)) / step)))
            yield a + (b - a) * (np.arange(1, n + 1) / n)[:, None]

    return np.concatenate(list(generate_segments())) if len(path) else path
