"""The k-NN score of tokens, on features that say everything, and on features that say nothing."""

import numpy as np
import pytest

from fseg_jax.encoders.classical import classical
from fseg_jax.errors import InputError
from fseg_jax.evaluation.data.encoded_dataset import EncodedDataset, Tile
from fseg_jax.evaluation.data.mask_codes import IGNORED
from fseg_jax.evaluation.protocols.knn import score_by_neighbours

STRIDE = classical().card.stride


def encode(knows: bool, ignored: bool = False) -> EncodedDataset:
    """Twenty tiles of 4 × 4 tokens, of two categories; every fourth token is of both and should not count."""
    rng = np.random.default_rng(0)
    channels, area = classical().card.channels, STRIDE * STRIDE
    tiles = [Tile(t, 0, 0, 4, 4, 16 * t) for t in range(20)]
    category = rng.integers(0, 2, 320)
    features = rng.random((320, channels)).astype(np.float32) * 0.1
    if knows:
        features[np.arange(320), category] += 1
    truth = np.empty((20, 4, STRIDE, 4, STRIDE), np.uint8)
    truth[:] = category.reshape(20, 4, 1, 4, 1)
    truth[:, :, : STRIDE // 2, 3] = 1 - truth[:, :, : STRIDE // 2, 3]
    if ignored:
        truth[:] = IGNORED
    return EncodedDataset(
        classical().card,
        tiles,
        features,
        truth.reshape(320 * area),
        np.zeros((20, channels), np.float32),
        np.arange(20),
        np.arange(20) < 12,
        [(64, 64)] * 20,
    )


def test_known_and_unknown():
    assert score_by_neighbours(encode(True), 2) == 1
    assert 0.3 < score_by_neighbours(encode(False), 2) < 0.7


def test_nothing_to_score():
    with pytest.raises(InputError, match="no token"):
        score_by_neighbours(encode(True, ignored=True), 2)
