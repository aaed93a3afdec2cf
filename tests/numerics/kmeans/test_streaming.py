"""k-means over any number of devices and processes, against scikit-learn, SciPy and planted clusters."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.cluster import KMeans

from fseg_jax.errors import InputError
from fseg_jax.numerics.kmeans import shards, streaming
from fseg_jax.numerics.kmeans.shards import Points

KEY = jax.random.key(0)


def nested(n: int = 6000, c: int = 16, seed: int = 0) -> np.ndarray:
    """Four groups of two, each of two: planted centres for k = 4, 8 and 16."""
    r = np.random.default_rng(seed)
    centers = r.normal(size=(4, c)) * 3 + 4
    for step in (1.0, 0.5):
        offset = step * r.normal(size=centers.shape)
        centers = np.stack([centers + offset, centers - offset], 1).reshape(-1, c)
    return (centers[r.integers(0, 16, n)] + 0.1 * r.normal(size=(n, c))).astype(np.float16)


@pytest.fixture(scope="module")
def fitted():
    X = nested()
    return X, streaming.fit(X, (4, 16), key=KEY)


@pytest.mark.parametrize("k", [4, 16])
def test_several_k_in_one_pass_are_as_good_as_scikit_learns(fitted, k):
    X, results = fitted
    theirs = KMeans(k, n_init=10, random_state=0).fit(X.astype(np.float32))
    assert results[k].inertia <= theirs.inertia_ * (1 + 1e-4)


@pytest.mark.parametrize("k", [4, 16])
def test_the_result_is_what_it_says(fitted, k):
    X, results = fitted
    result, X = results[k], X.astype(np.float64)
    distances = ((X[:, None] - result.centers[None].astype(np.float64)) ** 2).sum(-1)
    np.testing.assert_allclose(distances[np.arange(len(X)), result.labels], distances.min(1), atol=1e-3)
    np.testing.assert_allclose(result.distances, distances.min(1), rtol=1e-3, atol=1e-4)
    assert result.inertia == pytest.approx(distances.min(1).sum(), rel=1e-4)
    means = np.stack([X[result.labels == j].mean(0) for j in range(k)])
    np.testing.assert_allclose(result.centers, means, atol=1e-4)  # bfloat16 is in none of it


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("power", [2.0**100, 2.0**-100])
def test_points_of_any_size_are_clustered_as_those_near_one(power, spherical):
    X = nested(600).astype(np.float32)
    plain, far = (
        streaming.fit(X * np.float32(p), (4,), key=KEY, spherical=spherical, restarts=1)[4]
        for p in (1, power)
    )
    own = 1 if spherical else power
    np.testing.assert_array_equal(far.labels, plain.labels)
    np.testing.assert_array_equal(far.centers / np.float32(own), plain.centers)
    np.testing.assert_allclose(far.distances / own**2, plain.distances, rtol=1e-6)
    assert far.inertia == pytest.approx(plain.inertia * own**2, rel=1e-6)


def test_a_point_far_beyond_the_others_is_refused_where_float32_cannot_hold_both():
    X = nested(3000).astype(np.float32)
    X[1, 4] = 1e30
    for spherical in (False, True):
        with pytest.raises(InputError, match="a value far beyond the others"):
            streaming.fit(X, (4,), key=jax.random.key(1), spherical=spherical, restarts=1)


def test_it_is_said_whether_the_centres_came_to_rest(fitted, monkeypatch):
    assert fitted[1][4].converged and fitted[1][16].converged
    monkeypatch.setattr(streaming, "START_PASSES", 1)  # or else they begin at rest
    noise = np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32)
    for passes, rested in ((1, False), (100, True)):
        assert streaming.fit(noise, (16,), key=KEY, restarts=1, max_iterations=passes)[16].converged == rested


def test_spherical_ignores_lengths_and_keeps_to_the_sphere():
    X = nested(600).astype(np.float32)
    scaled = X * np.random.default_rng(1).uniform(0.5, 2, (len(X), 1)).astype(np.float32)
    one, other = (
        streaming.fit(points, (4,), key=KEY, spherical=True, restarts=1)[4] for points in (X, scaled)
    )
    np.testing.assert_allclose(np.linalg.norm(one.centers, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(one.centers, other.centers, atol=1e-4)
    cosine = (X / np.linalg.norm(X, axis=1, keepdims=True)) @ one.centers.T
    assert (cosine.argmax(1) == one.labels).all()


def test_mini_batches_come_close(fitted, monkeypatch):
    X, results = fitted
    monkeypatch.setattr(shards, "BATCH", 1024)
    result = streaming.fit(X, (16,), key=KEY, algorithm="minibatch", restarts=1)[16]
    assert result.inertia <= results[16].inertia * 1.02
    assert result.iterations <= streaming.MINI_BATCH_PASSES


def test_an_empty_cluster_takes_a_far_point():
    X = np.zeros((600, 2), np.float32)
    X[:, 0] = np.random.default_rng(0).normal(size=600)
    X[400] = (0, 50)
    points = Points(X, jax.devices()[:1], np.zeros(2, np.float32), spherical=False)
    start = {2: np.array([[0, 0], [900, 900]], np.float32)}  # the second has no points
    moved = streaming._move(points, points.sum_clusters(start, [2]), start)
    np.testing.assert_array_equal(moved[2][1], X[400])


def test_all_points_may_be_centres_and_identical_ones_do_no_harm():
    X = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    assert streaming.fit(X, (6,), key=KEY, restarts=1)[6].inertia == pytest.approx(0, abs=1e-6)
    same = streaming.fit(np.ones((300, 2), np.float32), (3,), key=KEY, restarts=1, max_iterations=3)[3]
    assert np.isfinite(same.centers).all()
    assert same.inertia == 0


@pytest.mark.parametrize("k", [0, 11])
def test_k_must_fit_the_points(k):
    with pytest.raises(InputError, match="choose k between 1 and 10"):
        streaming.fit(np.zeros((10, 2), np.float32), (2, k), key=KEY)


def test_nan_is_named():
    X = np.ones((600, 2), np.float16)
    X[500, 1] = np.nan
    with pytest.raises(InputError, match="NaN"):
        streaming.fit(X, (2,), key=KEY)


PROGRAM = """
import sys, jax, numpy as np
if {processes} > 1:
    jax.distributed.initialize("127.0.0.1:{port}", {processes}, {index})
