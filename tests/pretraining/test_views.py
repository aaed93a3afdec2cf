"""Views: both see the regions that they should, and a step's views depend on nothing but its number."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fseg_jax.errors import InputError
from fseg_jax.pretraining.views import (
    FIELD_SIDE,
    Field,
    Geometry,
    compute_probabilities,
    draw_fields,
    draw_views,
    stream_views,
)
from fseg_jax.slides.reader import open_slide

GEOMETRY = Geometry(side=64, finest=0.5, coarsest=1.5, regions=3)


def ramp(height: int, width: int) -> np.ndarray:
    """Red says where a pixel lies along y, green along x."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 255 / height, x * 255 / width, np.full((height, width), 128)], -1).astype(np.uint8)


def mean_over(view: np.ndarray, box: np.ndarray) -> np.ndarray:
    top, left, bottom, right = np.rint(box * len(view)).astype(int)
    return view[top : bottom + 1, left : right + 1].mean((0, 1))


def test_a_region_is_the_same_tissue_in_both_views():
    fields = [Field(ramp(200, 260), 1.0, "a")]
    views = draw_views(fields, compute_probabilities(fields), GEOMETRY, 40, seed=3, step=5)
    assert views.images.shape == (2, 40, 64, 64, 3) and views.regions.shape == (2, 40, 3, 4)
    assert views.regions.min() > -1e-6 and views.regions.max() < 1 + 1e-6
    sizes = views.regions[..., 2:] - views.regions[..., :2]
    assert (sizes > 0.05).all()
    for pair in range(40):
        for region in range(3):
            one, other = (
                mean_over(views.images[v, pair], views.regions[v, pair, region])[:2] for v in (0, 1)
            )
            np.testing.assert_allclose(one, other, atol=4)


def test_views_differ_in_resolution_and_turn():
    fields = [Field(ramp(256, 256), 1.0, "a")]
    views = draw_views(fields, compute_probabilities(fields), GEOMETRY, 60, seed=0, step=0)
    slope = np.diff(views.images[..., 0].astype(float), axis=-2).mean((2, 3))  # of red, downwards
    steepness = np.abs(slope[np.abs(slope) > 0.3])  # views not turned on their side
    assert len(steepness) > 30 and steepness.max() > 1.7 * steepness.min()
    assert (slope > 0.3).any() and (slope < -0.3).any()


def test_a_steps_views_depend_on_the_seed_and_its_number_only():
    fields = [Field(ramp(100, 120), 1.0, "a"), Field(ramp(150, 90), 0.5, "b")]
    chance = compute_probabilities(fields)

    def at(step: int, seed: int = 1):
        return draw_views(fields, chance, GEOMETRY, 4, seed=seed, step=step)

    later = list(stream_views(at, 2, 6))
    assert len(later) == 4
    np.testing.assert_array_equal(later[1].images, at(3).images)
    np.testing.assert_array_equal(later[3].regions, at(5).regions)
    assert (at(3).images != at(4).images).any() and (at(3).images != at(3, seed=2).images).any()


def test_sites_count_by_the_root_of_their_area():
    small, large = ramp(100, 100), ramp(200, 200)
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


def test_a_field_is_never_enlarged_beyond_what_is_said():
    fields = [Field(np.arange(256 * 256 * 3).astype(np.uint8).reshape(256, 256, 3), 3.0, "a")]
    views = draw_views(
        fields, compute_probabilities(fields), GEOMETRY, 3, seed=0, step=0
    )  # coarser than the range allows
    assert views.images.shape[1] == 3
