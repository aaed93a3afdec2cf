"""SIC: planted slides with a known answer, scikit-learn from the same start, and every degenerate case."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import balanced_accuracy_score, f1_score

from fseg_jax.errors import InputError
from fseg_jax.methods import sic
from fseg_jax.numerics import pca
from fseg_jax.numerics.kmeans import seeded
from fseg_jax.numerics.pca import reduce_channels

N, C = 4000, 128


def planted(share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Stroma, epithelium, and a tumour that resembles the epithelium: embeddings and tissues 0, 1, 2."""
    rng = np.random.default_rng(seed)
    positive = int(N * share)
    tissue = np.repeat([0, 1, 2], [(N - positive) // 2, N - positive - (N - positive) // 2, positive])
    rng.shuffle(tissue)
    axes = np.linalg.qr(rng.normal(size=(C, 2)))[0].T
    means = np.stack([0 * axes[0], 20 * axes[0], 20 * axes[0] + 12 * axes[1]])
    return (means[tissue] + rng.normal(size=(N, C))).astype(np.float32), tissue


def seeds_of(n: int, placed: dict[int, int]) -> np.ndarray:
    y = np.full(n, -1, np.int32)
    for patch, label in placed.items():
        y[patch] = label
    return y


def one_a_class(tissue: np.ndarray, negative: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    chosen = [rng.choice(np.flatnonzero(tissue == t)) for t in (negative, 2)]
    return seeds_of(len(tissue), {chosen[0]: 0, chosen[1]: 1})


@pytest.mark.parametrize("share", [0.01, 0.3])
@pytest.mark.parametrize("negative", [0, 1])
def test_planted_slides_are_found_from_one_seed_a_class(share, negative):
    """Wherever the negative seed lies: it leaves the first positive class when cut, or never is in it."""
    for seed in range(3):
        X, tissue = planted(share, seed)
        y = one_a_class(tissue, negative, seed)
        result = sic.fit(reduce_channels(X).X, y)
        truth = tissue == 2
        assert f1_score(truth, np.asarray(result.labels)) >= 0.95
        start = np.stack([X[y == j].mean(0) for j in (0, 1)])
        single = KMeans(2, init=start, n_init=1).fit(X).labels_
        assert result.iterations == 1
        if share == 0.01:  # a single pass takes half of the slide for tumour
            assert f1_score(truth, single == single[y == 1]) < 0.1


@pytest.mark.parametrize("distance", pca.DISTANCES)
@pytest.mark.parametrize("power", [2.0**100, 2.0**-100])
def test_embeddings_of_any_size_are_labelled_as_those_near_one(power, distance):
    X, tissue = planted(0.3, 0)
    X, tissue = X[:500] + 5, tissue[:500]
    y = one_a_class(tissue, 0, 0)
    for dimensions in (pca.DIMENSIONS, C):  # on the axes of largest variance, or as they are
        plain, far = (
            reduce_channels(X * np.float32(p), distance=distance, dimensions=dimensions) for p in (1, power)
        )
        results = [sic.fit(prepared.X, y, soft=True) for prepared in (plain, far)]
        assert (
            far.variance_kept == pytest.approx(plain.variance_kept, rel=1e-5)
            and len(set(results[0].labels.tolist())) == 2
        )
        np.testing.assert_array_equal(results[1].labels, results[0].labels)
        np.testing.assert_allclose(results[1].soft, results[0].soft, atol=1e-4)
        assert results[1].scores == results[0].scores
        assert results[1].converged
        singles = [sic.fit_seeded_kmeans(prepared.X, y) for prepared in (plain, far)]
        np.testing.assert_array_equal(*singles)


def test_a_tumour_that_is_all_one_is_not_cut():
    for seed, (positive, c) in enumerate([(3, 64), (5, 64), (20, 64), (300, 64), (60, 8), (1000, 2)]):
        rng = np.random.default_rng(seed)
        truth = np.arange(N) < positive
        X = (rng.normal(size=(N, c)) + 60 * truth[:, None] * np.eye(c)[0]).astype(np.float32)
        result = sic.fit(reduce_channels(X).X, seeds_of(N, {0: 1, N - 1: 0}))
        assert result.iterations == 0 and len(result.scores) == 2
        assert (np.asarray(result.labels) == truth).all()


def test_labels_are_those_of_scikit_learn_from_the_same_start():
    X, tissue = planted(0.3, 5)
    y = seeds_of(N, {int(np.flatnonzero(tissue == t)[i]): t for t in range(3) for i in range(2)})
    start = np.stack([X[y == j].mean(0) for j in range(3)])
    theirs = KMeans(3, init=start, n_init=1).fit(X).labels_
    for coordinates in (reduce_channels(X).X, reduce_channels(X, dimensions=C).X):
        ours = sic.fit(coordinates, y, classes=3)
        assert (np.asarray(ours.labels) == theirs).all()
    np.testing.assert_allclose(ours.score, 1)


def test_one_pass_is_scikit_learns_from_the_means_of_the_seeds():
    X, tissue = planted(0.3, 7)
    y = seeds_of(N, {int(p): int(tissue[p] == 2) for p in (3, 50, 700, *np.flatnonzero(tissue == 2)[:2])})
    start = np.stack([X[y == j].mean(0) for j in (0, 1)])
    theirs = KMeans(2, init=start, n_init=1).fit(X).labels_
    assert (sic.fit_seeded_kmeans(X, y) == theirs).all()
    # The positive cluster has lost its seed to the other, and the other's is there: they change names.
    X = np.array([[0.0]] * 30 + [[10.0]] * 30 + [[7.0]], np.float32)
    assert sic.fit_seeded_kmeans(X, seeds_of(61, {30: 0, 60: 1})).tolist() == [0] * 30 + [1] * 31


def test_the_best_labels_are_returned_not_the_last():
    """Two tumours under the same class: cutting it loses one of them."""
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1, 2], [1000, 50, 50])
    X = (rng.normal(size=(1100, 2)) + np.array([[0, 0], [300, 40], [300, -40]])[group]).astype(np.float32)
    result = sic.fit(X, seeds_of(1100, {0: 0, 1001: 1, 1051: 1}))
    assert result.scores == (1.0, pytest.approx(2 / 3)) and result.score == 1 and result.iterations == 0
    assert (np.asarray(result.labels) == (group > 0)).all()


def test_any_metric_decides():
    X, tissue = planted(0.01, 0)
    y = one_a_class(tissue, 1, 0)
    asked = []

    def metric(truth, labels):
        asked.append((truth.tolist(), labels.shape))
        return balanced_accuracy_score(truth, labels)

    result = sic.fit(reduce_channels(X).X, y, metric=metric)
    assert result.score == 1 and all(sorted(truth) == [0, 1] and shape == (2,) for truth, shape in asked)
    for name, ours in sic.METRICS.items():
        assert ours(np.array([0, 1, 1]), np.array([0, 1, 1])) == 1, name
        assert ours(np.array([0, 1, 1]), np.array([1, 0, 0])) == 0, name


def test_f1_is_scikit_learns():
    rng = np.random.default_rng(0)
    for classes in (2, 3):
        y, labels = rng.integers(0, classes, (2, 40))
        average = "binary" if classes == 2 else "macro"
        np.testing.assert_allclose(sic.f1(y, labels), f1_score(y, labels, average=average))
    assert sic.f1(np.zeros(2, int), np.zeros(2, int)) == 1


# ------------------------------------------------------------------------------------ degenerate seeds

LINE = np.array([[0.0], [0.1], [0.2], [9.0], [9.1], [9.2], [9.3]], np.float32)


@pytest.mark.parametrize("one", [0, 1])
def test_one_class_of_seeds_only(one):
    result = sic.fit(LINE, seeds_of(7, {1: one}))
    assert np.asarray(result.labels).tolist() == [one] * 3 + [1 - one] * 4
    assert result.score == 1 and result.iterations == 0


def test_a_cluster_without_seeds_is_not_the_positive_one():
    """Both seeds end in the cluster that grew from the negative one: it is taken for the positive class."""
    X = np.array([[0.0]] * 30 + [[10.0]] * 30 + [[7.0]], np.float32)
    result = sic.fit(X, seeds_of(61, {30: 0, 60: 1}))
    labels = np.asarray(result.labels)
    assert labels[60] == 1 and (labels[:60] == 0).all()
    assert result.scores[:2] == (pytest.approx(2 / 3), 1)


def test_seeds_of_two_classes_on_equal_patches():
    X = np.repeat(np.array([[0.0], [5.0]], np.float32), 3, axis=0)
    result = sic.fit(X, seeds_of(6, {0: 0, 1: 1}))
    assert np.isfinite(result.score) and set(np.asarray(result.labels).tolist()) <= {0, 1}
    same = sic.fit(np.ones((4, 2), np.float32), seeds_of(4, {0: 0, 1: 1}), soft=True)
    assert np.isfinite(np.asarray(same.soft)).all()


def test_all_patches_seeded_and_hard_constraints():
    y = np.array([0, 1, 0, 1, 1, 0, 1], np.int32)
    free = sic.fit(LINE, y)
    assert np.asarray(free.labels).tolist() == [0] * 3 + [1] * 4
    assert np.asarray(sic.fit(LINE, y, hard=True).labels).tolist() == y.tolist()


def test_fewer_patches_than_clusters():
    one = sic.fit(np.ones((1, 3), np.float32), np.array([1], np.int32), soft=True)
    assert np.asarray(one.labels).tolist() == [1] and one.score == 1 and one.soft.tolist() == [[0, 1]]
    two = sic.fit(LINE[[0, 6]], np.array([2, 4], np.int32), classes=5)
    assert np.asarray(two.labels).tolist() == [2, 4]


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("y", "classes", "says"),
    [
        ([-1] * 7, 2, "no seeds"),
        ([2] + [-1] * 6, 2, "seeds of class 2 where classes are 0…1"),
        ([-2] + [1] * 6, 2, "seeds of class 1"),
        ([2] + [-1] * 6, 3, "at least two must have some"),
    ],
)
def test_impossible_seeds(y, classes, says):
    with pytest.raises(InputError, match=says):
        sic.fit(LINE, np.array(y, np.int32), classes=classes)


