"""The palette and the names of clusters."""

import numpy as np
import pytest

from fseg_jax.outputs import colours

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize("k", [1, 8, 64, 256, 1024, 3000])
def test_a_smaller_palette_opens_a_larger_one(k):
    found = colours.make_palette(k)
    assert found.shape == (k, 3) and found.dtype == np.uint8
    np.testing.assert_array_equal(found, colours.make_palette(4000)[:k])


@pytest.mark.parametrize("k", [1, 5, 9, 64, 3000])
@pytest.mark.parametrize("first", [0, 3, 4_000_000_000])
def test_a_palette_may_begin_at_another_of_its_colours(k, first):
    whole = colours.make_palette(max(k, 9)).tolist()
    assert colours.make_palette(k, first).tolist() == [whole[(first + j) % len(whole)] for j in range(k)]


def test_the_caller_cannot_change_the_palette():
    colours.make_palette(4)[:] = 0
    assert colours.make_palette(4).any(axis=1).all()


def test_colours_are_apart_from_each_other_and_from_glass():
    found = colours.make_palette(256)
    assert len(np.unique(found, axis=0)) == 256
    assert np.abs(found.astype(int) - 255).max(axis=1).min() > 40
    first = colours._convert_to_oklab(found[:9])
    for seen in (first[:, :3], first[:, 3:] / 0.6):  # as most people see them, and under deuteranopia
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[~np.eye(9, dtype=bool)]
        assert apart.min() > 0.1


def test_first_colours_are_told_apart_over_tissue_of_any_lightness():
    """Two blues, one over dark tissue and one over light, were the same."""
    greys = np.array([70, 110, 150, 190, 230])
    tints = 0.55 * colours.make_palette(9)[:, None] + 0.45 * greys[:, None]
    seen = colours._convert_to_oklab(tints.reshape(-1, 3).round().astype(np.uint8))[:, :3].reshape(9, 5, 3)
    apart = np.linalg.norm(seen[:, :, None, None] - seen, axis=-1).min(axis=(1, 3))
    assert apart[~np.eye(9, dtype=bool)].min() > 0.03


def test_names_count_from_one():
    assert colours.make_default_names(2) == ("cluster 1", "cluster 2")
