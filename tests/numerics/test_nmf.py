"""NMF against SciPy's exact NNLS, scikit-learn's coordinate descent and float64."""

import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning

from fseg_jax.errors import InputError
from fseg_jax.numerics import nmf

KEY = jax.random.key(0)


def objective(A, W, H) -> np.ndarray:
    """½ ‖a − w·H‖² of each token, in float64."""
    return 0.5 * ((np.float64(A) - np.float64(W) @ np.float64(H)) ** 2).sum(-1)


def exact(A, H) -> np.ndarray:
    return np.stack([nnls(np.float64(H).T, np.float64(a), maxiter=30 * len(H))[0] for a in A])


def random_problem(k: int, kind: str, n: int = 48, c: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """Uniform A and H; sparse mixtures under multiplicative noise; or nearly parallel centres, as real ones
    are."""
    r = np.random.default_rng(k)
    if kind == "uniform":
        return r.random((n, c), np.float32), r.random((k, c), np.float32)
    H = r.gamma(0.3, size=(k, c))
    if kind == "parallel":
        H = H.mean(0) + 0.1 * H
    W = r.random((n, k)) * (r.random((n, k)) < 3 / k)
    return (W @ H * r.gamma(2, 0.5, size=(n, c))).astype(np.float32), H.astype(np.float32)


@pytest.mark.parametrize("kind", ["uniform", "mixtures", "parallel"])
@pytest.mark.parametrize("k", [16, 64, 256])
def test_solve_weights_reaches_the_exact_objective(k, kind):
    A, H = random_problem(k, kind)
    W = nmf.solve_weights(jnp.asarray(A), jnp.asarray(H))
    best = objective(A, exact(A, H), H).sum()
    assert np.asarray(W).min() >= 0
    assert abs(objective(A, W, H).sum() - best) <= 1e-4 * best


@pytest.mark.parametrize("kind", ["mixtures", "parallel"])
def test_an_accelerator_solves_for_the_same_weights(kind, monkeypatch):
    A, H = map(jnp.asarray, random_problem(64, kind))
    on_cpu = nmf.solve(A, H)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arrays, default, **_: default(*arrays))
    nmf._solve.clear_cache()
    elsewhere = nmf.solve(A, H)
    nmf._solve.clear_cache()
    assert elsewhere.converged.all() and on_cpu.converged.all()
    best = objective(A, on_cpu.W, H).sum()
    assert abs(objective(A, elsewhere.W, H).sum() - best) <= 1e-6 * best
    assert ((elsewhere.W > 0) == (on_cpu.W > 0)).mean() >= 0.995
    np.testing.assert_array_equal(elsewhere.W.argmax(1), on_cpu.W.argmax(1))


@pytest.mark.parametrize("k", [4, 16])
def test_multiplicative_weights_approach_the_exact_objective(k):
    A, H = random_problem(k, "mixtures")
    best = objective(A, exact(A, H), H).sum()
    W = nmf.solve_weights(jnp.asarray(A), jnp.asarray(H), method="mu")
    assert best * (1 - 1e-5) <= objective(A, W, H).sum() <= best * 1.005


def test_real_codebook_agrees_with_exact_argmax(data):
    from fseg_jax.codebook import Codebook

    H = Codebook.load(data / "codebooks" / "resnet.joblib", 64).centers
    r = np.random.default_rng(0)
    W = r.random((64, 64)) * (r.random((64, 64)) < 0.05)
    A = (W @ H * r.gamma(0.5, 2, size=(64, 1024))).astype(np.float32)
    ours, best = np.asarray(nmf.solve_weights(jnp.asarray(A), jnp.asarray(H))), exact(A, H)
    assert objective(A, ours, H).sum() <= objective(A, best, H).sum() * (1 + 1e-5)
    assert (ours.argmax(1) == best.argmax(1)).mean() >= 0.98


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    k=st.sampled_from([1, 2, 12]),  # a program each
    zero_rows=st.booleans(),
    zero_concept=st.booleans(),
    duplicate=st.booleans(),
    scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e6]),
)
def test_solve_weights_is_finite_and_optimal(seed, k, zero_rows, zero_concept, duplicate, scale):
    r = np.random.default_rng(seed)
    A, H = r.random((8, 8), np.float32), r.random((k, 8), np.float32)
    A[:2] *= not zero_rows
    H[0] *= not zero_concept
    if duplicate:
        H[-1] = H[0]
    A = (A * scale).astype(np.float32)
    W = np.asarray(nmf.solve_weights(jnp.asarray(A), jnp.asarray(H)))
    assert np.isfinite(W).all() and (W >= 0).all()
    if zero_rows:
        assert (W[:2] == 0).all()
    if zero_concept:
        assert (W[:, 0] == 0).all()
    best = objective(A, exact(A, H), H)
    # c = 8 channels are often fitted exactly, so the scale of the problem is ‖A‖², not what is left of it.
    assert (objective(A, W, H) - best <= 1e-4 * (best + 0.01 * (np.float64(A) ** 2).sum(1))).all()


