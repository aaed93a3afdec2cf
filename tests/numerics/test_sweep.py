"""Coordinate descent over the rows of a factor: the loop, the kernel in interpret mode, and float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fseg_jax.numerics import nmf, sweep


def problem(k: int, m: int):
    r = np.random.default_rng(k)
    H = r.random((k, 40))
    H[-1] = 0 if k > 2 else H[-1]  # a concept that has faded
    G, N, F = H @ H.T, r.random((k, 40)) @ r.random((40, m)), r.random((k, m))
    scale = 1 / np.where(np.diag(G) > 0, np.diag(G), np.inf)[:, None]
    return N * scale, G * scale - np.eye(k), F


def descend(target, step, F, passes):
    """Coordinate descent in float64, a row at a time."""
    F = F.copy()
    for j in list(range(len(F))) * passes:
        F[j] = np.maximum(target[j] - step[j] @ F, 0)
    return F


@pytest.mark.parametrize(("k", "m"), [(1, 5), (6, 40), (20, 1100), (65, 12)])
def test_the_kernel_and_the_loop_are_coordinate_descent(k, m):
    arrays = problem(k, m)
    exact = descend(*arrays, 2)
    arrays = [jnp.asarray(x, jnp.float32) for x in arrays]
    for way in (sweep.sweep_in_loop, partial(sweep.sweep_in_kernel, interpret=True)):
        np.testing.assert_allclose(way(*arrays, 2), exact, rtol=1e-4, atol=1e-5 * exact.max())


@pytest.mark.parametrize("method", ["hals", "accelerated"])
def test_a_tpu_factorizes_as_a_cpu_does(method, monkeypatch):
    A = np.random.default_rng(0).random((3, 12, 4)) @ np.random.default_rng(1).random((3, 4, 18))
    factorize = partial(
        nmf.factorize, jnp.asarray(A, jnp.float32), 4, key=jax.random.key(0), method=method, max_iterations=30
    )
    on_cpu = factorize()
    monkeypatch.setattr(nmf, "sweep_in_kernel", partial(sweep.sweep_in_kernel, interpret=True))
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arrays, tpu, **_: tpu(*arrays))
    nmf._factorize.clear_cache()
    on_tpu = factorize()
    nmf._factorize.clear_cache()
    np.testing.assert_array_equal(on_tpu.iterations, on_cpu.iterations)
    np.testing.assert_allclose(on_tpu.W, on_cpu.W, atol=2e-3)
    np.testing.assert_allclose(on_tpu.error, on_cpu.error, rtol=1e-2)
