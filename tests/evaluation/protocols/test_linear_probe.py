"""The probe of §3.5.1: its threshold by hand, its classifier against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from fseg_jax.errors import InputError
from fseg_jax.evaluation.protocols import linear_probe

COUNTS = np.array([[[5, 0, 0], [0, 5, 0], [3, 0, 2], [0, 0, 0]]])  # one tile of 4 × 4 pixels, four concepts
H = np.array([[[2, 0], [0, 4], [3, 4], [1, 1]]], np.float32)


def test_association_by_hand() -> None:
    share = linear_probe.associate(COUNTS)[0]
    assert share.tolist() == [[1, 0, 0], [0, 1, 0], [0.6, 0, 0.4], [0, 0, 0]]


def test_a_share_must_exceed_the_threshold() -> None:
    below = linear_probe.collect_pairs(H, COUNTS, 0.59)
    assert below.y.tolist() == [0, 1, 0] and below.per_category.tolist() == [2, 1, 0]
    assert pytest.approx(np.array([[1, 0], [0, 1], [0.6, 0.8]])) == below.X  # at unit length
    equal = linear_probe.collect_pairs(H, COUNTS, 0.6)  # concept 2 has exactly 60 %
    assert equal.y.tolist() == [0, 1] and equal.per_category.tolist() == [1, 1, 0]


@pytest.mark.parametrize("threshold", [0.3, 1.0])
def test_thresholds_that_several_or_no_categories_exceed_are_refused(threshold: float) -> None:
    with pytest.raises(InputError, match=r"from 0\.5 up to"):
        linear_probe.collect_pairs(H, COUNTS, threshold)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("n", [2, 4])
def test_classifier_agrees_with_scikit_learn(n: int, balanced: bool) -> None:
    rng = np.random.default_rng(n)
    y = rng.choice(n, 600, p=np.arange(1, n + 1) / (n * (n + 1) / 2))
    X = np.abs(rng.normal(size=(600, 10)) + 1.2 * np.eye(n, 10)[y]).astype(np.float32) * np.arange(1, 11)
    X = X.astype(np.float32)
    probe = linear_probe.fit(X, y, n, balanced=balanced)
    assert probe.converged
    Z = StandardScaler().fit_transform(X)
    model = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000, class_weight="balanced" if balanced else None)
    if n == 2:  # scikit-learn's binary model has one weight vector, ours two opposite ones
        model.C = 2.0
    model.fit(Z, y)
    w, b = np.asarray(probe.w), np.asarray(probe.b)
    if n == 2:
        assert w[1] - w[0] == pytest.approx(model.coef_[0], abs=2e-3)
        assert b[1] - b[0] == pytest.approx(model.intercept_[0], abs=2e-3)
    else:
        assert w == pytest.approx(model.coef_, abs=2e-3)
        assert b - b.mean() == pytest.approx(model.intercept_ - model.intercept_.mean(), abs=2e-3)
    again = linear_probe.fit(X, y, n, balanced=balanced)
    assert (np.asarray(again.w) == w).all() and (np.asarray(again.b) == b).all()


def test_classify_takes_the_largest_product_and_never_an_untrained_category() -> None:
    # As many as in the test below and in the experiment's: their program is compiled once.
    X = np.eye(3, dtype=np.float32)[[0, 1] * 50]
    probe = linear_probe.fit(X, np.array([0, 2] * 50), 3)
    assert probe.trained.tolist() == [True, False, True]
    assert linear_probe.classify(probe, 7 * np.eye(3, dtype=np.float32)[None, :2]).tolist() == [[0, 2]]
    assert np.isfinite(np.asarray(probe.w)).all()


def test_one_category_alone_is_always_predicted_and_none_is_an_input_error() -> None:
    X = np.ones((100, 3), np.float32)
    probe = linear_probe.fit(X, np.ones(100, int), 3)
    assert linear_probe.classify(probe, X).tolist() == [1] * 100
    with pytest.raises(InputError, match="no concept exceeds"):
        linear_probe.fit(X[:0], np.zeros(0, int), 3)
