"""Views: both see the regions that they should, a device cuts what the host does, and a step's views depend
on nothing but its number."""

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from jaxtyping import UInt8

from fseg_jax.errors import InputError
from fseg_jax.pretraining import pages, supply
from fseg_jax.pretraining.fields import Field, Geometry
from fseg_jax.pretraining.pages import make_cutter
from fseg_jax.pretraining.supply import Supply, make_view_key
from fseg_jax.pretraining.views import Views

GEOMETRY = Geometry(side=64, finest=0.5, coarsest=1.5, regions=3)


def ramp(height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Red says where a pixel lies along y, green along x."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 255 / height, x * 255 / width, np.full((height, width), 128)], -1).astype(np.uint8)


def noise(height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def on_host(fields, pairs, *, seed=0, step=0, geometry=GEOMETRY) -> Views:
    return Supply(fields, geometry, pairs, seed).draw(step)


def on_device(fields, pairs, *, seed=0, step=0, geometry=GEOMETRY) -> Views:
    """As it cuts them, unrounded."""
    paper = Supply(fields, geometry, pairs, seed).lay_out(step, SingleDeviceSharding(jax.devices()[0]))
    planes, regions = jax.jit(make_cutter(fields, geometry, pairs))(paper, make_view_key(seed, step))
    images = np.moveaxis(np.asarray(planes), 1, -1).reshape(2, pairs, *([geometry.side] * 2), 3)
    return Views(images, np.asarray(regions))


def mean_over(view: np.ndarray, box: np.ndarray) -> np.ndarray:
    top, left, bottom, right = np.rint(box * len(view)).astype(int)
    return view[top : bottom + 1, left : right + 1].mean((0, 1))


@pytest.mark.parametrize("draw", [on_host, on_device])
def test_a_region_is_the_same_tissue_in_both_views(draw):
    views = draw([Field(ramp(200, 260), 1.0, "a")], 40, seed=3, step=5)
    assert views.images.shape == (2, 40, 64, 64, 3) and views.regions.shape == (2, 40, 3, 4)
    assert views.regions.min() > -1e-5 and views.regions.max() < 1 + 1e-5
    sizes = views.regions[..., 2:] - views.regions[..., :2]
    assert (sizes > 0.05).all()
    for pair in range(40):
        for region in range(3):
            one, other = (
                mean_over(views.images[v, pair], views.regions[v, pair, region])[:2] for v in (0, 1)
            )
            np.testing.assert_allclose(one, other, atol=4)


def test_a_device_cuts_what_the_host_cuts():
    """Of fields finer and coarser than views, as small as a view, and side by side on a page."""
    fields = [
        Field(noise(*size), mpp, "a")
        for size, mpp in (((97, 64), 1.0), ((230, 301), 0.5), ((80, 120), 2.5), ((64, 64), 0.3))
    ]
    host, device = on_host(fields, 60), on_device(fields, 60)
    np.testing.assert_array_equal(host.regions, device.regions)
    # Pillow rounds after each of its two passes.
    np.testing.assert_allclose(device.images, host.images.astype(np.float32), atol=1.01)
    assert np.abs(device.images - host.images).mean() < 0.35


def test_views_differ_in_resolution_and_turn():
    views = on_host([Field(ramp(256, 256), 1.0, "a")], 60)
    slope = np.diff(views.images[..., 0].astype(float), axis=-2).mean((2, 3))  # of red, downwards
    steepness = np.abs(slope[np.abs(slope) > 0.3])  # views not turned on their side
    assert len(steepness) > 30 and steepness.max() > 1.7 * steepness.min()
    assert (slope > 0.3).any() and (slope < -0.3).any()


def test_views_lie_anywhere_at_any_resolution():
    """As documented: resolutions evenly in their logarithm, places evenly, turned in each of eight ways."""
    geometry = Geometry(side=32, finest=0.5, coarsest=1.5)
    table = Supply([Field(ramp(400, 400), 1.0, "a")], geometry, 4000, 0)._get_pool(0).table
    cuts = jax.jit(lambda key: supply.draw_cuts(table, geometry, 4000, key))(jax.random.key(5))
    place = np.log(np.asarray(cuts.sides) / 32 * 1.5) / np.log(1.5**2)  # from 1 / 1.5 to 1.5 µm
    np.testing.assert_allclose(np.histogram(place, 4, (0, 1))[0] / 8000, 0.25, atol=0.02)
    larger = np.asarray(cuts.corners)[np.asarray(cuts.sides).argmax(0), np.arange(4000)]
    place = larger / (400 - np.asarray(cuts.sides).max(0)[:, None])
    np.testing.assert_allclose(np.histogram(place, 4, (0, 1))[0] / 8000, 0.25, atol=0.02)
    np.testing.assert_allclose(np.bincount(np.ravel(cuts.ways), minlength=8) / 8000, 1 / 8, atol=0.02)
    side = np.asarray(cuts.regions[..., 2] - cuts.regions[..., 0]) * np.asarray(cuts.sides)[..., None]
    np.testing.assert_allclose(side[0], side[1], rtol=1e-3)  # the same in both views


def test_fields_are_drawn_as_often_as_is_said():
    sizes = [(100, 100), (100, 300), (200, 200)]
    fields = [Field(ramp(*size), 1.0, site) for size, site in zip(sizes, "aab", strict=True)]
    table = Supply(fields, GEOMETRY, 4000, 0)._get_pool(0).table
    cuts = jax.jit(lambda key: supply.draw_cuts(table, GEOMETRY, 4000, key))(jax.random.key(0))
    np.testing.assert_allclose(np.bincount(cuts.fields) / 4000, [1 / 8, 3 / 8, 1 / 2], atol=0.03)


def test_a_steps_views_depend_on_the_seed_and_its_number_only():
    fields = [Field(ramp(100, 120), 1.0, "a"), Field(ramp(150, 90), 0.5, "b")]
    later = list(Supply(fields, GEOMETRY, 4, 1).stream_views(2, 6))
    assert len(later) == 4
    np.testing.assert_array_equal(later[1].images, on_host(fields, 4, seed=1, step=3).images)
    np.testing.assert_array_equal(later[3].regions, on_host(fields, 4, seed=1, step=5).regions)
    assert (later[1].images != later[2].images).any()
    assert (later[1].images != on_host(fields, 4, seed=2, step=3).images).any()


def test_fields_that_do_not_fit_at_once_follow_each_other(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supply, "MOST_PAGES", 2)
    monkeypatch.setattr(pages, "PAGE", 128)
    fields = [Field(np.full((70, 80, 3), 20 * number, np.uint8), 1.0, "a") for number in range(9)]
    geometry = Geometry(side=32, finest=1.0, coarsest=1.0)
    made = Supply(fields, geometry, 4, 0)
    assert (made.pages, made.period) == (2, 2)  # two fields, of each of which four pairs are drawn
    place, cutter = SingleDeviceSharding(jax.devices()[0]), jax.jit(make_cutter(fields, geometry, 4))
    shades = []
    for step, paper in enumerate(made.stream_pages(0, 40, place)):
        assert paper.pixels.shape == (2, 3, 128, 128)
        planes = np.asarray(cutter(paper, make_view_key(0, step)).planes)
        wanted = np.moveaxis(made.draw(step).images.reshape(8, 32, 32, 3), -1, 1)
        np.testing.assert_allclose(planes, wanted, atol=0.01)
        shades.append(set(np.unique(np.rint(planes))))
    assert len(shades) == 40 and all(
        len(one | two) <= 2 for one, two in zip(*[iter(shades)] * 2, strict=True)
    )
    assert len(set().union(*shades)) == 9
    for step, paper in zip(range(5, 8), made.stream_pages(5, 8, place), strict=True):  # resumed
        planes = np.asarray(cutter(paper, make_view_key(0, step)).planes)
        assert set(np.unique(np.rint(planes))) == shades[step]


def test_a_pool_is_as_many_fields_as_fit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supply, "MOST_PAGES", 2)
    monkeypatch.setattr(pages, "PAGE", 128)
    small, large = (Field(np.zeros((side, side, 3), np.uint8), 1.0, "a") for side in (60, 120))
    made = Supply([small] * 40 + [large], GEOMETRY, 4, 0)
    assert made.period in (5, 8)  # a page holds four of the small ones, or the large one
    for step in range(0, 100, made.period):
        pool = made._get_pool(step).fields
        assert 2 <= len(pool) <= 8 and pages.place_fields(pool)[:, 0].max() == 1
    with pytest.raises(InputError, match="a field of 130 × 60 pixels: cut it to 128 at most"):
        Supply([Field(np.zeros((130, 60, 3), np.uint8), 1.0, "a")], GEOMETRY, 4, 0)


def test_a_field_is_never_enlarged_beyond_what_is_said():
    views = on_host([Field(noise(256, 256), 3.0, "a")], 3)  # coarser than the range allows
    table = Supply([Field(noise(256, 256), 3.0, "a")], GEOMETRY, 3, 0)._get_pool(0).table
    cuts = supply.draw_cuts(table, GEOMETRY, 3, jax.random.key(0))
    assert views.images.shape[1] == 3
    np.testing.assert_allclose(cuts.sides, 64 / 1.5, rtol=1e-5)
