"""Lloyd's iteration with bounds against looking at every point."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fseg_jax.numerics import kmeans
from fseg_jax.numerics.kmeans import bounds, lloyd

KEY = jax.random.key(0)


def points(seed: int, n: int, c: int, groups: int) -> np.ndarray:
    r = np.random.default_rng(seed)
    return (r.normal(size=(groups, c))[r.integers(0, groups, n)] + 0.3 * r.normal(size=(n, c))).astype(
        np.float32
    )


@jax.jit
def assign(X, mean, squares, centers, known):
    def sum_all(labels):
        k = len(centers)
        return jax.ops.segment_sum(X - mean, labels, k), jnp.bincount(labels, length=k).astype(X.dtype)

    return bounds.assign(X, mean, squares, centers, known, sum_all)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    shape=st.sampled_from([(300, 5, 4), (1100, 3, 9), (64, 40, 1)]),
    groups=st.integers(1, 12),
)
def test_every_iteration_is_lloyds(seed, shape, groups):
    n, c, k = shape
    X = points(seed, n, c, groups)
    mean = X.mean(0, keepdims=True)
    x = np.float64(X - mean)
    centers = np.float32(x[np.random.default_rng(seed).choice(n, k, replace=False)])
    squares = np.float32(np.sum(x**2, axis=1))
    known = bounds.init_bounds(n, jnp.asarray(centers))
    for _ in range(8):
        known = assign(X, mean, squares, centers, known)
        labels = np.asarray(known.labels)
        distances = np.linalg.norm(x[:, None] - np.float64(centers)[None], axis=-1)
        own = distances[np.arange(n), labels]
        np.testing.assert_allclose(own, distances.min(1), rtol=1e-4, atol=2e-3)  # nearest, but for rounding
        others = np.where(np.arange(k) == labels[:, None], np.inf, distances).min(1)
        assert (np.asarray(known.upper) >= own - 2e-3).all()
        assert (np.asarray(known.lower) <= others + 2e-3).all()
        counts = np.bincount(labels, minlength=k)
        np.testing.assert_array_equal(known.counts, counts)
        sums = np.stack([x[labels == j].sum(0) for j in range(k)])
        np.testing.assert_allclose(known.sums, sums, atol=1e-3)
        moved = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centers).astype(
            np.float32
        )
        known = bounds.follow_centers(known, jnp.asarray(np.linalg.norm(moved - centers, axis=1)))
        centers = moved


def test_points_whose_centre_cannot_have_changed_are_not_looked_at():
    """With no number among them where nothing can change, a pass finds what it knew."""
    X = points(0, 500, 6, 4)
    mean, centers, squares = np.zeros((1, 6), np.float32), X[:4], np.sum(X**2, axis=1)
    known = assign(X, mean, squares, centers, bounds.init_bounds(500, jnp.asarray(centers)))
    clear = np.asarray(known.upper < known.lower * (1 - bounds.SLACK))
    assert clear.mean() > 0.5
    broken = np.where(clear[:, None], np.float32(np.nan), X)
    again = assign(broken, mean, squares, centers, known)
    np.testing.assert_array_equal(again.labels, known.labels)
    np.testing.assert_array_equal(again.sums, known.sums)


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("start", [False, True])
def test_looking_at_all_points_gives_the_same(monkeypatch, spherical, start):
    X = points(3, 3000, 24, 30)
    given = {"spherical": spherical, "start": X[:12] if start else None}
    bounded = kmeans.fit(X, 12, key=KEY, **given)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *operands, cpu, default: default(*operands))
    monkeypatch.setattr(lloyd, "DEVICE_SLAB", 700)
    lloyd._fit.clear_cache()
    plain = kmeans.fit(X, 12, key=KEY, **given)
    lloyd._fit.clear_cache()
    assert int(bounded.iterations) == int(plain.iterations) > 3
    np.testing.assert_array_equal(bounded.labels, plain.labels)
    np.testing.assert_allclose(bounded.centers, plain.centers, atol=1e-4)
    np.testing.assert_allclose(bounded.inertia, plain.inertia, rtol=1e-5)
