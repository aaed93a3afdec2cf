"""Every metric by hand on 4 × 4 pixels, and against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as theirs

from fseg_jax.numerics import metrics

pytestmark = pytest.mark.smoke

PLAIN = np.array([[8, 0, 0], [0, 6, 0], [2, 0, 0]])  # of test_matching
BALANCED = np.array([[5, 0, 3], [0, 6, 0], [0, 0, 2]])
COUNTS = np.array([[5, 0, 0], [0, 5, 0], [3, 0, 2], [0, 1, 0]])


def test_scores_by_hand_with_a_category_never_predicted() -> None:
    found = metrics.score(PLAIN)
    assert found is not None
    first, second, third = found.categories
    assert first == pytest.approx((16 / 18, 8 / 10, 8 / 10, 1, 8))
    assert second == pytest.approx((1, 1, 1, 1, 6))
    assert third == pytest.approx((0, 0, 0, 0, 2))  # it has pixels, and none is found
    assert found[:5] == pytest.approx((17 / 27, 1.8 / 3, 1.8 / 3, 2 / 3, 14 / 16))


def test_scores_by_hand_of_the_balanced_matching() -> None:
    found = metrics.score(BALANCED)
    assert found is not None
    assert found.categories[0] == pytest.approx((10 / 13, 5 / 8, 1, 5 / 8, 8))
    assert found.categories[2] == pytest.approx((4 / 7, 2 / 5, 2 / 5, 1, 2))
    assert found.f1 == pytest.approx((10 / 13 + 1 + 4 / 7) / 3)
    assert found.iou == pytest.approx((5 / 8 + 1 + 2 / 5) / 3)
    assert found.accuracy == 13 / 16


def test_a_category_without_pixels_is_absent_and_counts_in_no_average() -> None:
    found = metrics.score(np.array([[3, 0, 1], [0, 4, 0], [0, 0, 0]]))
    assert found is not None
    assert found.categories[2] is None
    assert found.f1 == pytest.approx((6 / 7 + 1) / 2)
    assert metrics.score(np.zeros((3, 3), int)) is None
    assert metrics.score_images(np.stack([np.zeros((2, 2), int), np.eye(2, dtype=int)]))[0] is None


def test_rand_and_information_by_hand() -> None:
    # Pairs together in clusters: 10 + 10 + 10 + 0, in categories: 28 + 15 + 1, in both: 10 + 10 + 3 + 1.
    expected = 30 * 44 / 120
    assert metrics.adjusted_rand(COUNTS) == pytest.approx((24 - expected) / (37 - expected))
    cells = [(5, 5, 8), (5, 5, 6), (3, 5, 8), (2, 5, 2), (1, 1, 6)]
    by_hand = sum(n / 16 * np.log(n * 16 / (a * b)) for n, a, b in cells)
    assert metrics.mutual_information(COUNTS) == pytest.approx(by_hand)


def test_one_cluster_or_one_category_gives_numbers() -> None:
    for table in ([[3, 5]], [[3], [5]], [[7]], [[0, 0]]):
        contingency = np.array(table)
        assert np.isfinite(metrics.adjusted_rand(contingency))
        assert metrics.mutual_information(contingency) == 0


@pytest.mark.parametrize("seed", range(5))
def test_agreement_with_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, k, pixels = 5, 12, 4000
    true = rng.choice(n, pixels, p=[0.5, 0.3, 0.15, 0.05, 0])  # the last category is absent
    predicted = np.where(rng.random(pixels) < 0.6, true, rng.integers(0, n, pixels))
    cluster = (3 * true + rng.integers(0, 4, pixels)) % k
    confusion, contingency = np.zeros((n, n), int), np.zeros((k, n), int)
    np.add.at(confusion, (true, predicted), 1)
    np.add.at(contingency, (cluster, true), 1)
    ours = metrics.score(confusion)
    assert ours is not None and ours.categories[4] is None
    present = [0, 1, 2, 3]
    for score, name in (
        (theirs.f1_score, "f1"),
        (theirs.jaccard_score, "iou"),
        (theirs.precision_score, "precision"),
        (theirs.recall_score, "recall"),
    ):
        expected = score(true, predicted, labels=present, average=None)
        assert [getattr(ours.categories[c], name) for c in present] == pytest.approx(expected.tolist())
        assert getattr(ours, name) == pytest.approx(expected.mean())
    assert ours.accuracy == pytest.approx(theirs.accuracy_score(true, predicted))
    assert metrics.adjusted_rand(contingency) == pytest.approx(theirs.adjusted_rand_score(true, cluster))
    assert metrics.mutual_information(contingency) == pytest.approx(theirs.mutual_info_score(true, cluster))


def test_batches_are_scored_one_by_one() -> None:
    both = np.stack([PLAIN, BALANCED])
    for metric in (metrics.macro_f1, metrics.macro_iou, metrics.accuracy):
        assert metric(both).tolist() == [float(metric(PLAIN)), float(metric(BALANCED))]


def test_bootstrap_covers_the_mean_of_cases_and_repeats_itself() -> None:
    rng = np.random.default_rng(0)
    right = rng.binomial(100, 0.7, 200)
    cases = np.zeros((1, 200, 2, 2), int)
    cases[0, :, 0, 0], cases[0, :, 0, 1] = right, 100 - right
    interval = metrics.bootstrap(metrics.accuracy, cases, seed=1)
    assert interval == metrics.bootstrap(metrics.accuracy, cases, seed=1)
    assert interval is not None
    # The standard error of a mean over 200 cases whose accuracies have this standard deviation.
    error = right.std() / 100 / np.sqrt(200)
    assert interval.low == pytest.approx(right.mean() / 100 - 1.96 * error, abs=0.3 * error)
    assert interval.high == pytest.approx(right.mean() / 100 + 1.96 * error, abs=0.3 * error)


def test_one_case_has_no_interval() -> None:
    assert metrics.bootstrap(metrics.accuracy, PLAIN[None, None]) is None
