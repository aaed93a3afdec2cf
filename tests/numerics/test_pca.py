"""Principal components keep distances, and name bad input."""

import numpy as np
import pytest

from fseg_jax.errors import InputError
from fseg_jax.numerics.pca import reduce_channels


def test_coordinates_keep_distances():
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(300, 20)) @ rng.normal(size=(20, 96)) + 50).astype(np.float32)
    reduced = reduce_channels(X)
    assert reduced.X.shape == (300, 64) and reduced.variance_kept == pytest.approx(1, abs=1e-5)
    ours, theirs = (((z[:1] - z) ** 2).sum(1) for z in (np.asarray(reduced.X), X))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    np.testing.assert_allclose(
        np.asarray(reduce_channels(X.astype(np.float16)).X).std(), np.asarray(reduced.X).std(), rtol=1e-2
    )


def test_bad_input_is_named():
    with pytest.raises(InputError, match="no patches"):
        reduce_channels(np.zeros((0, 4), np.float32))
    with pytest.raises(InputError, match="'euclidean' or 'cosine'"):
        reduce_channels(np.ones((3, 4), np.float32), distance="manhattan")
