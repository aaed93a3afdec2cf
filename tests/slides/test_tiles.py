"""The tile grid: cores cover the slide once, halos overlap, tissue decides which tiles are wanted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fseg_jax.errors import InputError
from fseg_jax.slides.tiles import find_tissue_tiles, make_grid

pytestmark = pytest.mark.smoke


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 700),
    width=st.integers(1, 700),
    stride=st.sampled_from([8, 14, 16]),
    tokens=st.integers(4, 20),
    halo=st.floats(0, 0.25),
)
def test_cores_cover_the_slide_once(height, width, stride, tokens, halo):
    grid = make_grid(height, width, stride, tokens * stride, halo)
    covered = np.zeros((height, width), int)
    for row in range(grid.rows):
        for column in range(grid.columns):
            y, x, h, w = grid.locate_core(row, column)
            assert h > 0 and w > 0
            covered[y : y + h, x : x + w] += 1
            assert grid.locate_tile(row, column) == (y - grid.halo, x - grid.halo, grid.tile, grid.tile)
    assert (covered == 1).all()
    assert grid.halo >= stride and grid.pitch >= 2 * grid.halo


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), mask_mpp=st.sampled_from([2.0, 8.0, 7.3, 32.0]))
def test_a_tile_is_wanted_exactly_when_its_core_holds_tissue(seed, mask_mpp):
    r = np.random.default_rng(seed)
    grid = make_grid(1000, 900, 16, 128)
    mask = r.random((int(np.ceil(1000 / mask_mpp)), int(np.ceil(900 / mask_mpp)))) < 0.01
    wanted = find_tissue_tiles(grid, mask, mask_mpp, 1.0)
    # Mask pixels are squares of mask_mpp µm: each is laid over the tiles it touches.
    expected = np.zeros((grid.rows, grid.columns), bool)
    for i, j in np.argwhere(mask):
        top, bottom = (int(i * mask_mpp // grid.pitch), int(np.ceil((i + 1) * mask_mpp / grid.pitch)))
        left, right = (int(j * mask_mpp // grid.pitch), int(np.ceil((j + 1) * mask_mpp / grid.pitch)))
        expected[top:bottom, left:right] = True
    assert (wanted == expected).all()


@pytest.mark.parametrize(
    ("tile", "halo", "says"),
    [
        (100, 0.1, "multiples of the encoder's stride"),
        (32, 0.1, "needs 64"),
        (256, 0.3, "between 0 and 0.25"),
    ],
)
def test_bad_tiles_are_named(tile, halo, says):
    with pytest.raises(InputError, match=says):
        make_grid(1000, 1000, 16, tile, halo)
