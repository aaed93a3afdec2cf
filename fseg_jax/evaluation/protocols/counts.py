"""Segmentations as counts of pixels: how many of each cluster, or concept, are of each category.

Matching, probing and every metric need only these counts, so labels are made once, counted, and dropped.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt

from fseg_jax.evaluation.data.encoded_dataset import Batch, EncodedDataset, Shape
from fseg_jax.evaluation.data.mask_codes import IGNORED
from fseg_jax.methods import fseg
from fseg_jax.numerics import nmf
from fseg_jax.numerics.arrays import Centers, Key, Tokens
from fseg_jax.numerics.axes import normalize
from fseg_jax.process import Progress


class Concepts(NamedTuple):
    """The concepts of each tile."""

    H: Float[np.ndarray, "tiles m c"]
    counts: Int[np.ndarray, "tiles m n"]  # pixels of each concept (those whose β is m) by category


TokenCounts = Int[Array | np.ndarray, " b"]  # how many rows of each tile are tokens: the first ones
Score = Callable[[Tokens, Centers, TokenCounts], Float[Array, "b n k"]]


def score_fixed(tokens: Tokens, centers: Centers, token_counts: TokenCounts) -> Float[Array, "b n k"]:
    """Solve for W with H fixed to the centres (§3.2.2), as ``fseg.solve_tiles`` does."""
    return nmf.solve_weights(tokens, centers)


@jax.jit
def score_nearest(tokens: Tokens, centers: Centers, token_counts: TokenCounts) -> Float[Array, "b n k"]:
    """Take each token's cosine similarity with each centre: no factorization."""
    return jnp.matmul(normalize(tokens), normalize(centers).T, precision="highest")


def label_pixels(scores: Float[Array, "b n k"], batch: Batch, stride: int) -> list[UInt[np.ndarray, "_ _"]]:
    """Resize each cluster's scores from tokens to pixels, and take the best (§3.2), as ``fseg.segment`` does.

    Returns labels 1…k of each tile. Every pixel is judged: one at which all score 0 goes to the first
    cluster, as in the paper.
    """
    framed = np.asarray(_label_frames(scores, batch.sizes, batch.frame, stride))
    sizes = (batch.sizes[: len(batch.tiles)] * stride).tolist()
    return [labels[:height, :width] for labels, (height, width) in zip(framed, sizes, strict=False)]


@partial(jax.jit, static_argnames=("frame", "stride"))
def _label_frames(
    scores: Float[Array, "b n k"], sizes: Int[Array, "b 2"], frame: Shape, stride: int
) -> UInt[Array, "b height width"]:
    def to_grid(score: Float[Array, "n k"], size: Int[Array, "2"]) -> Float[Array, "p q k"]:
        """Lay a tile's tokens on the frame's grid, the tile's edges repeated all around."""
        rows, columns = (jnp.clip(jnp.arange(-1, n + 1), 0, size[i] - 1) for i, n in enumerate(frame))
        return score[rows[:, None] * size[1] + columns[None]]

    return jnp.maximum(fseg.label_pixels(jax.vmap(to_grid)(scores, sizes), stride), 1)


def count_clusters(
    encoded: EncodedDataset, score: Score, centers: Centers, items: int, n: int
) -> Int[np.ndarray, "items k n"]:
    """Segment every tile by the best-scoring cluster, and count each image's pixels by cluster and category.

    Args:
        encoded: The tiles.
        score: What scores each token for each cluster.
        centers: The clusters' centres, (k, c).
        items: How many images there are.
        n: How many categories there are.
    """
    k = centers.shape[0]
    counts = np.zeros((items, k, n), np.int64)
    for batch in encoded.batches():
        scores = score(jnp.asarray(batch.tokens), centers, batch.sizes.prod(1))
        for index, labels in zip(batch.tiles, label_pixels(scores, batch, encoded.card.stride), strict=True):
            counts[encoded.item_of[index]] += _count_pixels(labels, encoded.categories(index), k, n)
    return counts


def find_concepts(
    encoded: EncodedDataset, m: int, n: int, key: Key, progress: Progress | None = None
) -> Concepts:
    """Factorize every tile into m concepts (§3.1), and count their pixels by category.

    β is taken at the pixels, of W resized. ``fseg.segment`` gives concepts of one name one weight before it
    resizes, which blending neighbouring tiles needs; the two differ at a few pixels between concepts.
    """
    tiles = len(encoded.tiles)
    H_of = np.zeros((tiles, m, encoded.card.channels), np.float32)
    counts = np.zeros((tiles, m, n), np.int64)
    done = 0
    for batch in encoded.batches():
        token_counts = jnp.asarray(batch.sizes.prod(1))
        W, H, *_ = nmf.factorize(jnp.asarray(batch.tokens), m, key=key, rows=token_counts)
        labels_of = label_pixels(W, batch, encoded.card.stride)
        for index, labels, concepts in zip(batch.tiles, labels_of, np.asarray(H), strict=False):
            H_of[index] = concepts
            counts[index] = _count_pixels(labels, encoded.categories(index), m, n)
        done += len(batch.tiles)
        if progress:
            progress(f"factorize {encoded.card.name}", done, tiles)
    return Concepts(H_of, counts)


def count_named(
    encoded: EncodedDataset, concepts: Concepts, names: Int[np.ndarray, "tiles m"], items: int, k: int
) -> Int[np.ndarray, "items k n"]:
    """Count each image's pixels by the names of its tiles' concepts.

    A name is the index of a cluster (§3.2.1) or of a category (§3.5.1), of which there are ``k``.
    """
    counts = np.zeros((items, k, concepts.counts.shape[-1]), np.int64)
    np.add.at(counts, (encoded.item_of[:, None], names), concepts.counts)
    return counts


def _count_pixels(
    labels: UInt[np.ndarray, "height width"], truth: UInt[np.ndarray, "height width"], k: int, n: int
) -> Int[np.ndarray, "k n"]:
    """Count a tile's pixels by label, from 1, and category."""
    annotated = truth != IGNORED
    joint = (labels[annotated].astype(np.int32) - 1) * n + truth[annotated]
    return np.bincount(joint, minlength=k * n).reshape(k, n)
