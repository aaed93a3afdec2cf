"""The overlay picture: its size, its layout and its colours."""

import numpy as np
import pytest
from label_images import draw_smooth_labels
from PIL import Image

from fseg_jax.errors import InputError
from fseg_jax.outputs import figures
from fseg_jax.outputs.colours import make_default_names, make_palette
from fseg_jax.outputs.figures import redraw_overlay, tint, write_overlay
from fseg_jax.outputs.legend import Legend
from fseg_jax.outputs.outlines import Outline
from fseg_jax.outputs.picture import Picture


@pytest.fixture(autouse=True)
def usual_size(small_pictures, monkeypatch):
    monkeypatch.setattr(figures, "_MAX_ENLARGEMENT", small_pictures)


def draw(path, shape, k, labels=None, **options):
    image = np.full((*shape, 3), (230, 180, 205), np.uint8)
    labels = draw_smooth_labels(tuple(-(-side // 5) for side in shape), k) if labels is None else labels
    areas = np.bincount(labels.ravel(), minlength=k + 1)[1:] * 1e-4
    names, colours = options.pop("names", make_default_names(k)), options.pop("colours", make_palette(k))
    facts = {"mpp": 1.0, "step_mm2": 256e-6, "title": "slide.svs"} | options
    picture = Picture(image=image, labels=labels, areas_mm2=areas.tolist(), **facts)
    write_overlay(path, picture, names=names, colours=colours)
    return np.asarray(Image.open(path))


SHAPES = [(200, 200), (512, 512), (300, 900), (40, 2000), (2000, 40), (3000, 2500)]


@pytest.mark.parametrize(
    ("shape", "k"), [*((shape, k) for shape in SHAPES for k in (1, 256)), ((512, 512), 6), ((512, 512), 64)]
)
def test_every_shape_gets_a_picture_of_a_good_size(tmp_path, shape, k):
    picture = draw(tmp_path / "s.png", shape, k)
    assert 900 <= max(picture.shape) <= 2400
    assert [p.name for p in tmp_path.iterdir()] == ["s.png"]


def colour_tile(label):
    """Choose a colour that no palette holds."""
    return 8 * (label % 32), 60 * (label // 32), 255


def make_tiles(k, count=3):
    """Make tiles of one colour each."""
    colours = {label: colour_tile(label) for label in range(1, k + 1)}
    return {label: np.full((count, 128, 128, 3), c, np.uint8) for label, c in colours.items()}


@pytest.mark.parametrize("tiles", [True, False])
@pytest.mark.parametrize("shape", [(40, 2000), (2000, 40), (500, 700), (700, 500), (200, 200)])
@pytest.mark.parametrize("clusters", [0, 1, 5, 9, 21, 64, 128, 300])
def test_nothing_is_drawn_over_the_edge_or_over_something_else(shape, clusters, tiles):
    areas = np.arange(clusters, 0, -1) / 10
    legend = Legend.make(
        make_default_names(clusters),
        make_palette(clusters),
        areas,
        0.004096,
        [0.5] * clusters,
        make_tiles(min(clusters, 128)) if tiles else None,
        128.0,
    )
    layout = figures._Layout.make(shape, legend)
    (top, left), (top2, left2) = layout.corners
    h, w = layout.panel
    assert ((top2, left2) == (top, left2) and left2 > left + w) or (left2 == left and top2 > top + h)
    y, x = layout.legend
    height, width = legend.measure(layout.columns)
    assert x > left2 + w or y > top2 + h
    assert max(y + height, top2 + h) <= layout.canvas[0] - figures._MARGIN
    assert max(x + width, left2 + w) <= layout.canvas[1] - figures._MARGIN
    assert max(layout.canvas) <= 2400
    assert w / h == pytest.approx(shape[1] / shape[0], rel=0.05)
    assert len(legend.cards) == (min(clusters, 24) if tiles else 0)
    assert len(legend.cards) + len(legend.rows) == clusters


@pytest.mark.parametrize(("k", "shown"), [(5, 3), (10, 3), (11, 2), (64, 2)])
def test_tiles_are_in_the_picture_as_they_are(tmp_path, k, shown):
    labels = np.arange(1, k + 1, dtype=np.uint16).repeat(40)[None].repeat(300, axis=0)
    path = tmp_path / "s.png"
    image = np.full((300, 40 * k, 3), 200, np.uint8)
    areas = [1.0 + label for label in range(k)]
    picture = Picture("t", image, 1.0, labels, areas, 256e-6, [0.1] * k, make_tiles(k), 128.0)
    write_overlay(path, picture, names=make_default_names(k), colours=make_palette(k))
    drawn = np.asarray(Image.open(path)).astype(int)
    for label in (k, k - 4, max(1, k - 23)):  # large clusters, which have cards
        found = np.abs(drawn - colour_tile(label)).max(-1) <= 3
        assert found.sum() == shown * 128 * 128
    assert ((np.abs(drawn - colour_tile(1)).max(-1) <= 3).sum() > 0) == (k <= 24)


def test_a_picture_drawn_again_is_the_same_and_takes_other_names(tmp_path):
    outlines = [Outline("tissue", np.indices((75, 100)).sum(0) < 90, 4.0, "#009e73", "//")]
    options = {"tiles": make_tiles(4), "field": 128.0, "border_shares": [0.1] * 4, "outlines": outlines}
    first = draw(tmp_path / "s.png", (300, 400), 4, **options)
    png = (tmp_path / "s.png").read_bytes()
    redraw_overlay(png, tmp_path / "t.png", names=make_default_names(4), colours=make_palette(4))
    assert (tmp_path / "t.png").read_bytes() == png
    names, colours = ["Tumour", "b", "c", "d"], make_palette(9)[5:]
    redraw_overlay(png, tmp_path / "t.png", names=names, colours=colours)
    draw(tmp_path / "u.png", (300, 400), 4, names=names, colours=colours, **options)
    assert (tmp_path / "t.png").read_bytes() == (tmp_path / "u.png").read_bytes()
    assert (np.asarray(Image.open(tmp_path / "t.png")).shape != first.shape) or (
        np.asarray(Image.open(tmp_path / "t.png")) != first
    ).any()
    Image.open(tmp_path / "t.png").save(tmp_path / "edited.png")
    with pytest.raises(ValueError, match="does not hold what it was drawn from"):
        redraw_overlay((tmp_path / "edited.png").read_bytes(), tmp_path / "x", names=names, colours=colours)


@pytest.mark.smoke
def test_colours_of_the_legend_are_in_the_picture(tmp_path):
    labels = draw_smooth_labels((512, 512), 5)
    picture = draw(tmp_path / "s.png", (512, 512), 5, labels)
    for label, colour in enumerate(make_palette(5), 1):
        assert ((picture == colour).all(-1).sum() > 200) == (label in labels)


def test_labels_may_be_of_another_resolution(tmp_path):
    labels = draw_smooth_labels((512, 512), 3)
    fine = draw(tmp_path / "a.png", (256, 256), 3, labels)
    coarse = draw(tmp_path / "b.png", (256, 256), 3, labels[::2, ::2])
    assert fine.shape == coarse.shape


def test_tint_leaves_background_alone_and_moves_tissue_to_its_colour():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 32:] = 2
    found = tint(image, labels, make_palette(2), 0.6)
    np.testing.assert_array_equal(found[:, :31], image[:, :31])
    flat = tint(image, labels, make_palette(2), 1.0)
    np.testing.assert_array_equal(flat[:, 34:], np.broadcast_to(make_palette(2)[1], (64, 30, 3)))
    assert (found[:, 31:33].mean() < found[:, 34:].mean()) and found.dtype == np.uint8


def test_dense_borders_fade():
    labels = (np.indices((64, 64)).sum(0) % 2 + 1).astype(np.uint8)
    found = tint(np.full((64, 64, 3), 200, np.uint8), labels, np.full((2, 3), 200, np.uint8), 0.5)
    assert found.min() > 150


def test_the_scale_bar_is_as_long_as_it_says(tmp_path):
    picture = draw(tmp_path / "s.png", (600, 800), 1, np.zeros((600, 800), np.uint8), mpp=0.5)
    layout = figures._Layout.make((600, 800), Legend.make(["a"], make_palette(1), np.zeros(1), 1e-4))
    (y, x), (h, w) = layout.corners[0], layout.panel
    panel = picture[y : y + h, x : x + w]
    bar = (panel == (28, 30, 36)).all(-1).sum(1).max()
    assert bar == pytest.approx(100 / 0.5 * w / 800, abs=2)  # 400 µm across, so the bar says 100


def test_a_cluster_that_is_not_there_is_counted_not_listed():
    legend = Legend.make(make_default_names(3), make_palette(3), np.array([1.0, 0.0, 3.0]), 1e-4)
    assert [row.name for row in legend.rows] == ["cluster 1", "cluster 3"] and legend.absent == 1
    assert [row.share_text for row in legend.rows] == ["25.0 %", "75.0 %"]


@pytest.mark.parametrize(
    ("step", "largest", "areas", "note"),
    [
        (256e-6, 3.0, ["1.235", "3.000"], ""),
        (256e-6, 12.0, ["1.23", "12.00"], ""),
        (0.004096, 3.0, ["1.235", "3.000"], "in steps of 0.004 mm²"),
        (0.016384, 3.0, ["1.23", "3.00"], "in steps of 0.02 mm²"),
        (0.262144, 12.0, ["1.2", "12.0"], "in steps of 0.3 mm²"),
    ],
)
def test_the_legend_says_the_least_step_of_areas_where_it_shows(step, largest, areas, note):
    legend = Legend.make(["a", "b"], make_palette(2), np.array([1.2345678, largest]), step)
    assert [row.area_text for row in legend.rows] == areas and legend.step_text == note


def test_odd_names_and_titles_fit(tmp_path):
    draw(tmp_path / "s.png", (300, 300), 2, names=["é" * 300, ""], title="slide " * 100 + "µ")


def test_what_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(InputError, match="cannot be written") as caught:
        draw(tmp_path / "absent" / "s", (64, 64), 1)
    assert "\n" not in str(caught.value)
