"""First centres: of any size, and merged as SciPy merges them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.cluster import hierarchy

from fseg_jax.numerics import kmeans
from fseg_jax.numerics.kmeans import seeding

KEY = jax.random.key(0)


def blobs(k: int, n: int = 3000, c: int = 24, spread: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    r = np.random.default_rng(k)
    truth = r.integers(0, k, n)
    return (r.normal(size=(k, c))[truth] + spread * r.normal(size=(n, c))).astype(np.float32), truth


@pytest.mark.parametrize("power", [2.0**100, 2.0**-100])
def test_first_centres_of_points_of_any_size(power):
    X, _ = blobs(4, n=200, c=5)
    plain, far = (kmeans.plus_plus(jnp.asarray(X * np.float32(p)), 4, KEY) for p in (1, power))
    np.testing.assert_array_equal(np.asarray(far) / np.float32(power), plain)


def test_draws_are_those_of_jax_and_follow_the_odds():
    odds = jnp.asarray([0.0, 1, 2, 0, 5], jnp.float32)
    drawn = jax.jit(seeding._draw_points, static_argnums=2)(KEY, odds, 40_000)
    np.testing.assert_array_equal(drawn, jax.random.categorical(KEY, jnp.log(odds), shape=(40_000,)))
    np.testing.assert_allclose(np.bincount(drawn) / 40_000, odds / 8, atol=0.01)


def test_points_that_coincide_can_be_drawn():
    np.testing.assert_array_equal(seeding._draw_points(KEY, jnp.zeros(7), 3), 0)


def test_wards_merging_is_scipys():
    points = np.random.default_rng(0).normal(size=(40, 3))
    ours = seeding.merge_ward(points, np.ones(40, int), (3, 7))
    tree = hierarchy.linkage(points, "ward")
    for k, centers in ours.items():
        labels = hierarchy.fcluster(tree, k, "maxclust")
        theirs = np.stack([points[labels == j].mean(0) for j in range(1, k + 1)])
        np.testing.assert_allclose(sorted(centers.tolist()), sorted(theirs.tolist()), atol=1e-5)


def test_weights_in_wards_merging_are_points_repeated():
    points = np.random.default_rng(1).normal(size=(12, 2))
    weights = np.arange(1, 13)
    ours = seeding.merge_ward(points, weights, (4,))[4]
    tree = hierarchy.linkage(np.repeat(points, weights, 0), "ward")
    labels = hierarchy.fcluster(tree, 4, "maxclust")
    theirs = [np.repeat(points, weights, 0)[labels == j].mean(0).tolist() for j in range(1, 5)]
    np.testing.assert_allclose(sorted(ours.tolist()), sorted(theirs), atol=1e-5)
