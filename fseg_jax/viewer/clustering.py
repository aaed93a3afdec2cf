"""Labels of a slide's patches from its seeds, recomputed at every click (Algorithm 1 of the SIC paper).

Embeddings stay on JAX's device between clicks, in one shape: a click compiles nothing, a new number of
classes compiles once.
"""

import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from fseg_jax.methods import sic
from fseg_jax.numerics.pca import Distance, reduce_channels
from fseg_jax.pipeline.clicks import SeedSettings
from fseg_jax.viewer.annotation import Annotation
from fseg_jax.viewer.mask import MaskPainter
from fseg_jax.viewer.patch_index import PatchIndex


class Result(NamedTuple):
    """A slide labelled from its seeds.

    Attributes:
        annotation: The classes and seeds.
        labels: Class of each patch.
        soft: Soft labels of each patch.
        score: F1 of the seeds themselves, which the page calls agreement with the clicks.
        mask: Mask of the slide; class j is j + 1, 0 is background.
        shares: Fraction of the mask's foreground in each class.
        seconds: Duration of the computation.
    """

    annotation: Annotation
    labels: Int[np.ndarray, " n"]
    soft: Float[np.ndarray, "n k"]
    score: float
    mask: UInt8[np.ndarray, "h w"]
    shares: Float[np.ndarray, " k"]
    seconds: float


class Clusterer:
    """The embeddings of a slide, loaded and compiled for clustering. Runs in one thread at a time."""

    def __init__(self, patches: PatchIndex) -> None:
        """Prepare to load the embeddings of these patches."""
        self._patches = patches
        self._compiled: set[int] = set()  # numbers of classes

    def load(self, distance: Distance, classes: int) -> None:
        """Read the embeddings and compile for a number of classes.

        Args:
            distance: ``SeedSettings.distance``.
            classes: Number of classes.

        Raises:
            InputError: The embeddings are damaged.
        """
        embedded = self._patches.embedded
        self._X = reduce_channels(embedded.read(), distance=distance).X
        self._neighbours = jax.numpy.asarray(sic.find_neighbours(embedded.grid))
        self._painter = MaskPainter(embedded, self._patches.facts)
        self._compile(classes)

    def fit(self, annotation: Annotation, settings: SeedSettings, path: Path) -> Result | None:
        """Label the slide from its seeds.

        Args:
            annotation: Classes and seeds.
            settings: Settings of SIC.
            path: File of the seeds, for messages.

        Returns:
            The result, or None if too few classes have seeds: two are needed, or one of two.
        """
        k = len(annotation.classes)
        self._compile(k)
        start = time.perf_counter()
        y = self._patches.assign_classes(annotation, path)
        if len(np.unique(y[y >= 0])) < (1 if k == 2 else 2):
            return None
        fit = sic.fit(
            self._X,
            y,
            classes=k,
            key=jax.random.key(settings.seed),
            metric=sic.METRICS[settings.metric],
            hard=settings.hard,
            soft=True,
            neighbours=self._neighbours if settings.smooth else None,
        )
        labels, soft = np.asarray(fit.labels), np.asarray(fit.soft)
        mask = self._painter.paint(labels, soft)
        pixels = np.bincount(mask.ravel(), minlength=k + 1)[1:]
        seconds = time.perf_counter() - start
        shares = pixels / max(1, pixels.sum())
        return Result(annotation, labels, soft, fit.score, mask, shares, seconds)

    def _compile(self, classes: int) -> None:
        """Compile what clicks run for a number of classes, by fitting made-up seeds; once for each number."""
        if classes in self._compiled:
            return
        self._compiled.add(classes)
        n = len(self._X)
        for seeds in ((0, 1), (1,)) if classes == 2 else ((0, 1),):
            y = np.full(n, -1, np.int32)
            y[np.linspace(0, n - 1, len(seeds)).astype(int)] = seeds
            sic.fit(self._X, y, classes=classes, soft=True)


def rank_certain(result: Result, j: int) -> Int[np.ndarray, " m"]:
    """Sort the patches of class j, the largest margin of the soft labels first."""
    order = np.argsort(-np.where(result.labels == j, _compute_margins(result), -1), kind="stable")
    return np.asarray(order[: int((result.labels == j).sum())])


def rank_uncertain(result: Result) -> Int[np.ndarray, " n"]:
    """Sort all patches, the smallest margin of the soft labels first."""
    return np.argsort(_compute_margins(result), kind="stable")


def _compute_margins(result: Result) -> Float[np.ndarray, " n"]:
    """Subtract the second largest soft label of each patch from the largest."""
    two = np.sort(result.soft, axis=1)[:, -2:]
    return np.asarray(two[:, 1] - two[:, 0])