def test_concepts_that_are_all_but_equal():
    """Their Gram matrix is singular to rounding: no step along it may run off to infinity."""
    H = np.array([[0.4903742, 0.28469408, 0.28420484], [0.28392118, 0.284443, 0.49047107]], np.float32)
    H = np.concatenate([H, [[0.48911998, 0.2839701, 0.28376514]]]).astype(np.float32)
    r = np.random.default_rng(0)
    pure = np.array([[0.0818, 0.9042, 0.0827], [0.9, 0.08, 0.08], [0.08, 0.08, 0.9]])
    A = np.clip(pure[r.integers(0, 3, 500)] + r.normal(0, 0.01, (500, 3)), 0, 1).astype(np.float32)
    W = np.asarray(nmf.solve_weights(jnp.asarray(A), jnp.asarray(H)))
    assert np.isfinite(W).all()
    best = objective(A, exact(A, H), H)
    assert (objective(A, W, H) - best <= 1e-4 * (np.float64(A) ** 2).sum(1)).all()


@pytest.mark.parametrize("method", ["active set", "cg", "mu"])
@pytest.mark.parametrize(("of_tokens", "of_concepts"), [(1e30, 1.0), (1e-30, 1.0), (1.0, 1e25), (1e30, 1e30)])
def test_solve_weights_is_right_for_numbers_of_any_size(of_tokens, of_concepts, method):
    """Squares of these are beyond float32 on either side."""
    A, H = random_problem(8, "mixtures", n=12, c=32)
    expected = exact(A, H)
    huge = [
        jnp.asarray((np.float64(x) * s).astype(np.float32)) for x, s in ((A, of_tokens), (H, of_concepts))
    ]
    W, converged = nmf.solve(*huge, method=method)
    W = np.float64(W) / of_tokens * of_concepts
    assert converged.all()
    np.testing.assert_allclose(W, expected, atol=(1e-2 if method == "mu" else 1e-4) * expected.max())


def test_tiny_concepts_are_no_zero_concepts():
    A, H = random_problem(8, "mixtures", n=12, c=32)
    W = nmf.solve_weights(jnp.asarray(A * np.float32(1e-10)), jnp.asarray(H * np.float32(1e-30)))
    np.testing.assert_allclose(np.float64(W) * 1e-20, exact(A, H), atol=1e-4 * np.asarray(W).max() * 1e-20)


def test_solve_says_which_tokens_have_converged():
    A, H = random_problem(16, "mixtures", n=24, c=64)
    A[3], A[5] = 0, np.nan
    fine = np.arange(24) != 5
    for method in nmf.LIMITS:
        W, converged = nmf.solve(jnp.asarray(A), jnp.asarray(H), method=method)
        np.testing.assert_array_equal(converged, fine, err_msg=method)
        np.testing.assert_array_equal(W, nmf.solve_weights(jnp.asarray(A), jnp.asarray(H), method=method))
    for method in ("cg", "mu"):
        _, converged = nmf.solve(jnp.asarray(A), jnp.asarray(H), method=method, max_iterations=1)
        assert converged[3] and not converged.all() and converged.sum() < 12
    each = nmf.solve(jnp.asarray(A.reshape(2, 12, 64)), jnp.stack([jnp.asarray(H)] * 2))
    np.testing.assert_array_equal(each.converged, fine.reshape(2, 12))


