"""From counts of pixels to a row of the table: scores on the test split, their intervals and differences."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from fseg_jax.evaluation.data.datasets import Dataset, Split
from fseg_jax.evaluation.protocols.matching import confuse, match
from fseg_jax.evaluation.results import CenterSource, EvaluationRow, RowMode
from fseg_jax.evaluation.settings import Protocol
from fseg_jax.numerics import metrics
from fseg_jax.numerics.metrics import Interval

COLOUR = "classical"  # the encoder of colour alone, that every other is compared with

Matrices = Int[np.ndarray, "starts cases n n"]  # a confusion matrix for each start and test case


class Segmentation(NamedTuple):
    """One start's segmentation of all images, as counts of pixels."""

    counts: Int[np.ndarray, "items k n"]  # of each image by cluster and category
    categories: Int[np.ndarray, " k"] | None = None  # of each cluster; None where matching is to learn them


class RowKey(NamedTuple):
    """How images were segmented and judged."""

    encoder: str
    mode: RowMode
    centers: CenterSource | Literal["none"]
    k: int
    protocol: Protocol
    learnt_on: Split = "train"


class _Start(NamedTuple):
    """Counts and scores of one start."""

    matrices: Int[np.ndarray, "cases n n"]
    contingency: Int[np.ndarray, "cases k n"]
    image_f1: list[float]
    f1_train: float
    unseen: tuple[float, float] | None  # clusters without a pixel to learn from; share of test pixels in them


class Judge:
    """Turns segmentations of one dataset into rows: learns matchings, and scores the test split."""

    def __init__(self, dataset: Dataset, seed: int):
        self._is_train: Bool[np.ndarray, " items"] = np.array([i.split == "train" for i in dataset.items])
        cases = [item.case for item in dataset.items if item.split != "train"]
        self._case_of: Int[np.ndarray, " tested"] = np.unique(cases, return_inverse=True)[1]
        self._seed = seed

    def make_row(
        self, key: RowKey, segmentations: Sequence[Segmentation], baseline: Matrices | None = None
    ) -> EvaluationRow:
        """Judge the segmentations of all starts; ``gain`` is the F1 above that of ``baseline``."""
        starts = [self._judge(key, segmentation) for segmentation in segmentations]
        matrices = np.stack([start.matrices for start in starts])
        contingency = np.stack([start.contingency for start in starts])
        pooled = matrices.sum(1)
        f1 = metrics.macro_f1(pooled)
        scores = metrics.score(pooled.sum(0))
        assert scores is not None  # the test split has annotated pixels
        seed = self._seed
        unseen = [start.unseen for start in starts if start.unseen is not None]
        gain, gain_interval = (None, None) if baseline is None else compare_f1(matrices, baseline, seed=seed)
        return EvaluationRow(
            encoder=key.encoder,
            mode=key.mode,
            centers=key.centers,
            k=key.k,
            protocol=key.protocol,
            learnt_on=key.learnt_on,
            threshold=None,
            chosen=True,
            starts=len(starts),
            f1=float(f1.mean()),
            f1_interval=metrics.bootstrap(metrics.macro_f1, matrices, seed=seed),
            f1_spread=float(f1.std(ddof=1)) if len(f1) > 1 else None,
            f1_train=float(np.mean([start.f1_train for start in starts])),
            iou=float(metrics.macro_iou(pooled).mean()),
            iou_interval=metrics.bootstrap(metrics.macro_iou, matrices, seed=seed),
            image_f1=float(np.mean([score for start in starts for score in start.image_f1])),
            ari=float(metrics.adjusted_rand(contingency.sum(1)).mean()),
            ari_interval=metrics.bootstrap(metrics.adjusted_rand, contingency, seed=seed),
            mutual_information=float(metrics.mutual_information(contingency.sum(1)).mean()),
            gain=gain,
            gain_interval=gain_interval,
            above_colour=None,
            above_colour_interval=None,
            unseen_clusters=float(np.mean([clusters for clusters, _ in unseen])) if unseen else None,
            unseen_pixels=float(np.mean([pixels for _, pixels in unseen])) if unseen else None,
            pairs=None,
            scores=scores,
            confusion=pooled.sum(0).tolist(),
            matrices=matrices,
        )

    def _judge(self, key: RowKey, segmentation: Segmentation) -> _Start:
        counts, categories = segmentation
        tested, unseen = counts[~self._is_train], None
        if categories is None:
            learnt_from = counts[self._is_train == (key.learnt_on == "train")].sum(0)
            balanced = key.protocol.startswith("balanced")
            matching = match(learnt_from, balanced=balanced, learnt_on=key.learnt_on)
            categories = matching.categories
            pixels = tested.sum((0, 2))  # of each cluster
            unseen = (
                float(matching.unseen.sum()),
                float(pixels[matching.unseen].sum() / pixels.sum()),
            )
        confusion = confuse(categories, counts)
        tested_confusion = confusion[~self._is_train]
        return _Start(
            matrices=self._sum_by_case(tested_confusion),
            contingency=self._sum_by_case(tested),
            image_f1=[scores.f1 for scores in metrics.score_images(tested_confusion) if scores],
            f1_train=float(metrics.macro_f1(confusion[self._is_train].sum(0))),
            unseen=unseen,
        )

    def _sum_by_case(self, counts: Int[np.ndarray, "tested m n"]) -> Int[np.ndarray, "cases m n"]:
        total = np.zeros((self._case_of.max() + 1, *counts.shape[1:]), np.int64)
        np.add.at(total, self._case_of, counts)
        return total


def compare_f1(matrices: Matrices, baseline: Matrices, *, seed: int) -> tuple[float, Interval | None]:
    """Compare the macro F1 of two segmentations of the same cases.

    Returns how much higher the first is, and its 95 % interval over the cases.
    """

    def difference(pairs: np.ndarray) -> np.ndarray:
        f1 = metrics.macro_f1(pairs)
        return np.asarray(f1[..., 0] - f1[..., 1])

    pairs = np.stack([matrices, baseline], 2)
    return float(difference(pairs.sum(1)).mean()), metrics.bootstrap(difference, pairs, seed=seed)


def compare_with_colour(rows: Sequence[EvaluationRow], seed: int) -> list[EvaluationRow]:
    """Add to each row how much higher its F1 is than that of colour alone, all else the same."""

    def key(row: EvaluationRow) -> tuple[object, ...]:
        return row.mode, row.centers, row.k, row.protocol, row.learnt_on

    baselines = {key(row): row.matrices for row in rows if row.encoder == COLOUR and row.chosen}

    def compare(row: EvaluationRow) -> EvaluationRow:
        if row.encoder == COLOUR or not row.chosen or key(row) not in baselines:
            return row
        difference, interval = compare_f1(row.matrices, baselines[key(row)], seed=seed)
        return replace(row, above_colour=difference, above_colour_interval=interval)

    return [compare(row) for row in rows]
