"""k-means against scikit-learn, brute force and planted clusters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from fseg_jax.errors import InputError
from fseg_jax.numerics import kmeans
from fseg_jax.numerics.kmeans import lloyd, seeding, slabs

KEY = jax.random.key(0)


def blobs(k: int, n: int = 3000, c: int = 24, spread: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    r = np.random.default_rng(k)
    truth = r.integers(0, k, n)
    return (r.normal(size=(k, c))[truth] + spread * r.normal(size=(n, c))).astype(np.float32), truth


def test_a_start_of_another_shape_is_named():
    X, _ = blobs(8, spread=2.0)
    with pytest.raises(InputError, match=r"first centres of shape \(7, .*give \(k, c\) = \(8, "):
        kmeans.fit(X, 8, key=KEY, start=X[:7])


@pytest.mark.parametrize("k", [4, 16, 64])
def test_planted_clusters_are_found(k):
    X, truth = blobs(k)
    results = [kmeans.fit(X, k, key=jax.random.key(seed)) for seed in range(4)]
    result = min(results, key=lambda result: float(result.inertia))
    theirs = KMeans(k, n_init=4, random_state=0).fit(X)
    assert adjusted_rand_score(truth, result.labels) >= adjusted_rand_score(truth, theirs.labels_) - 0.02
    assert float(result.inertia) <= theirs.inertia_ * 1.02


@pytest.mark.smoke
def test_the_same_start_gives_scikit_learns_centres():
    X, _ = blobs(8, spread=2.0)
    start = X[:8]
    ours = kmeans.fit(X, 8, key=KEY, start=start)
    theirs = KMeans(8, init=start, n_init=1, algorithm="lloyd").fit(X)
    np.testing.assert_allclose(ours.centers, theirs.cluster_centers_, atol=2e-3)
    assert (np.asarray(ours.labels) == theirs.labels_).mean() >= 0.999
    assert float(ours.inertia) == pytest.approx(theirs.inertia_, rel=1e-4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), shape=st.sampled_from([(1, 1), (7, 7), (60, 5)]))
def test_the_result_is_what_it_says(seed, shape):
    n, k = shape
    X = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
    result = kmeans.fit(X, k, key=jax.random.key(seed))
    centers, labels = np.asarray(result.centers), np.asarray(result.labels)
    distances = ((X[:, None] - centers[None]) ** 2).sum(-1)
    np.testing.assert_allclose(distances[np.arange(n), labels], distances.min(1), atol=1e-4)
    assert float(result.inertia) == pytest.approx(distances.min(1).sum(), rel=1e-3, abs=1e-4)


def test_products_sum_clusters_to_the_last_bit():
    """An accelerator sums by products of bfloat16: three of them make up a float32."""
    X = np.random.default_rng(0).normal(size=(60, 7)).astype(np.float32)
    X = np.round(X * 2**16) / 2**16  # sums of these are exact in any order
    labels = jnp.arange(60) % 5  # the last is of no cluster
    sums, counts = jax.jit(slabs.multiply_members, static_argnums=2)(jnp.asarray(X), labels, 4)
    np.testing.assert_array_equal(sums, np.stack([X[c::5].sum(0) for c in range(4)]))
    np.testing.assert_array_equal(counts, 12)


def test_points_of_bfloat16_are_clustered_as_such(monkeypatch):
    X, truth = blobs(5, n=1000)
    start, rounded = np.stack([X[truth == c][0] for c in range(5)]), jnp.asarray(X, jnp.bfloat16)
    results = [kmeans.fit(points, 5, key=KEY, start=start) for points in (X, rounded)]
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *operands, default, **_: default(*operands))
    lloyd._fit.clear_cache()
    results.append(kmeans.fit(rounded, 5, key=KEY, start=start))
    lloyd._fit.clear_cache()
    for result in results[1:]:
        np.testing.assert_array_equal(result.labels, results[0].labels)
        np.testing.assert_allclose(result.centers, results[0].centers, atol=1e-2)
        np.testing.assert_allclose(result.inertia, results[0].inertia, rtol=1e-3)


def test_first_centres_of_many_points_are_drawn_from_a_sample(monkeypatch):
    X, _ = blobs(8, n=2000)
    monkeypatch.setattr(seeding, "SAMPLE", 200)
    monkeypatch.setattr(seeding, "SAMPLE_OF_CENTER", 20)
    seeding.draw_centers.clear_cache()
    centers = np.asarray(kmeans.plus_plus(jnp.asarray(X), 8, KEY))
    seeding.draw_centers.clear_cache()
    assert (np.abs(X[None] - centers[:, None]).max(-1).min(1) < 1e-4).all()  # they are points
    found = kmeans.fit(X, 8, key=KEY, start=centers)
    assert float(found.inertia) <= 1.01 * float(kmeans.fit(X, 8, key=KEY).inertia)


@pytest.mark.parametrize("slab", [96, 500])  # the last slab overlaps the one before, or fits
def test_slabs_do_not_change_the_result(monkeypatch, slab):
    X, _ = blobs(5, n=1000)
    whole = kmeans.fit(X, 5, key=KEY)
    monkeypatch.setattr(slabs, "SLAB", slab)
    lloyd._fit.clear_cache()
    in_slabs = kmeans.fit(X, 5, key=KEY)
    lloyd._fit.clear_cache()
    np.testing.assert_allclose(whole.centers, in_slabs.centers, atol=1e-5)
    assert (whole.labels == in_slabs.labels).all()


def test_an_empty_cluster_takes_the_farthest_point():
    X = np.array([[0.0], [0.1], [0.2], [10.0]], np.float32)
    start = np.array([[0.1], [50.0]], np.float32)  # the second has no points
    result = kmeans.fit(X, 2, key=KEY, start=start, max_iterations=1)
    np.testing.assert_allclose(result.centers, [[2.575], [10.0]], rtol=1e-6)


def test_identical_points_give_coinciding_clusters():
    result = kmeans.fit(np.ones((10, 2), np.float32), 3, key=KEY)
    assert np.isfinite(np.asarray(result.centers)).all()
    assert float(result.inertia) == 0


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("power", [2.0**100, 2.0**-100])
def test_points_of_any_size_are_clustered_as_those_near_one(power, spherical):
    X, _ = blobs(4, n=200, c=5)
    plain = kmeans.fit(X, 4, key=KEY, spherical=spherical)
    far = kmeans.fit(X * np.float32(power), 4, key=KEY, spherical=spherical)
    own = 1 if spherical else power
    np.testing.assert_array_equal(far.labels, plain.labels)
    np.testing.assert_array_equal(np.asarray(far.centers) / np.float32(own), plain.centers)
    assert float(far.inertia) == pytest.approx(float(plain.inertia) * own**2, rel=1e-6)
    start = kmeans.fit(X * np.float32(power), 4, key=KEY, start=X[:4] * np.float32(power))
    np.testing.assert_array_equal(start.labels, kmeans.fit(X, 4, key=KEY, start=X[:4]).labels)


def test_it_is_said_whether_the_centres_came_to_rest():
    X, _ = blobs(8, spread=2.0)
    assert bool(kmeans.fit(X, 8, key=KEY).converged)
    assert not bool(kmeans.fit(X, 8, key=KEY, max_iterations=1).converged)


def test_one_key_gives_one_result():
    X, _ = blobs(8)
    first, again = (kmeans.fit(X, 8, key=KEY) for _ in range(2))
    assert (np.asarray(first.centers) == np.asarray(again.centers)).all()


def test_nothing_recompiles_for_the_same_shapes():
    before = lloyd._fit._cache_size()
    for seed in range(3):
        kmeans.fit(np.random.default_rng(seed).random((50, 7), np.float32), 4, key=jax.random.key(seed))
    assert lloyd._fit._cache_size() == before + 1


@pytest.mark.smoke
@pytest.mark.parametrize("k", [0, 11])
def test_k_must_fit_the_points(k):
    with pytest.raises(InputError, match="choose k between 1 and 10"):
        kmeans.fit(np.zeros((10, 2), np.float32), k, key=KEY)


def test_nan_is_named():
    X = np.zeros((10, 2), np.float32)
    X[3, 1] = np.nan
    with pytest.raises(InputError, match="NaN"):
        kmeans.fit(X, 2, key=KEY)
