"""Segmentations as counts of pixels: how many of each cluster, or concept, are of each category.

That is all that matching, probing and every metric need, so that masks are made once, counted, and dropped.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fseg_jax import nmf
from fseg_jax.arrays import Centres, Features, Key
from fseg_jax.axes import unit
from fseg_jax.evaluation.datasets import IGNORED
from fseg_jax.evaluation.features import Encoded, Report
from fseg_jax.methods import fseg


class Concepts(NamedTuple):
    """Every tile's own concepts, H, and the pixels of each (those whose β is m) by category."""

    H: Float[np.ndarray, "tiles m c"]
    counts: Int[np.ndarray, "tiles m n"]


def fixed(features: Features, centers: Centres) -> Float[Array, "b h w k"]:
    """W for H fixed to the centres (§3.2.2), as ``fseg.tile_weights`` solves for it."""
    b, h, w, c = features.shape
    return nmf.solve_weights(features.reshape(b, h * w, c), centers).reshape(b, h, w, -1)


@jax.jit
def nearest(features: Features, centers: Centres) -> Float[Array, "b h w k"]:
    """No factorization: each token's cosine similarity with each centre."""
    return jnp.matmul(unit(features), unit(centers).T, precision="highest")


@partial(jax.jit, static_argnames="stride")
def labels(scores: Float[Array, "b h w k"], stride: int) -> Array:
    """Resize what each cluster scores at each token to pixels, and take the best (§3.2), as ``fseg.segment``
    does: labels 1…k."""
    framed = jnp.pad(scores, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    return fseg.block_labels(framed, stride)


def clusters(
    encoded: Encoded,
    score: Callable[[Features, Centres], Array],
    centers: Centres,
    items: int,
    n: int,
) -> Int[np.ndarray, "items k n"]:
    """Segment every tile by the best-scoring cluster, and count each image's pixels by cluster and
    category."""
    k = centers.shape[0]
    counts = np.zeros((items, k, n), np.int64)
    for chosen, features in encoded.batches():
        found = np.asarray(labels(score(jnp.asarray(features), centers), encoded.card.stride))
        for t, own in zip(chosen, found, strict=False):
            counts[encoded.of[t]] += _count(own, encoded.categories(t), k, n)
    return counts


def concepts(encoded: Encoded, m: int, n: int, key: Key, report: Report | None = None) -> Concepts:
    """Factorize every tile into m concepts (§3.1), and count their pixels by category.

    β is taken at the pixels, of W resized. ``fseg.segment`` gives concepts of one name one weight before it
    resizes, which blending neighbouring tiles needs; the two differ at a few pixels between concepts.
    """
    tiles = len(encoded.tiles)
    H_of = np.zeros((tiles, m, encoded.card.channels), np.float32)
    counts = np.zeros((tiles, m, n), np.int64)
    done = 0
    for chosen, features in encoded.batches():
        b, h, w, c = features.shape
        W, H, *_ = nmf.factorize(jnp.asarray(features.reshape(b, h * w, c)), m, key=key)
        found = np.asarray(labels(W.reshape(b, h, w, m), encoded.card.stride))
        for t, own, concept in zip(chosen, found, np.asarray(H), strict=False):
            H_of[t] = concept
            counts[t] = _count(own, encoded.categories(t), m, n)
        done += len(chosen)
        if report:
            report(f"factorize {encoded.card.name}", done, tiles)
    return Concepts(H_of, counts)


def named(
    encoded: Encoded, found: Concepts, names: Int[np.ndarray, "tiles m"], items: int, k: int
) -> Int[np.ndarray, "items k n"]:
    """Count each image's pixels by the name that its tiles' concepts bear (a cluster §3.2.1, or a category
    §3.5.1)."""
    counts = np.zeros((items, k, found.counts.shape[-1]), np.int64)
    np.add.at(counts, (encoded.of[:, None], names), found.counts)
    return counts


def _count(found: np.ndarray, truth: np.ndarray, k: int, n: int) -> Int[np.ndarray, "k n"]:
    seen = truth != IGNORED
    joint = (found[seen].astype(np.int32) - 1) * n + truth[seen]
    return np.bincount(joint, minlength=k * n).reshape(k, n)
