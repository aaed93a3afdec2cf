"""Fields: the tissue of slides that views are cut from, and how likely each is drawn."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fseg_jax.errors import InputError
from fseg_jax.pretraining.fields import Field, Geometry, compute_probabilities
from fseg_jax.pretraining.slide_fields import FIELD_SIDE, draw_fields
from fseg_jax.slides.reader import open_slide

GEOMETRY = Geometry(side=64, finest=0.5, coarsest=1.5, regions=3)


def test_sites_count_by_the_root_of_their_area():
    small, large = (np.zeros((side, side, 3), np.uint8) for side in (100, 200))
    fields = [Field(large, 1.0, "a"), Field(large, 1.0, "a"), Field(small, 2.0, "b"), Field(small, 1.0, "b")]
    chance = compute_probabilities(fields)
    # Areas 40,000 + 40,000 and 40,000 + 10,000; roots 282.8 and 223.6.
    np.testing.assert_allclose(chance[:2].sum(), 282.84 / (282.84 + 223.61), rtol=1e-4)
    np.testing.assert_allclose(chance[2] / chance[3], 4)


def test_fields_of_a_slide(tmp_path: Path):
    rng = np.random.default_rng(0)
    pixels = np.full((1500, 2100, 3), 245, np.uint8)
    cells = rng.integers(90, 180, (150, 160, 1)).repeat(10, axis=0).repeat(10, axis=1)
    pixels[:, :1600] = cells * np.array([1.0, 0.6, 0.9])
    Image.fromarray(pixels).save(tmp_path / "large.png")
    Image.fromarray(pixels[:300, :400]).save(tmp_path / "tile.png")
    Image.fromarray(pixels[:40, :400]).save(tmp_path / "thin.png")

    with open_slide(tmp_path / "tile.png", 1.0) as slide:
        (only,) = draw_fields(slide, "s", GEOMETRY, 5, 0)
    assert only.pixels.shape == (300, 400, 3) and only.mpp == 1.0
    with open_slide(tmp_path / "large.png", 0.5) as slide:
        five = draw_fields(slide, "s", GEOMETRY, 5, 0)
        again = draw_fields(slide, "s", GEOMETRY, 5, 0)
    assert [f.pixels.shape for f in five] == [(FIELD_SIDE, FIELD_SIDE, 3)] * 5
    assert all((a.pixels == b.pixels).all() for a, b in zip(five, again, strict=True))
    assert np.mean([f.pixels.mean() for f in five]) < 200  # of the tissue, not of the glass
    with (
        open_slide(tmp_path / "thin.png", 1.0) as slide,
        pytest.raises(InputError, match="too few for views of 64"),
    ):
        draw_fields(slide, "s", GEOMETRY, 5, 0)
