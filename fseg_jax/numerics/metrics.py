"""How well a segmentation agrees with the truth, from counts of pixels only.

A confusion matrix ``(…, n, n)`` has the true categories as rows and the predicted categories as columns. A
contingency table ``(…, k, n)`` has the clusters as rows and the categories as columns. Averages over
categories ("macro") are over those that have pixels in the truth. A category without pixels there is absent:
its scores are None. A category with pixels that is never predicted has a precision, and an F1, of 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

Confusion = Int[np.ndarray, "*batch n n"] | Float[np.ndarray, "*batch n n"]
Contingency = Int[np.ndarray, "*batch k n"] | Float[np.ndarray, "*batch k n"]
RESAMPLES = 1000  # bootstrap samples


class CategoryScores(NamedTuple):
    """The scores of one category."""

    f1: float
    iou: float
    precision: float
    recall: float
    pixels: int  # in the truth


class Scores(NamedTuple):
    """Macro averages over the categories present, and the scores of each category."""

    f1: float
    iou: float
    precision: float
    recall: float
    accuracy: float  # the share of all pixels that is right
    categories: tuple[CategoryScores | None, ...]  # None for an absent category


class Interval(NamedTuple):
    """A 95 % bootstrap interval."""

    low: float
    high: float


class _PerCategory(NamedTuple):
    f1: Float[np.ndarray, "*batch n"]
    iou: Float[np.ndarray, "*batch n"]
    precision: Float[np.ndarray, "*batch n"]
    recall: Float[np.ndarray, "*batch n"]
    present: Bool[np.ndarray, "*batch n"]


def _score_categories(confusion: Confusion) -> _PerCategory:
    hit = np.diagonal(confusion, axis1=-2, axis2=-1).astype(float)
    true, predicted = confusion.sum(-1), confusion.sum(-2)

    def ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray(a / np.maximum(b, 1))

    return _PerCategory(
        ratio(2 * hit, true + predicted),
        ratio(hit, true + predicted - hit),
        ratio(hit, predicted),
        ratio(hit, true),
        true > 0,
    )


def _average_present(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    return np.asarray(np.where(present, values, 0).sum(-1) / np.maximum(present.sum(-1), 1))


def macro_f1(confusion: Confusion) -> Float[np.ndarray, "*batch"]:
    """Average the F1, 2·TP / (2·TP + FP + FN), over the categories present; 0 if none is.

    >>> macro_f1(np.array([[2, 0], [1, 1]])).round(4).item()
    0.7333
    """
    per_category = _score_categories(confusion)
    return _average_present(per_category.f1, per_category.present)


def macro_iou(confusion: Confusion) -> Float[np.ndarray, "*batch"]:
    """Average the intersection over union over the categories present; 0 if none is."""
    per_category = _score_categories(confusion)
    return _average_present(per_category.iou, per_category.present)


def accuracy(confusion: Confusion) -> Float[np.ndarray, "*batch"]:
    """Compute the share of the pixels whose category is right."""
    right = np.trace(confusion, axis1=-2, axis2=-1)
    return np.asarray(right / np.maximum(confusion.sum((-2, -1)), 1))


def score(confusion: Confusion) -> Scores | None:
    """Compute all scores of one confusion matrix ``(n, n)``; None if it counts no pixel."""
    per_category = _score_categories(confusion)
    if not per_category.present.any():
        return None
    categories = []
    for n, count in enumerate(confusion.sum(-1).tolist()):
        f1, iou, precision, recall = (float(values[n]) for values in per_category[:4])
        categories.append(CategoryScores(f1, iou, precision, recall, int(count)) if count else None)
    f1, iou, precision, recall = (
        float(_average_present(values, per_category.present)) for values in per_category[:4]
    )
    return Scores(f1, iou, precision, recall, float(accuracy(confusion)), tuple(categories))


def score_images(confusions: Int[np.ndarray, "images n n"]) -> list[Scores | None]:
    """Compute the scores of each image by itself: macro averages over the categories that it has."""
    return [score(confusion) for confusion in confusions]


# ------------------------------------------------------------------------- without matching clusters


def adjusted_rand(contingency: Contingency) -> Float[np.ndarray, "*batch"]:
    """Compute the adjusted Rand index of clusters and categories (Hubert & Arabie 1985).

    It is 1 if neither divides the pixels.
    """
    table = contingency.astype(float)
    total = np.asarray(table.sum((-2, -1)))

    def pairs(x: np.ndarray) -> np.ndarray:
        return np.asarray(x * (x - 1) / 2)

    together = pairs(table).sum((-2, -1))
    a, b = pairs(table.sum(-1)).sum(-1), pairs(table.sum(-2)).sum(-1)
    expected = a * b / np.maximum(pairs(total), 1)
    span = (a + b) / 2 - expected
    return np.where(span > 0, (together - expected) / np.where(span > 0, span, 1), 1.0)


def mutual_information(contingency: Contingency) -> Float[np.ndarray, "*batch"]:
    """Compute the mutual information of clusters and categories, in nats."""
    p = contingency / np.maximum(contingency.sum((-2, -1), keepdims=True), 1)
    independent = p.sum(-1, keepdims=True) * p.sum(-2, keepdims=True)
    ratio = np.where(p > 0, p / np.where(p > 0, independent, 1), 1)
    return np.asarray(np.maximum((p * np.log(ratio)).sum((-2, -1)), 0.0))


# ------------------------------------------------------------------------------------------ intervals


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray],
    counts: np.ndarray,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """Estimate the 95 % percentile interval of a statistic of pooled counts by resampling cases.

    Cases are drawn with replacement. In each sample they are summed, the statistic is taken, and averaged
    over the starts. The same seed draws the same cases, so that two methods can be compared case by case.

    Args:
        statistic: from counts ``(…)`` to a value.
        counts: ``(starts, cases, …)``, matrices of pixels for each k-means start and case (or image).
        seed: of the draws.
        resamples: how many samples are drawn.

    Returns:
        The interval, or None for fewer than two cases.
    """
    cases = counts.shape[1]
    if cases < 2:
        return None
    drawn = np.random.default_rng(seed).multinomial(cases, np.full(cases, 1 / cases), size=resamples)
    values = np.zeros(resamples)
    for start in counts:
        pooled = drawn.astype(float) @ start.reshape(cases, -1).astype(float)
        values += statistic(pooled.reshape(resamples, *start.shape[1:])) / len(counts)
    low, high = np.percentile(values, (2.5, 97.5))
    return Interval(float(low), float(high))