def test_embeddings_that_are_no_numbers():
    X = LINE.copy()
    X[2] = np.nan
    for call in (lambda: reduce_channels(X), lambda: sic.fit(X, seeds_of(7, {0: 0, 6: 1}))):
        with pytest.raises(InputError, match="NaN"):
            call()


# ------------------------------------------------------------------------------------ beyond the paper


def test_more_classes_are_cut_apart_where_their_seeds_meet():
    X, tissue = planted(0.01, 1)
    rng = np.random.default_rng(1)
    y = seeds_of(N, {int(rng.choice(np.flatnonzero(tissue == t))): t for t in range(3)})
    result = sic.fit(reduce_channels(X).X, y, classes=4)
    assert (np.asarray(result.labels) == tissue).mean() >= 0.99
    assert 3 not in np.asarray(result.labels)


def test_cosine_looks_at_directions_only():
    rng = np.random.default_rng(0)
    length = rng.uniform(0.1, 10, (400, 1))
    turned = np.arange(400) % 2
    X = (length * np.array([[1.0, 0.2], [0.2, 1.0]])[turned]).astype(np.float32)
    y = seeds_of(400, {0: 0, 1: 1})
    prepared = reduce_channels(X, distance="cosine")
    assert (np.asarray(sic.fit(prepared.X, y).labels) == turned).all()
    assert not (np.asarray(sic.fit(reduce_channels(X).X, y).labels) == turned).all()
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    ours = np.asarray(prepared.X)
    np.testing.assert_allclose(((ours[0] - ours[1]) ** 2).sum(), 2 - 2 * (unit[0] * unit[1]).sum(), rtol=1e-5)


