"""How alike the tiles of clusters and names are, in the space of a model of images and words."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class NameScores(NamedTuple):
    """The names that clusters are most alike to; NaN, and -1, where a cluster has no tiles.

    Attributes:
        best: (k,), the name of the greatest mean cosine with a cluster's tiles, from 0.
        runner_up: (k,), that of the second greatest.
        score: (k,), the mean cosine with the best.
        runner_up_score: (k,), and with the runner-up.
        share: (k,), the best's share of the softmax of the mean cosines over all names.
        agreement: (k,), the share of a cluster's tiles that are most alike to the best.
        tiles: (k,), number of a cluster's tiles.
    """

    best: Int[np.ndarray, " k"]
    runner_up: Int[np.ndarray, " k"]
    score: Float[np.ndarray, " k"]
    runner_up_score: Float[np.ndarray, " k"]
    share: Float[np.ndarray, " k"]
    agreement: Float[np.ndarray, " k"]
    tiles: Int[np.ndarray, " k"]


def score_names(
    tiles: Float[np.ndarray, "m d"],
    clusters: Int[np.ndarray, " m"],
    k: int,
    names: Float[np.ndarray, "n d"],
    scale: float,
) -> NameScores:
    """Score names for clusters by the embeddings of their tiles, of length one each.

    Args:
        tiles: embeddings of tiles.
        clusters: each tile's cluster, 0…k−1.
        k: number of clusters.
        names: embeddings of names, two at least.
        scale: what a cosine is multiplied by before the softmax.
    """
    cosines = tiles.astype(np.float64) @ names.T.astype(np.float64)
    counts = np.bincount(clusters, minlength=k)
    mean = np.zeros((k, len(names)))
    np.add.at(mean, clusters, cosines)
    with np.errstate(invalid="ignore"):  # 0 / 0 where a cluster has no tiles
        mean /= counts[:, None]
    order = np.where(counts[:, None] > 0, np.argsort(-mean, axis=1, kind="stable")[:, :2], -1)
    best, runner_up = order[:, 0], order[:, 1]
    rows = np.arange(k)
    weights = np.exp(scale * (mean - mean[rows, best][:, None]))
    agree = np.bincount(clusters, cosines.argmax(1) == best[clusters], minlength=k)
    with np.errstate(invalid="ignore"):
        agreement = agree / counts
    return NameScores(
        best, runner_up, mean[rows, best], mean[rows, runner_up], 1 / weights.sum(1), agreement, counts
    )