def test_solve_weights_does_not_depend_on_the_batch():
    A, H = random_problem(16, "mixtures", n=64, c=128)
    together = np.asarray(nmf.solve_weights(jnp.asarray(A), jnp.asarray(H)))
    alone = np.concatenate(
        [np.asarray(nmf.solve_weights(jnp.asarray(a), jnp.asarray(H))) for a in np.split(A, 8)]
    )
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4 * together.max())


def test_solve_weights_takes_leading_axes_and_one_h_a_problem():
    A, H = random_problem(5, "mixtures", n=24, c=32)
    A3, H3 = jnp.asarray(A.reshape(3, 8, 32)), jnp.stack([jnp.asarray(H)] * 3)
    shared = nmf.solve_weights(A3, jnp.asarray(H))
    each = nmf.solve_weights(A3, H3)
    assert shared.shape == each.shape == (3, 8, 5)
    np.testing.assert_allclose(shared, each, rtol=1e-3, atol=1e-5)


def planted(k: int, n: int = 256, c: int = 256) -> np.ndarray:
    r = np.random.default_rng(k)
    W = r.random((n, k)) * (r.random((n, k)) < 0.4)
    H = r.random((k, c)) * (r.random((k, c)) < 0.5)
    return (W @ H + 0.01 * r.random((n, c))).astype(np.float32)


@pytest.mark.parametrize("method", ["hals", "accelerated"])
@pytest.mark.parametrize("k", [8, 32])
def test_factorize_reaches_scikit_learns_objective(k, method):
    A = planted(k)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs = NMF(k, init="random", solver="cd", random_state=0).fit(A).reconstruction_err_
    ours = nmf.factorize(jnp.asarray(A), k, key=KEY, method=method)
    assert ours.error**2 <= theirs**2 * 1.01
    np.testing.assert_allclose(
        ours.error, np.linalg.norm(np.float64(A) - np.float64(ours.W) @ np.float64(ours.H)), rtol=1e-3
    )


