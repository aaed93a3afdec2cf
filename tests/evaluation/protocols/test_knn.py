"""The k-NN score of tokens, on features that say everything, and on features that say nothing."""

import numpy as np
import pytest

from fseg_jax.encoders.classical import classical
from fseg_jax.errors import InputError
from fseg_jax.evaluation.data.datasets import IGNORED
from fseg_jax.evaluation.data.features import Encoded, Tile
from fseg_jax.evaluation.protocols.knn import knn_f1

STRIDE = classical().card.stride


def encoded(knows: bool, ignored: bool = False) -> Encoded:
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
    return Encoded(
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
    assert knn_f1(encoded(True), 2) == 1
    assert 0.3 < knn_f1(encoded(False), 2) < 0.7


def test_nothing_to_score():
    with pytest.raises(InputError, match="no token"):
        knn_f1(encoded(True, ignored=True), 2)