def test_smoothing_outvotes_lone_patches():
    grid = np.argwhere(np.ones((5, 5), bool)).astype(np.int32)
    neighbours = sic.find_neighbours(grid)
    assert sorted(neighbours[12][neighbours[12] >= 0].tolist()) == [6, 7, 8, 11, 13, 16, 17, 18]
    assert (neighbours[0] >= 0).sum() == 3
    X = np.zeros((25, 1), np.float32)
    X[12], X[20:] = 1, 1
    y = seeds_of(25, {0: 0, 22: 1})
    plain, smooth = (np.asarray(sic.fit(X, y, neighbours=m).labels).reshape(5, 5) for m in (None, neighbours))
    assert plain[2, 2] == 1 and smooth[2, 2] == 0 and smooth[4, 2] == 1
    held = sic.fit(X, seeds_of(25, {0: 0, 12: 1, 22: 1}), neighbours=neighbours, hard=True)
    assert np.asarray(held.labels)[12] == 1


def test_soft_scores_agree_with_the_labels():
    X, tissue = planted(0.01, 2)
    result = sic.fit(reduce_channels(X).X, one_a_class(tissue, 1, 2), soft=True)
    soft = np.asarray(result.soft)
    np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-5)
    assert (soft.argmax(1) == np.asarray(result.labels)).all()
    assert sic.fit(X[:, :4], one_a_class(tissue, 1, 2)).soft is None


