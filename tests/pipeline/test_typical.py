"""Typical places: deep in their cluster, apart, and the same however rows of tokens come."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from fseg_jax import open_slide
from fseg_jax.pipeline.typical import TILE, TypicalPlaces, read_places, select_largest
from fseg_jax.slides.tissue import Tissue

MPP, STRIDE = 1.0, 16  # tokens of 16 µm: a field is eight of them


def make_plan(rows: int, columns: int, tissue: np.ndarray | None = None) -> SimpleNamespace:
    grid = SimpleNamespace(stride=STRIDE, width=columns * STRIDE - 3, height=rows * STRIDE)
    slide = SimpleNamespace(height=rows * STRIDE, width=columns * STRIDE - 3, mpp=1.0)
    mask = np.ones((rows, columns), bool) if tissue is None else tissue
    return SimpleNamespace(grid=grid, mpp=MPP, slide=slide, tissue=Tissue(mask, MPP * STRIDE))


def find(labels: np.ndarray, shares: np.ndarray | None = None, chunk: int = 7, tissue=None):
    places = TypicalPlaces(make_plan(*labels.shape, tissue))
    shares = np.full(labels.shape, 255, np.uint8) if shares is None else shares
    for top in range(0, len(labels), chunk):
        places.append(labels[top : top + chunk].astype(np.uint16), shares[top : top + chunk])
    return places.finish()


def draw_blobs(rows: int, columns: int, k: int) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=(k, rows, columns))
    labels = ndimage.gaussian_filter(noise, (0, 6, 6)).argmax(0) + 1
    labels[:, : columns // 8] = 0
    return labels


def test_places_are_deep_in_their_cluster_and_apart():
    labels = draw_blobs(150, 90, 4)
    for cluster, own in find(labels).items():
        assert 1 <= len(own) <= 3
        depth = ndimage.distance_transform_cdt(np.pad(labels == cluster, 1), "chessboard")[1:-1, 1:-1]
        at = [(int(place.y // STRIDE), int(place.x // STRIDE)) for place in own]
        assert all(labels[place] == cluster for place in at)
        assert depth[at[0]] >= min(5, depth.max() - 1)  # from there on, the whole field is its own
        for i, one in enumerate(at):
            for other in at[:i]:
                assert max(abs(one[0] - other[0]), abs(one[1] - other[1])) >= 8


def test_of_two_regions_the_purer_one_is_taken():
    labels = np.zeros((80, 80), int)
    labels[10:30, 10:30] = labels[50:70, 50:70] = 2
    shares = np.full(labels.shape, 100, np.uint8)
    shares[50:70, 50:70] = 200
    (best, *_) = find(labels, shares)[2]
    assert (
        (best.y > 50 * STRIDE) and (best.x > 50 * STRIDE) and best.share == pytest.approx(200 / 255, abs=0.01)
    )


def test_a_poor_place_is_no_second_one():
    labels = np.zeros((80, 80), int)
    labels[10:30, 10:30] = 1
    labels[60, 60] = 1
    assert len([place for place in find(labels)[1] if place.y > 40 * STRIDE]) == 0


@pytest.mark.parametrize("chunk", [1, 5, 28, 1000])
def test_places_do_not_depend_on_how_rows_come(chunk):
    labels = draw_blobs(97, 61, 6)
    shares = np.random.default_rng(1).integers(0, 256, labels.shape).astype(np.uint8)
    assert find(labels, shares, chunk) == find(labels, shares)


def test_turned_round_the_places_are_as_good():
    """The best score does not depend on which corner rows begin at."""
    labels = draw_blobs(96, 96, 3)
    turned = find(labels[::-1, ::-1].copy())
    for cluster, own in find(labels).items():
        assert own[0].share == pytest.approx(turned[cluster][0].share, abs=0.05)


def test_what_is_kept_is_bounded():
    places = TypicalPlaces(make_plan(4000, 64))
    labels = np.random.default_rng(0).integers(1, 4, (40, 64)).astype(np.uint16)
    for _ in range(100):
        places.append(labels, np.full(labels.shape, 9, np.uint8))
        assert len(places._labels) < 100 and len(places._best) <= 3 * 24
    assert set(places.finish()) == {1, 2, 3}


def test_nothing_is_found_where_there_is_no_tissue():
    assert find(np.zeros((40, 40), int)) == {}
    labels, tissue = np.ones((60, 60), int), np.zeros((60, 60), bool)
    tissue[:, 30:] = True
    assert min(place.x for place in find(labels, tissue=tissue)[1]) > 33 * STRIDE
    assert find(labels, tissue=~tissue, chunk=3) == find(labels, tissue=~tissue)


def test_only_the_largest_clusters_have_places():
    labels = np.repeat(np.arange(1, 201), 64).reshape(-1, 64).repeat(2, axis=0)
    pixels = np.arange(201)
    chosen = select_largest(find(labels), pixels)
    assert list(chosen) == list(range(73, 201))


def test_pictures_are_of_the_places(tmp_path):
    """A field is read where it is, and moved onto the slide where it would reach past it."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (700, 600, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "s.png")
    labels = np.zeros((44, 38), int)
    labels[16:32, 12:28], labels[40:, 34:] = 1, 2
    places = {1: find(labels)[1][:1], 2: find(labels)[2][:1]}
    with open_slide(tmp_path / "s.png", 1.0) as slide:
        pictures = read_places(slide, places, float(TILE), 2)
        y, x = round(places[1][0].y) - 64, round(places[1][0].x) - 64
        np.testing.assert_array_equal(pictures[1][0], image[y : y + 128, x : x + 128])
        np.testing.assert_array_equal(pictures[2][0], image[-128:, -128:])
        coarse = read_places(slide, places, 64.0, 2)[1]
        assert coarse.shape == (1, TILE, TILE, 3)
