"""Spatial statistics of labels, against squidpy, scipy, scikit-image, and what is counted one by one."""

import numpy as np
import pytest
from label_images import draw_smooth_labels
from scipy import spatial
from skimage import draw, measure

from fseg_jax.numerics.spatial import (
    count_borders,
    find_regions,
    measure_distances,
    measure_enrichment,
    measure_length,
)

K = 5


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    labels = draw_smooth_labels((300, 400), K)[::5, ::5].copy()
    labels[:20, :30] = 0
    return labels


def test_regions_are_those_of_each_label_alone(labels):
    ids, of = find_regions(labels)
    alone = sum(measure.label(labels == j, connectivity=1).max() for j in range(1, K + 1))
    assert len(of) == ids.max() == alone
    assert (np.concatenate([[0], of])[ids] == labels).all()
    for region in measure.regionprops(ids):
        assert measure.label(region.image, connectivity=1).max() == 1


def test_borders_are_counted(labels):
    expected: dict[tuple[int, int], int] = {}
    for a, b in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
        for pair in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True):
            if pair[0] != pair[1]:
                key = (min(pair), max(pair))
                expected[key] = expected.get(key, 0) + 1
    found = count_borders(labels)
    pairs = zip(found.first.tolist(), found.second.tolist(), strict=True)
    assert dict(zip(pairs, found.edges.tolist(), strict=True)) == expected


def test_a_length_is_that_of_crofton_and_near_the_true_one():
    disc = np.zeros((300, 300), np.uint8)
    disc[draw.disk((150, 150), 100)] = 1
    (length,) = measure_length(count_borders(disc).edges, 0.5)
    assert length == pytest.approx(0.5 * measure.perimeter_crofton(disc, directions=2))
    assert length == pytest.approx(0.5 * 2 * np.pi * 100, rel=0.02)


def test_enrichment_is_what_permutations_tend_to(labels):
    rng = np.random.default_rng(0)
    found = measure_enrichment(labels, K + 1)  # the last label is nowhere
    inside = np.flatnonzero(labels)
    draws = []
    for _ in range(400):
        shuffled = labels.copy()
        shuffled.flat[inside] = rng.permutation(labels.flat[inside])
        draws.append(measure_enrichment(shuffled, K + 1).counts)
    np.testing.assert_allclose(np.mean(draws, 0), found.expected, rtol=0.05, atol=2)
    z = (found.counts - np.mean(draws, 0)) / np.maximum(np.std(draws, 0), 1e-9)
    np.testing.assert_allclose(z[:K, :K], found.z[:K, :K], rtol=0.15, atol=0.3)
    assert np.bincount(labels.ravel()).min() > 0 and np.isnan(found.z[K]).all() and not found.counts[K].any()


def test_enrichment_is_squidpys(labels):
    squidpy = pytest.importorskip("squidpy", reason="the extra clients brings it")
    import anndata
    import pandas as pd
    from scipy import sparse

    y, x = np.nonzero(labels)
    number = np.full(labels.shape, -1)
    number[y, x] = np.arange(len(y))
    joins = [
        (number[a][both], number[b][both])
        for a, b in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1]))
        for both in [(number[a] >= 0) & (number[b] >= 0)]
    ]
    first, second = (np.concatenate([pair[i] for pair in joins]) for i in (0, 1))
    graph = sparse.coo_matrix((np.ones(len(first)), (first, second)), shape=(len(y),) * 2).tocsr()
    clusters = pd.Categorical(labels[y, x].astype(str))
    obs = pd.DataFrame({"cluster": clusters}, index=np.arange(len(y)).astype(str))
    table = anndata.AnnData(obs=obs, obsp={"spatial_connectivities": graph + graph.T})
    squidpy.gr.nhood_enrichment(table, "cluster", n_perms=500, seed=0, show_progress_bar=False)
    theirs, ours = table.uns["cluster_nhood_enrichment"], measure_enrichment(labels, K)
    np.testing.assert_array_equal(theirs["count"], ours.counts)
    np.testing.assert_allclose(theirs["zscore"], ours.z, rtol=0.15, atol=0.3)


def test_distances_are_those_to_the_nearest_pixel(labels):
    found = measure_distances(labels, K + 1, 0.5)
    for i in range(1, K + 1):
        tree = spatial.cKDTree(np.argwhere(labels == i))
        for j in range(1, K + 1):
            away = 0.5 * tree.query(np.argwhere(labels == j))[0]
            assert found.mean[j - 1, i - 1] == pytest.approx(away.mean())
            assert found.median[j - 1, i - 1] == pytest.approx(np.median(away))
    assert np.isnan(found.mean[K]).all() and np.isnan(found.mean[:, K]).all()
