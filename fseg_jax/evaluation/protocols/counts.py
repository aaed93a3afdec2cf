"""Segmentations as counts of pixels: how many of each cluster, or concept, are of each category.

That is all that matching, probing and every metric need, so that masks are made once, counted, and dropped.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt

from fseg_jax.evaluation.data.datasets import IGNORED
from fseg_jax.evaluation.data.features import Batch, Encoded, Shape
from fseg_jax.methods import fseg
from fseg_jax.numerics import nmf
from fseg_jax.numerics.arrays import Centers, Key, Tokens
from fseg_jax.numerics.axes import normalize
from fseg_jax.process import Progress


class Concepts(NamedTuple):
    """Every tile's own concepts, H, and the pixels of each (those whose β is m) by category."""

    H: Float[np.ndarray, "tiles m c"]
    counts: Int[np.ndarray, "tiles m n"]


Own = Int[Array | np.ndarray, " b"]  # how many of each tile's tokens are its own, the first ones
Score = Callable[[Tokens, Centers, Own], Float[Array, "b n k"]]


def fixed(tokens: Tokens, centers: Centers, own: Own) -> Float[Array, "b n k"]:
    """W for H fixed to the centres (§3.2.2), as ``fseg.solve_tiles`` solves for it."""
    return nmf.solve_weights(tokens, centers)


@jax.jit
def nearest(tokens: Tokens, centers: Centers, own: Own) -> Float[Array, "b n k"]:
    """No factorization: each token's cosine similarity with each centre."""
    return jnp.matmul(normalize(tokens), normalize(centers).T, precision="highest")


def labels(scores: Float[Array, "b n k"], batch: Batch, stride: int) -> list[UInt[np.ndarray, "_ _"]]:
    """Resize what each cluster scores at each token to pixels, and take the best (§3.2), as ``segment``
    does: labels 1…k of each tile. Every pixel is judged: one at which all score 0 goes to the first, as in
    the paper.
    """
    found = np.asarray(_labels(scores, batch.sizes, batch.frame, stride))
    sizes = (batch.sizes[: len(batch.tiles)] * stride).tolist()
    return [own[:height, :width] for own, (height, width) in zip(found, sizes, strict=False)]


@partial(jax.jit, static_argnames=("frame", "stride"))
def _labels(scores: Float[Array, "b n k"], sizes: Int[Array, "b 2"], frame: Shape, stride: int) -> Array:
    def framed(score: Float[Array, "n k"], size: Int[Array, "2"]) -> Float[Array, "p q k"]:
        """A tile on its grid, its edges repeated all around."""
        rows, columns = (jnp.clip(jnp.arange(-1, n + 1), 0, size[i] - 1) for i, n in enumerate(frame))
        return score[rows[:, None] * size[1] + columns[None]]

    return jnp.maximum(fseg.label_pixels(jax.vmap(framed)(scores, sizes), stride), 1)


def clusters(
    encoded: Encoded,
    score: Score,
    centers: Centers,
    items: int,
    n: int,
) -> Int[np.ndarray, "items k n"]:
    """Segment every tile by the best-scoring cluster, and count each image's pixels by cluster and
    category.
    """
    k = centers.shape[0]
    counts = np.zeros((items, k, n), np.int64)
    for batch in encoded.batches():
        scores = score(jnp.asarray(batch.tokens), centers, batch.sizes.prod(1))
        for t, own in zip(batch.tiles, labels(scores, batch, encoded.card.stride), strict=True):
            counts[encoded.of[t]] += _count(own, encoded.categories(t), k, n)
    return counts


def concepts(encoded: Encoded, m: int, n: int, key: Key, report: Progress | None = None) -> Concepts:
    """Factorize every tile into m concepts (§3.1), and count their pixels by category.

    β is taken at the pixels, of W resized. ``fseg_jax.segment`` gives concepts of one name one weight
    before it resizes, which blending neighbouring tiles needs; the two differ at a few pixels between
    concepts.
    """
    tiles = len(encoded.tiles)
    H_of = np.zeros((tiles, m, encoded.card.channels), np.float32)
    counts = np.zeros((tiles, m, n), np.int64)
    done = 0
    for batch in encoded.batches():
        own_tokens = jnp.asarray(batch.sizes.prod(1))
        W, H, *_ = nmf.factorize(jnp.asarray(batch.tokens), m, key=key, rows=own_tokens)
        found = labels(W, batch, encoded.card.stride)
        for t, own, concept in zip(batch.tiles, found, np.asarray(H), strict=False):
            H_of[t] = concept
            counts[t] = _count(own, encoded.categories(t), m, n)
        done += len(batch.tiles)
        if report:
            report(f"factorize {encoded.card.name}", done, tiles)
    return Concepts(H_of, counts)


def named(
    encoded: Encoded, found: Concepts, names: Int[np.ndarray, "tiles m"], items: int, k: int
) -> Int[np.ndarray, "items k n"]:
    """Count each image's pixels by the name that its tiles' concepts bear (a cluster §3.2.1, or a category
    §3.5.1).
    """
    counts = np.zeros((items, k, found.counts.shape[-1]), np.int64)
    np.add.at(counts, (encoded.of[:, None], names), found.counts)
    return counts


def _count(found: np.ndarray, truth: np.ndarray, k: int, n: int) -> Int[np.ndarray, "k n"]:
    seen = truth != IGNORED
    joint = (found[seen].astype(np.int32) - 1) * n + truth[seen]
    return np.bincount(joint, minlength=k * n).reshape(k, n)
