"""Test images with their segmentation, put together from tiles, for the panels."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fseg_jax.evaluation.data.datasets import Dataset
from fseg_jax.evaluation.data.encoded_dataset import EncodedDataset, read_resized
from fseg_jax.evaluation.protocols import counts
from fseg_jax.evaluation.protocols.fseg_experiment import fit_centers
from fseg_jax.evaluation.protocols.matching import confuse, match
from fseg_jax.evaluation.results import Panel
from fseg_jax.evaluation.settings import EvaluationSettings
from fseg_jax.methods import fseg
from fseg_jax.numerics import metrics
from fseg_jax.numerics.arrays import Centers, Tokens


def segment_panels(
    dataset: Dataset, encoded: EncodedDataset, settings: EvaluationSettings
) -> Iterator[Panel]:
    """Segment test images that stand for all: at even steps from the worst segmented to the best, by F1.

    By F-SEG in the first mode, with the first k and k-means start, centres of tiles, matched on the training
    split.
    """
    k, mode, items = settings.k[0], settings.modes[0], dataset.items
    mu = fit_centers(encoded, k, "tiles", settings.seed, 0)
    is_train = np.array([item.split == "train" for item in items])
    key = jax.random.key(settings.seed)

    def score(tokens: Tokens, centers: Centers, token_counts: counts.TokenCounts) -> Float[Array, "b n k"]:
        in_a_row = jnp.expand_dims(tokens, 1)
        W, *_ = fseg.solve_tiles(
            in_a_row, centers, key, mode=mode, concepts=settings.concepts, tokens=token_counts
        )
        return W.squeeze(1)

    by_cluster = counts.count_clusters(encoded, score, mu, len(items), len(dataset.categories))
    matching = match(by_cluster[is_train].sum(0))
    f1 = {}
    for i in np.flatnonzero(~is_train).tolist():
        if scores := metrics.score(confuse(matching.categories, by_cluster[i])):
            f1[i] = scores.f1
    ranked = sorted(f1, key=lambda i: (f1[i], items[i].name))
    steps = np.linspace(0, len(ranked) - 1, min(settings.panels, len(ranked))).round().astype(int)
    for rank, step in enumerate(steps.tolist(), 1):
        i = ranked[step]
        image, truth = read_resized(dataset, items[i], encoded.sizes[i])
        W, labels = _join_tiles(encoded, i, score, mu)
        yield Panel(
            name=items[i].name,
            rank=rank,
            f1=f1[i],
            encoder=encoded.card.name,
            k=k,
            mode=mode,
            image=image,
            truth=truth,
            labels=labels,
            W=W,
            matching=matching,
        )


def _join_tiles(
    encoded: EncodedDataset, item: int, score: counts.Score, mu: Centers
) -> tuple[Float[np.ndarray, "h w k"], Int[np.ndarray, "height width"]]:
    """Put W, at the tokens, and the labels of a whole image together from its tiles."""
    stride, (height, width) = encoded.card.stride, encoded.sizes[item]
    W = np.zeros((-(-height // stride), -(-width // stride), mu.shape[0]), np.float32)
    labels = np.zeros((height, width), np.int32)
    for batch in encoded.batches(item):
        weights = score(jnp.asarray(batch.tokens), mu, batch.sizes.prod(1))
        labels_of = counts.label_pixels(weights, batch, stride)
        for index, tile_weights, tile_labels in zip(
            batch.tiles, np.asarray(weights), labels_of, strict=False
        ):
            tile = encoded.tiles[index]
            tall, wide = tile_labels.shape
            inside = labels[tile.y : tile.y + tall, tile.x : tile.x + wide]
            inside[:] = tile_labels[: inside.shape[0], : inside.shape[1]]
            row, column = tile.y // stride, tile.x // stride
            grid = tile_weights[: tile.rows * tile.columns].reshape(tile.rows, tile.columns, -1)
            W[row : row + tile.rows, column : column + tile.columns] = grid
    return W, labels
