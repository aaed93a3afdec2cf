"""Lloyd's iteration with bounds against looking at every point."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fseg_jax import kmeans, kmeans_bounds

KEY = jax.random.key(0)


def points(seed: int, n: int, c: int, groups: int) -> np.ndarray:
    r = np.random.default_rng(seed)
    return (r.normal(size=(groups, c))[r.integers(0, groups, n)] + 0.3 * r.normal(size=(n, c))).astype(
        np.float32
    )


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    shape=st.sampled_from([(300, 5), (1100, 3), (64, 40)]),
    k=st.integers(1, 9),
    groups=st.integers(1, 12),
)
def test_every_iteration_is_lloyds(seed, shape, k, groups):
    n, c = shape
    X = points(seed, n, c, groups)
    mean = X.mean(0, keepdims=True)
    x = np.float64(X - mean)
    centers = np.float32(x[np.random.default_rng(seed).choice(n, k, replace=False)])
    squares = jnp.sum(jnp.asarray(x, jnp.float32) ** 2, 1)

    def summed(labels):
        return jax.ops.segment_sum(jnp.asarray(x, jnp.float32), labels, k), jnp.bincount(
            labels, length=k
        ) * 1.0

    known = kmeans_bounds.unknown(n, jnp.asarray(centers))
    for _ in range(8):
        known = kmeans_bounds.assign(
            jnp.asarray(X), jnp.asarray(mean), squares, jnp.asarray(centers), known, summed
        )
        labels = np.asarray(known.labels)
        distances = np.linalg.norm(x[:, None] - np.float64(centers)[None], axis=-1)
        own = distances[np.arange(n), labels]
        np.testing.assert_allclose(own, distances.min(1), rtol=1e-4, atol=2e-3)  # nearest, but for rounding
        others = np.where(np.arange(k) == labels[:, None], np.inf, distances).min(1)
        assert (np.asarray(known.upper) >= own - 2e-3).all() and (
            np.asarray(known.lower) <= others + 2e-3
        ).all()
        np.testing.assert_allclose(known.counts, np.bincount(labels, minlength=k))
        sums = np.stack([x[labels == j].sum(0) for j in range(k)])
        np.testing.assert_allclose(known.sums, sums, atol=1e-3)
        new = np.where(
            np.asarray(known.counts)[:, None] > 0, sums / np.maximum(known.counts, 1)[:, None], centers
        )
        new = np.float32(new)
        known = kmeans_bounds.follow(known, jnp.asarray(np.linalg.norm(new - centers, axis=1)))
        centers = new


def test_points_whose_centre_cannot_have_changed_are_not_looked_at():
    """With no number among them where nothing can change, a pass finds what it knew."""
    X = points(0, 500, 6, 4)
    mean = np.zeros((1, 6), np.float32)
    centers = jnp.asarray(X[:4])
    squares = jnp.sum(jnp.asarray(X) ** 2, 1)

    def summed(labels):
        return jax.ops.segment_sum(jnp.asarray(X), labels, 4), jnp.bincount(labels, length=4) * 1.0

    known = kmeans_bounds.assign(
        jnp.asarray(X), mean, squares, centers, kmeans_bounds.unknown(500, centers), summed
    )
    clear = np.asarray(known.upper < known.lower * (1 - kmeans_bounds.SLACK))
    assert clear.mean() > 0.5
    broken = jnp.where(clear[:, None], jnp.nan, X)
    again = kmeans_bounds.assign(broken, mean, squares, centers, known, summed)
    np.testing.assert_array_equal(again.labels, known.labels)
    np.testing.assert_array_equal(again.sums, known.sums)


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("start", [False, True])
def test_looking_at_all_points_gives_the_same(monkeypatch, spherical, start):
    X = points(3, 3000, 24, 30)
    given = {"spherical": spherical, "start": X[:12] if start else None}
    bounded = kmeans.fit(X, 12, key=KEY, **given)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *operands, cpu, default: default(*operands))
    kmeans._fit.clear_cache()
    plain = kmeans.fit(X, 12, key=KEY, **given)
    kmeans._fit.clear_cache()
    assert int(bounded.iterations) == int(plain.iterations) > 3
    np.testing.assert_array_equal(bounded.labels, plain.labels)
    np.testing.assert_allclose(bounded.centers, plain.centers, atol=1e-4)
    np.testing.assert_allclose(bounded.inertia, plain.inertia, rtol=1e-5)