# ---------------------------------------------------------------------------------------- every input


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 3), st.booleans(), st.sampled_from([0.0, 1.0, 8.0]))
def test_whatever_is_seeded(seed, classes, hard, gap):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(40, 3)).astype(np.float32)
    X[: rng.integers(1, 40)] += gap
    y = np.full(40, -1, np.int32)
    placed = rng.choice(40, rng.integers(classes, 41), replace=False)
    y[placed] = rng.integers(0, classes, len(placed))
    y[placed[:classes]] = np.arange(classes)
    result = sic.fit(X, y, classes=classes, hard=hard, soft=True, key=jax.random.key(seed))
    labels, held = np.asarray(result.labels), y >= 0
    assert labels.min() >= 0 and labels.max() < classes
    np.testing.assert_allclose(np.asarray(result.soft).sum(1), 1, rtol=1e-5)
    assert result.score == max(result.scores) >= result.scores[0]
    assert result.iterations in (len(result.scores) - 1, len(result.scores) - 2)
    if hard:
        assert (labels[held] == y[held]).all()
    else:
        assert sic.f1(y[held], labels[held]) == result.score
    # The order of patches means nothing, but for what plain k-means draws.
    if classes == 3:
        order = rng.permutation(40)
        again = sic.fit(X[order], y[order], classes=classes, hard=hard)
        assert (np.asarray(again.labels) == labels[order]).mean() >= 0.9


def test_a_click_compiles_nothing():
    X, tissue = planted(0.3, 3)
    prepared = reduce_channels(X).X
    rng = np.random.default_rng(3)
    y = one_a_class(tissue, 1, 3)
    sic.fit(prepared, y, soft=True)
    sic.fit(prepared, np.where(y == 1, y, -1))
    functions = (seeded.fit_members, seeded.average_classes, seeded.start_beside_seeds)
    before = [f._cache_size() for f in functions]
    for _ in range(6):
        chosen = rng.integers(N)
        y[chosen] = tissue[chosen] == 2
        sic.fit(prepared, y, soft=bool(rng.integers(2)), hard=bool(rng.integers(2)))
    assert [f._cache_size() for f in functions] == before


def test_slides_of_many_sizes_share_programs_and_have_the_labels_they_have_alone():
    X, tissue = planted(0.3, 3)
    X = np.asarray(reduce_channels(X).X)
    functions = (seeded.fit_members, seeded.average_classes, seeded.start_beside_seeds)
    for n in (4000, 2999, 2100):
        y = one_a_class(tissue, 1, n)[:n]
        y[[np.flatnonzero(tissue == 0)[0], np.flatnonzero(tissue == 2)[0]]] = 0, 1  # both, whatever n is
        more, seeds = sic.pad_patches(X[:n], y)
        assert len(more) == len(seeds) == 4096
        found = sic.fit(more, seeds, key=jax.random.key(1), patches=n)
        one = sic.fit_seeded_kmeans(more, seeds, n)
        if n == 4000:
            alone = sic.fit(X, y, key=jax.random.key(1))
            np.testing.assert_array_equal(np.asarray(found.labels)[:n], alone.labels)
            assert found.scores == alone.scores and found.iterations == alone.iterations
            np.testing.assert_array_equal(one[:n], sic.fit_seeded_kmeans(X, y))
            programs = [function._cache_size() for function in functions]
        assert (np.asarray(found.labels)[n:] == -1).all()
    assert [function._cache_size() for function in functions] == programs