@pytest.mark.smoke
def test_factorize_makes_scikit_learns_updates():
    """From one start, W and H follow scikit-learn's coordinate descent on the transpose, to its stop."""
    A = planted(6, n=64, c=48)
    r = np.random.default_rng(1)
    W, H = r.random((64, 6)), r.random((6, 48))
    model = NMF(6, init="custom", solver="cd", max_iter=200)
    H_theirs = model.fit_transform(A.T.astype(np.float64), W=H.T.copy(), H=W.T.copy()).T
    with jax.enable_x64(True):
        ours = nmf.factorize(jnp.asarray(A, jnp.float64), 6, key=KEY, start=(jnp.asarray(W), jnp.asarray(H)))
    assert int(ours.iterations) == model.n_iter_
    np.testing.assert_allclose(ours.H, H_theirs, rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(ours.W, model.components_.T, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("method", ["hals", "accelerated", "mu"])
@pytest.mark.parametrize("start", ["random", "nndsvd"])
def test_factorize_beats_its_start(method, start):
    A = planted(8, n=64, c=64)
    result = nmf.factorize(jnp.asarray(A), 8, key=KEY, method=method, start=start)
    assert (np.asarray(result.W) >= 0).all() and (np.asarray(result.H) >= 0).all()
    # A rank-8 truncated SVD is the best that any signs could do.
    s = np.linalg.svd(np.float64(A), compute_uv=False)
    assert np.linalg.norm(s[8:]) <= float(result.error) <= 0.25 * np.linalg.norm(A)


@pytest.mark.parametrize("method", ["hals", "accelerated", "mu"])
@pytest.mark.parametrize("start", ["random", "nndsvd"])
def test_factorize_survives_degenerate_tiles(method, start):
    r = np.random.default_rng(0)
    good = r.random((12, 10))
    tiles = np.stack([good, np.zeros_like(good), np.ones_like(good), np.outer(good[:, 0], good[0]), good])
    tiles[4, 3] = 0
    tiles[4, :, 5] = 0
    result = nmf.factorize(jnp.asarray(tiles, jnp.float32), 11, key=KEY, method=method, start=start)
    for field in result[:3]:
        assert np.isfinite(np.asarray(field)).all()
    assert float(result.error[1]) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("method", ["hals", "accelerated", "mu"])
@pytest.mark.parametrize("start", ["random", "nndsvd", "given"])
def test_factorize_is_right_for_numbers_of_any_size(method, start):
    """One batch of the same problem in three sizes: the results are the same, each in its own size."""
    A = planted(3, n=20, c=24)
    powers = np.array([1, 2.0**100, 2.0**-100], np.float32)[:, None, None]
    r = np.random.default_rng(0)
    given = [r.random(shape, np.float32) * np.sqrt(powers) for shape in ((20, 3), (3, 24))]
    begin = tuple(map(jnp.asarray, given)) if start == "given" else start
    result = nmf.factorize(jnp.asarray(A * powers), 3, key=KEY, method=method, start=begin)
    product = np.float64(result.W) @ np.float64(result.H) / powers
    assert np.linalg.norm(product[0] - A) <= 0.1 * np.linalg.norm(A)
    np.testing.assert_allclose(product[1:], product[[0, 0]], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.error / powers[:, 0, 0], np.asarray(result.error)[[0, 0, 0]], rtol=1e-5)


def test_factorize_says_which_problems_have_converged():
    A = jnp.asarray(np.stack([planted(4, n=20, c=24), np.zeros((20, 24), np.float32)]))
    for method in nmf.FREE_LIMITS:
        assert nmf.factorize(A, 4, key=KEY, method=method, max_iterations=2).converged.tolist() == [
            False,
            True,
        ]


def test_factorize_stops_each_problem_of_a_batch_by_itself():
    easy, hard = planted(2, n=32, c=40), planted(8, n=32, c=40)
    start = (jnp.asarray(np.random.default_rng(0).random((32, 4)), jnp.float32), jnp.ones((4, 40)))
    both = nmf.factorize(jnp.asarray(np.stack([easy, hard])), 4, key=KEY, start=start)
    alone = [nmf.factorize(jnp.asarray(a), 4, key=KEY, start=start) for a in (easy, hard)]
    assert int(both.iterations[0]) != int(both.iterations[1])
    for i, result in enumerate(alone):
        assert int(both.iterations[i]) == int(result.iterations)
        # Rounding differs with the batch, and two hundred iterations carry it on.
        np.testing.assert_allclose(both.W[i], result.W, rtol=1e-2, atol=1e-2)


def test_rows_beyond_those_that_count_change_nothing():
    A = np.random.default_rng(0).random((2, 35, 12), np.float32)
    A[1, 20:] = 0
    padded = jnp.asarray(np.pad(A, ((0, 0), (0, 29), (0, 0))))
    found = nmf.factorize(padded, 4, key=jax.random.key(0), rows=jnp.asarray([35, 20]))
    for i, rows in enumerate((35, 20)):
        alone = nmf.factorize(jnp.asarray(A[i : i + 1, :rows]), 4, key=jax.random.key(0))
        np.testing.assert_allclose(found.H[i], alone.H[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found.W[i, :rows], alone.W[0], rtol=1e-3, atol=1e-4)
        assert not np.asarray(found.W[i, rows:]).any()


def test_nothing_recompiles_for_the_same_shapes():
    solve = jax.jit(chex.assert_max_traces(lambda a, h: nmf.solve_weights(a, h), n=1))
    for seed in range(3):
        r = np.random.default_rng(seed)
        solve(jnp.asarray(r.random((16, 8), np.float32)), jnp.asarray(r.random((4, 8), np.float32)))
    before = nmf._factorize._cache_size()
    for seed in range(3):
        A = np.random.default_rng(seed).random((2, 16, 8), np.float32)
        nmf.factorize(jnp.asarray(A), 3, key=jax.random.key(seed))
    assert nmf._factorize._cache_size() == before + 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda A: nmf.solve_weights(A, A, method="als"), "choose 'active set', 'cg', 'mu'"),
        (lambda A: nmf.factorize(A, 0, key=KEY), "at least one concept"),
        (lambda A: nmf.factorize(A, 2, key=KEY, method="als"), "choose 'hals', 'accelerated', 'mu'"),
        (lambda A: nmf.factorize(A, 2, key=KEY, start="ones"), "choose 'random' or 'nndsvd'"),
    ],
)
def test_bad_arguments_are_named(call, says):
    with pytest.raises(InputError, match=says):
        call(jnp.ones((4, 4)))
