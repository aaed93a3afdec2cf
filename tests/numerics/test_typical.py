"""Scores of how typical tokens are of their cluster, against loops over tokens."""

import jax.numpy as jnp
import numpy as np
import pytest

from fseg_jax.numerics.typical import WHOLE, find_leaders, score_typical

pytestmark = pytest.mark.smoke


def test_leaders_are_the_largest_contributions_and_their_shares():
    W = np.random.default_rng(0).gamma(0.5, size=(2, 6, 7, 5)).astype(np.float32)
    W[0, 2, 3] = 0
    W[1, 1, 1] = (0, 2, 0, 0, 0)
    label, share = map(np.asarray, find_leaders(jnp.asarray(W)))
    inner = W[:, 1:-1, 1:-1].astype(np.float64)
    expected = np.where(inner.max(-1) > 0, inner.argmax(-1) + 1, 0)
    np.testing.assert_array_equal(label, expected)
    with np.errstate(invalid="ignore"):
        shares = np.nan_to_num(inner.max(-1) / inner.sum(-1)) * WHOLE
    np.testing.assert_allclose(share, shares, atol=0.51)
    assert share[1, 0, 0] == WHOLE and share[0, 1, 2] == 0


@pytest.mark.parametrize(("radius", "offsets"), [(1, (-1, 0, 1)), (3, range(-3, 4)), (4, (-4, -2, 0, 2, 4))])
def test_a_score_is_the_mean_share_of_the_tokens_cluster(radius, offsets):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, (13, 15)).astype(np.uint16)
    shares = rng.integers(0, 256, labels.shape).astype(np.uint8)
    found = score_typical(labels, shares, radius)
    assert found.shape == (13 - 2 * radius, 15 - 2 * radius)
    for y, x in np.ndindex(found.shape):
        own = labels[y + radius, x + radius]
        places = [(y + radius + dy, x + radius + dx) for dy in offsets for dx in offsets]
        total = sum(int(shares[at]) for at in places if labels[at] == own)
        assert found[y, x] == (total // len(places) if own else 0)
