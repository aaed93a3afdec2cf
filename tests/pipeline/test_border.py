"""Shares at the border of tissue, against distances of every pixel."""

import numpy as np
import pytest
from scipy import ndimage

from fseg_jax.outputs.colours import make_palette
from fseg_jax.outputs.labels import LabelWriter, open_labels
from fseg_jax.pipeline.border import find_near_border, measure_border_shares
from fseg_jax.slides.tissue import Tissue


def write_labels(path, labels, mpp, k):
    writer = LabelWriter(path, labels.shape, mpp, k, names=None, colours=make_palette(k), provenance={})
    writer.append(labels)
    writer.close()
    return open_labels(path)


def test_shares_are_those_of_the_distances(tmp_path):
    """A disc of tissue at the slide's edge: its rim is a cluster, and the slide's frame is no border."""
    y, x = np.mgrid[:1200, :1000] + 0.5
    radius = np.hypot(y - 600, x - 0)
    labels = np.where(radius < 500, 1, 0) + (radius < 420) + (radius < 200)
    tissue = Tissue(np.asarray(radius[2::4, 2::4] < 500), 4.0)
    found = measure_border_shares(
        write_labels(tmp_path / "s.ome.zarr", labels.astype(np.uint8), 1.0, 4), tissue
    )
    depth = ndimage.distance_transform_edt(labels > 0) - 0.5
    expected = [(depth[labels == j] <= 32).mean() for j in (1, 2, 3)]
    np.testing.assert_allclose(found, [*expected, 0], atol=0.02)
    assert found[0] == pytest.approx((500**2 - 468**2) / (500**2 - 420**2), abs=0.03) and found[1] == 0


def test_all_tissue_has_no_border(tmp_path):
    labels = np.ones((300, 200), np.uint8)
    pyramid = write_labels(tmp_path / "s.ome.zarr", labels, 2.0, 2)
    np.testing.assert_array_equal(
        measure_border_shares(pyramid, Tissue(np.ones((75, 50), bool), 8.0)), [0, 0]
    )


@pytest.mark.parametrize("depth", [0.3, 8.0, 21.3])
def test_distances_by_blocks_are_those_of_the_whole_mask(depth):
    mask = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((700, 530)), 40) > 0
    mask[:300, 300:] = True
    mask[150, 450] = False
    near = ndimage.distance_transform_edt(mask) - 0.5 <= depth
    np.testing.assert_array_equal(find_near_border(mask, depth), near)
