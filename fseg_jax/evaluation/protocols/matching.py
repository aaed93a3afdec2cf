"""Matching of clusters with categories by the frequencies of their pixels (F-SEG §3.5.2).

Everything works on counts of pixels, ``(…, k, n)``: how many of cluster k are of category n.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from fseg_jax.errors import InputError
from fseg_jax.evaluation.data.datasets import Split

Counts = Int[np.ndarray, "*batch k n"]
Confusion = Int[np.ndarray, "*batch n n"]


class Matching(NamedTuple):
    """The category of each cluster."""

    categories: Int[np.ndarray, " k"]
    unseen: Bool[np.ndarray, " k"]  # clusters that had no pixel to learn their category from
    balanced: bool
    learnt_on: Split


def match(counts: Int[np.ndarray, "k n"], *, balanced: bool = False, learnt_on: Split = "train") -> Matching:
    """Give every cluster the category of highest pixel frequency in it (§3.5.2).

    Ties go to the first category. A cluster without a pixel gets the category most frequent over all, in both
    variants, and is marked as unseen.

    Args:
        counts: Pixels of the split to learn on, (k, n).
        balanced: Divide each frequency first by all pixels of its category ("Handling Unbalanced
            Categories").
        learnt_on: Which split that is.

    Raises:
        InputError: There is no annotated pixel at all.
    """
    total = counts.sum(0)
    if total.sum() == 0:
        raise InputError(f"no annotated pixel in the {learnt_on} split: nothing can be matched")
    frequency = counts / np.maximum(total, 1) if balanced else counts
    unseen = counts.sum(1) == 0
    categories = np.where(unseen, total.argmax(), frequency.argmax(1))
    return Matching(categories, unseen, balanced, learnt_on)


def confuse(categories: Int[np.ndarray, " k"], counts: Counts) -> Confusion:
    """Count pixels by true (rows) and predicted (columns) category, given every cluster's category."""
    n = counts.shape[-1]
    member = np.eye(n, dtype=counts.dtype)[categories]  # (k, n): cluster k is predicted as category n
    return np.asarray(np.swapaxes(counts, -1, -2) @ member)
