"""Edge-aware smoothing of W, beside a filter written out token by token in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from fseg_jax.numerics.smoothing import PASSES, Likeness, choose_radius, measure_likeness, smooth


def smooth_slowly(W, weight, centers, tolerance, sigma, radius):
    """Smooth one image by loops over tokens; what lies outside counts for nothing."""
    Z = W @ centers
    norm = np.linalg.norm(Z, axis=-1)
    rows, columns = weight.shape
    for _ in range(PASSES):
        result = np.zeros_like(W)
        for y, x in np.ndindex(weight.shape):
            total = 0.0
            for v in range(max(0, y - radius), min(rows, y + radius + 1)):
                for u in range(max(0, x - radius), min(columns, x + radius + 1)):
                    if not norm[v, u]:
                        continue
                    cosine = Z[y, x] @ Z[v, u] / (norm[y, x] * norm[v, u]) if norm[y, x] else 1
                    near = np.exp(-((y - v) ** 2 + (x - u) ** 2) / (2 * sigma**2))
                    share = weight[v, u] * near * np.exp(-(1 - cosine) / tolerance)
                    result[y, x] += share * W[v, u]
                    total += share
            result[y, x] /= max(total, 1e-300)
        W = result
    return W


def pad(values, radius):
    frame = (PASSES * radius,) * 2
    return jnp.asarray(np.pad(values, (frame, frame, *((0, 0),) * (values.ndim - 2)))[None], jnp.float32)


@pytest.mark.parametrize(("k", "c"), [(3, 8), (9, 4)])
def test_it_is_the_filter_written_out(k, c):
    r = np.random.default_rng(k)
    centers = r.random((k, c)) ** 4
    W = r.random((9, 7, k)) * (r.random((9, 7, k)) < 0.4)
    W[2, 3] = W[5:7, 1:4] = 0  # without W
    weight = (r.random((9, 7)) < 0.8).astype(float)
    likeness = measure_likeness(centers)
    smoothed = smooth(pad(W, 2), pad(weight, 2), likeness, 1.0, 2)
    expected = smooth_slowly(W, weight, centers, float(likeness.tolerance), 1.0, 2)
    np.testing.assert_allclose(np.asarray(smoothed)[0], expected, atol=2e-5)


def test_among_tokens_alike_it_is_scipys_gaussian():
    r = np.random.default_rng(0)
    W = np.ones((12, 11, 2)) * r.random((12, 11, 1))  # of one direction
    likeness = measure_likeness(r.random((2, 5)))
    smoothed = np.asarray(smooth(pad(W, 3), pad(np.ones((12, 11)), 3), likeness, 1.5, 3))[0]

    def blur(plane):
        return ndimage.gaussian_filter(plane, 1.5, radius=3, mode="constant")

    expected = W[..., 0]
    for _ in range(PASSES):
        expected = blur(expected) / blur(np.ones((12, 11)))
    np.testing.assert_allclose(smoothed, np.stack([expected, expected], -1), rtol=1e-4)


def test_a_border_stays_and_a_speck_that_is_nearly_alike_goes():
    """Two tissues keep their border to the token; one token of noise takes its neighbours' label."""
    centers = np.array([[10.0, 1, 0], [9, 3, 0], [0, 1, 10]])
    likeness = Likeness(measure_likeness(centers).root, jnp.float32(0.05))
    W = np.zeros((16, 16, 3))
    W[:, :8, 0], W[:, 8:, 2] = 1, 1
    W[4, 3] = (0.45, 0.55, 0)
    labels = np.asarray(smooth(pad(W, 2), pad(np.ones((16, 16)), 2), likeness, 1.0, 2))[0].argmax(-1)
    assert (labels == np.where(np.arange(16) < 8, 0, 2)).all()


def test_where_nothing_counts_is_nothing():
    W, likeness = np.ones((9, 9, 2)), measure_likeness(np.eye(2))
    assert not np.asarray(smooth(pad(W, 2), pad(np.zeros((9, 9)), 2), likeness, 1.0, 2)).any()


def test_the_tolerance_follows_the_centres():
    assert measure_likeness(np.ones((1, 4))).tolerance == 1  # one centre: all are alike
    assert 0 < measure_likeness(np.ones((3, 4))).tolerance < 1e-3
    np.testing.assert_allclose(float(measure_likeness(np.eye(4)).tolerance), 0.05, rtol=1e-6)
    H = np.random.default_rng(0).random((40, 6))
    root = np.asarray(measure_likeness(H).root)
    assert root.shape == (40, 6)
    np.testing.assert_allclose(root @ root.T, H @ H.T, rtol=1e-5)
    H = np.random.default_rng(0).random((60, 40)) ** 8
    root = np.asarray(measure_likeness(H).root)
    assert root.shape == (60, 32)
    np.testing.assert_allclose(root @ root.T, H @ H.T, atol=0.05 * np.abs(H @ H.T).max())


@pytest.mark.parametrize(
    ("sigma", "most", "radius"), [(0.0, 9, 0), (0.3, 9, 1), (1.0, 9, 2), (40.0, 9, 9), (1.0, 0, 0)]
)
def test_the_radius_is_two_sigmas_within_the_neighbours(sigma, most, radius):
    assert choose_radius(sigma, most) == radius
