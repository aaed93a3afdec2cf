"""Small regions given to their neighbours, beside the plain way over a whole image."""

import numpy as np
import pytest
import skimage.measure
from hypothesis import given, settings
from hypothesis import strategies as st

from fseg_jax.numerics.regions import merge_small_regions, weigh_borders
from fseg_jax.numerics.runs import find_parts


def merge_one_by_one(labels: np.ndarray, least: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Give away the smallest small region of the whole image that has a neighbour, until there is none."""
    labels = labels.copy()
    while True:
        regions, areas, borders = measure(labels)
        small = [i for i in range(1, len(areas)) if areas[i] < least and borders[i].any()]
        if not small:
            return labels
        # scikit-image counts regions by their first pixels.
        smallest = min(small, key=lambda i: (areas[i], i))
        border = borders[smallest].astype(float)
        if weights is not None:
            border *= weights[labels[regions == smallest][0], : len(border)]
        labels[regions == smallest] = border.argmax()


def measure(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Regions of labels, their areas, and how many pixels' edges each shares with each label."""
    regions = skimage.measure.label(labels, background=0, connectivity=1)
    borders = np.zeros((regions.max() + 1, int(labels.max()) + 1), int)
    for one, other in (((slice(1, None),), (slice(-1),)), ((..., slice(1, None)), (..., slice(-1)))):
        for here, there in ((one, other), (other, one)):
            differ = (labels[here] != labels[there]) & (labels[here] > 0) & (labels[there] > 0)
            np.add.at(borders, (regions[here][differ], labels[there][differ]), 1)
    return regions, np.bincount(regions.ravel()), borders


@st.composite
def draw_labels(draw) -> np.ndarray:
    """Noise, of pixels or of blocks of them, with and without background, in long and in square pictures."""
    height, width = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    labels = rng.integers(draw(st.integers(0, 1)), draw(st.integers(2, 6)), (height, width))
    down, across = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return (
        labels.repeat(down, axis=0)
        .repeat(across, axis=1)
        .astype(draw(st.sampled_from([np.uint8, np.uint16])))
    )


@given(draw_labels(), st.integers(1, 40), st.lists(st.integers(0, 42), max_size=8))
@settings(deadline=None, max_examples=300)
def test_rows_give_what_the_whole_image_gives_one_region_after_another(labels, least, cuts):
    before = labels.copy()
    strips = np.split(labels, sorted(min(cut, len(labels)) for cut in cuts))
    merged = list(merge_small_regions(iter(strips), least))
    assert [len(strip) for strip in merged if len(strip)] == [len(strip) for strip in strips if len(strip)]
    np.testing.assert_array_equal(np.concatenate(merged), merge_one_by_one(labels, least))
    assert merged[0].dtype == labels.dtype
    np.testing.assert_array_equal(labels, before)


@given(draw_labels(), st.integers(1, 40), st.integers(0, 2**32), st.lists(st.integers(0, 42), max_size=8))
@settings(deadline=None)
def test_weighted_borders_give_what_the_whole_image_gives(labels, least, seed, cuts):
    weights = weigh_borders(np.random.default_rng(seed).random((6, 3)))
    strips = np.split(labels, sorted(min(cut, len(labels)) for cut in cuts))
    merged = list(merge_small_regions(iter(strips), least, weights))
    np.testing.assert_array_equal(np.concatenate(merged), merge_one_by_one(labels, least, weights))


def test_a_region_goes_to_the_neighbour_that_is_like_it():
    labels = np.ones((9, 9), np.uint8)
    labels[:, 5:] = 2
    labels[3:6, 2:5] = 3  # nine edges on 1, three on 2
    centers = np.array([[0.0, 1.0], [1.0, 0.0], [0.9, 0.1]])
    weights = weigh_borders(centers)
    assert weights[3, 2] == pytest.approx(1 / 0.02) and weights[3, 1] == pytest.approx(1 / 1.62)
    assert not weights[0].any() and not weights[:, 0].any()
    (merged,) = merge_small_regions([labels], 10, weights)
    assert (merged[3:6, 2:5] == 2).all()
    (by_length,) = merge_small_regions([labels], 10)
    assert (by_length[3:6, 2:5] == 1).all()


@given(draw_labels())
@settings(deadline=None)
def test_parts_are_scikit_images(labels):
    runs, borders = find_parts(np.concatenate([np.zeros_like(labels[:1]), labels]))
    regions, areas, expected = measure(labels)
    inside = runs.label > 0
    first = runs.start[inside] - labels.shape[1]
    assert (regions.ravel()[first] > 0).all()
    numbers = np.zeros(runs.parts, int)
    numbers[runs.part[inside]] = regions.ravel()[first]
    np.testing.assert_array_equal(numbers[runs.part[inside]], regions.ravel()[first])
    assert len(set(runs.part[inside])) == len(areas) - 1
    found = np.zeros_like(expected)
    label = np.zeros(runs.parts, int)
    label[runs.part] = runs.label
    for a, b in ((borders.a, borders.b), (borders.b, borders.a)):
        np.add.at(found, (numbers[a], label[b]), borders.length)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.smoke
def test_a_region_takes_the_label_of_its_longest_border():
    labels = np.ones((9, 9), np.uint8)
    labels[:, 5:] = 2
    labels[3:6, 4:6] = 3  # borders: 3 + 1 + 1 on 1, 3 + 1 + 1 on 2: the lowest
    labels[7, 7] = 0  # background stays
    labels[0, 0] = 4
    (merged,) = merge_small_regions([labels], 7)
    expected = labels.copy()
    expected[3:6, 4:6] = expected[0, 0] = 1
    np.testing.assert_array_equal(merged, expected)
    (untouched,) = merge_small_regions([labels], 1)
    assert untouched is labels


@pytest.mark.smoke
def test_tissue_on_its_own_stays():
    labels = np.zeros((8, 8), np.uint8)
    labels[1, 1], labels[4, 3:5], labels[5, 3] = 1, 1, 2
    (merged,) = merge_small_regions([labels], 64)
    assert merged[1, 1] == 1  # borders on nothing but background
    assert (merged[4, 3:5] == 1).all() and merged[5, 3] == 1  # the rest of a piece is one region
    assert ((merged > 0) == (labels > 0)).all()


def test_few_rows_are_held_even_of_noise():
    """Even where nearly all regions are too small, the rows wait for few rows below them."""
    rng = np.random.default_rng(0)
    given_strips = 0

    def strips():
        nonlocal given_strips
        for _ in range(40):
            given_strips += 1
            yield rng.integers(1, 9, (8, 60), np.uint8).repeat(8, axis=0).repeat(8, axis=1)

    for done, strip in enumerate(merge_small_regions(strips(), 400), 1):
        assert strip.shape == (64, 480)
        assert given_strips - done <= 3
    assert done == 40


def test_a_region_that_winds_through_all_rows_is_one():
    """A snake of 30 pixels a row, every second row: rows alone would be small, as those between them are."""
    labels = np.ones((41, 30), np.uint8)
    labels[1::2] = 2
    labels[2::4, -1], labels[4::4, 0] = 2, 2
    merged = np.concatenate(list(merge_small_regions(np.split(labels, range(3, 41, 3)), 31)))
    assert (merged == 2).all()
