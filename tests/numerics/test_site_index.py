"""How far clusters follow sites, on clusters that are planted."""

import numpy as np
import pytest
from sklearn.metrics import homogeneity_score

from fseg_jax.numerics.site_index import _resolve, measure_site_index

SITES = ["Leeds", "Bath", "Oslo"] * 8


def draw_slides(k: int = 8, seed: int = 0) -> np.ndarray:
    """Slides of a mixture of tissues each."""
    random = np.random.default_rng(seed)
    return np.stack([random.multinomial(300, random.dirichlet(np.full(k, 0.3))) for _ in SITES])


def test_what_clusters_tell_of_groups_is_scikit_learns():
    counts = draw_slides()
    codes = np.unique(SITES, return_inverse=True)[1]
    slides, clusters = (np.repeat(index.ravel(), counts.ravel()) for index in np.indices(counts.shape))
    wanted = homogeneity_score(codes[slides], clusters)
    assert _resolve(counts.astype(float), np.eye(3)[codes]) == pytest.approx(wanted)


def test_slides_that_differ_are_no_sites_that_do():
    found = [measure_site_index(draw_slides(seed=seed), SITES) for seed in range(6)]
    assert all(each.share < 0.1 for each in found)
    assert np.median([each.chance for each in found]) > 0.1


def test_clusters_that_split_every_tissue_by_its_site_are_seen():
    """Each tissue is another cluster at each site; then half of the slides have the tissue's own."""
    counts = np.concatenate([draw_slides(), np.zeros((24, 24), int)], axis=1)
    whole = counts.copy()
    for slide, site in enumerate(SITES):
        start = 8 * (1 + ["Leeds", "Bath", "Oslo"].index(site))
        whole[slide] = 0
        whole[slide, start : start + 8] = counts[slide, :8]
    assert measure_site_index(whole, SITES) == (1.0, 1 / 500)
    half = np.where(np.arange(24)[:, None] % 2, whole, counts)
    assert 0.2 < measure_site_index(half, SITES).share < 0.8


def test_where_slides_cannot_tell_there_is_none():
    counts = draw_slides()
    assert measure_site_index(counts, ["Leeds"] * 24) is None
    assert measure_site_index(counts, [""] * 24) is None
    assert measure_site_index(counts, [str(slide) for slide in range(24)]) is None
    assert measure_site_index(counts[:2], ["Leeds", "Bath"]) is None
    some = measure_site_index(counts, ["Leeds", "Bath", *[""] * 20, "Leeds", "Bath"])
    assert some == measure_site_index(counts[[0, 1, 22, 23]], ["Leeds", "Bath"] * 2)