sys.path.insert(0, {tests!r})
from test_streaming import nested
from fseg_jax.numerics.kmeans import streaming
assert len(jax.devices()) == {devices}, jax.devices()
results = streaming.fit(nested(40_000), (4, 16), key=jax.random.key(0), restarts=1)
out = {{f"{{n}}{{k}}": getattr(r, n) for k, r in results.items() for n in ("centers", "labels")}}
np.savez({out!r}, **out)
"""


def fit_elsewhere(folder: Path, devices: int, processes: int = 1) -> list[dict[str, np.ndarray]]:
    """The same fit in processes of their own, on simulated devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started, outs = [], []
    for index in range(processes):
        out = str(folder / f"{devices}-{processes}-{index}.npz")
        program = PROGRAM.format(
            tests=str(Path(__file__).parent),
            processes=processes,
            port=port,
            index=index,
            devices=devices,
            out=out,
        )
        flags = f"--xla_force_host_platform_device_count={devices // processes}"
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        started.append(
            subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE)
        )
        outs.append(out)
    for process in started:
        _, error = process.communicate(timeout=900)
        assert process.returncode == 0, error.decode()[-3000:]
    return [dict(np.load(out)) for out in outs]


@pytest.mark.long
def test_devices_and_processes_do_not_change_the_centres(tmp_path):
    (one,) = fit_elsewhere(tmp_path, 1)
    (eight,) = fit_elsewhere(tmp_path, 8)
    first, second = fit_elsewhere(tmp_path, 2, processes=2)
    for other in (eight, first, second):
        for k in (4, 16):
            np.testing.assert_allclose(one[f"centers{k}"], other[f"centers{k}"], atol=1e-4)
            assert (one[f"labels{k}"] == other[f"labels{k}"]).mean() > 0.9999
