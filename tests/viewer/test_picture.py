"""Tiles compared with the files they are cut from, and masks with the mask that is written."""

import shutil
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from embedded import make_facts
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fseg_jax import open_slide
from fseg_jax.errors import InputError
from fseg_jax.outputs.embeddings import Embeddings, open_embeddings
from fseg_jax.outputs.labels import open_labels
from fseg_jax.pipeline.patch_records import read_provenance
from fseg_jax.pipeline.slide_facts import SlideFacts
from fseg_jax.pipeline.voting import vote
from fseg_jax.slides.identity import identify
from fseg_jax.viewer.mask import MaskPainter
from fseg_jax.viewer.picture import CANVAS, TILE, LabelLayer, Picture, open_picture


def decode(data: bytes) -> np.ndarray:
    """Decode a picture to integers."""
    return np.asarray(Image.open(BytesIO(data))).astype(int)


@pytest.fixture
def picture(slide_folder):
    """Open the slide with a small thumbnail."""
    with open_slide(slide_folder / "tissue.png", 1.0) as slide:
        yield Picture(
            slide, (384, 512), 1.0, np.asarray(Image.open(slide_folder / "tissue.png").resize((64, 48)))
        )


def test_the_finest_tiles_are_the_slides_pixels(slide_folder, picture):
    image = np.asarray(Image.open(slide_folder / "tissue.png")).astype(int)
    assert picture.max_zoom == 0 and picture.span == TILE
    tile = decode(picture.render_tile(0, 0, 0))
    assert tile.shape == (TILE, TILE, 3)
    assert abs(tile[:384] - image).mean() < 3 and abs(tile[390:] - CANVAS).max() < 8
    quarter = decode(picture.render_tile(1, 1, 0))  # columns 256…512, enlarged twice
    smaller = quarter.reshape(256, 2, 256, 2, 3).mean((1, 3))
    assert abs(smaller - image[:256, 256:]).mean() < 4


def test_coarse_tiles_come_from_the_thumbnail(slide_folder):
    thumbnail = np.zeros((48, 64, 3), np.uint8)
    thumbnail[:, 32:] = 200
    with open_slide(slide_folder / "tissue.png", 1.0) as slide:
        box = Picture(slide, (384, 512), 1.0, thumbnail).read_box(0, 0, 24, 32, 16.0)
    assert (box[:, :14] == 0).all() and (box[:, 18:] == 200).all()


def test_a_patch_shows_its_place_on_the_slide(slide_folder, picture):
    image = np.asarray(Image.open(slide_folder / "tissue.png")).astype(int)
    assert abs(decode(picture.render_patch(96, 160, 64, 64)) - image[64:128, 128:192]).mean() < 4


def test_a_slide_that_was_moved(slide_folder, tmp_path):
    record = SlideFacts("/nowhere/tissue.png", None, "PNG", 384, 512, 1.0)
    thumbnail = np.asarray(Image.open(slide_folder / "tissue.png"))
    away = tmp_path / "out"
    away.mkdir()
    small = open_picture(record, away, None, thumbnail)
    assert small.slide is None and "--slides FOLDER" in small.notice and "\n" not in small.notice
    assert abs(decode(small.render_tile(0, 0, 0))[:384] - thumbnail.astype(int)).mean() < 3
    with pytest.raises(InputError, match=r"not where it was .*--slides"):
        open_picture(record, away, None, None)
    with pytest.raises(InputError, match=r"holds no tissue\.png"):
        open_picture(record, away, tmp_path, thumbnail)
    moved = open_picture(record, away, slide_folder, thumbnail)
    assert moved.slide is not None and not moved.notice
    moved.close()
    shutil.copy(slide_folder / "tissue.png", tmp_path / "tissue.png")  # beside the outputs
    beside = open_picture(record, away, None, thumbnail)
    assert beside.slide is not None
    beside.close()
    with pytest.raises(InputError, match=r"--slides: .*512 × 384 pixels, the slide of the outputs 500 × 384"):
        open_picture(replace(record, width=500), away, slide_folder, thumbnail)
    for where, says in (
        (tmp_path / "none", "none: no such folder"),
        (slide_folder / "tissue.png", "give the folder it is in"),
        (tmp_path / ("a" * 300), "a{300}"),
    ):
        with pytest.raises(InputError, match=f"--slides: .*{says}") as caught:
            open_picture(record, away, where, thumbnail)
        assert "\n" not in str(caught.value)
    too_long = replace(record, path="a" * 300)
    assert "\n" not in open_picture(too_long, away, None, thumbnail).notice


def test_levels_whose_resolutions_contradict_each_other_are_no_layer(slide_folder):
    labels = open_labels(slide_folder / "out" / "tissue.ome.zarr")
    with pytest.raises(InputError, match=r"tissue\.ome\.zarr: the resolutions of its levels contradict"):
        LabelLayer(labels._replace(mpp=(1e-9, *labels.mpp[1:])), 512.0)


def test_label_tiles_are_the_pyramids_labels(slide_folder):
    labels = open_labels(slide_folder / "out" / "tissue.ome.zarr")
    whole = labels.levels[0].read().result()
    layer = LabelLayer(labels, TILE * 1.0)
    tile = decode(layer.render_tile(0, 0, 0, frozenset()))
    table = np.concatenate([np.zeros((1, 3), int), labels.colours])
    assert (tile[:384, ..., 3] == np.where(whole > 0, 255, 0)).all() and (tile[384:, :, 3] == 0).all()
    assert (tile[:384][whole > 0][:, :3] == table[whole[whole > 0]]).all()
    hidden = decode(layer.render_tile(0, 0, 0, frozenset({2})))
    assert (hidden[:384, ..., 3] > 0).sum() == ((whole > 0) & (whole != 2)).sum()
    quarter = decode(layer.render_tile(1, 1, 0, frozenset()))  # each pixel four times
    assert (quarter[::2, ::2, 3][:256] == tile[:256, 256:, 3]).all()
    assert decode(layer.render_tile(3, 7, 7, frozenset())).max() == 0
    assert layer.compute_shares().sum() == pytest.approx(1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(4, 12), st.integers(2, 4))
def test_the_mask_on_the_page_is_the_one_that_is_written(seed, step, side, k):
    rng = np.random.default_rng(seed)
    step = min(step, side)
    height, width = (int(v) for v in rng.integers(side, 5 * side, 2))
    rows, columns = (1 + -(-(size - side) // step) for size in (height, width))
    grid = np.argwhere(rng.random((rows, columns)) < 0.8).astype(np.int32)
    if not len(grid):
        return
    labels, soft = rng.integers(0, k, len(grid)), rng.dirichlet(np.ones(k), len(grid))
    facts = make_facts(height, width, side, step)
    tissue = np.ones((height, width), bool)
    tissue[height // 2 :, : width // 3] = False
    embedded = Embeddings(None, grid * 1.0, grid, tissue, np.zeros((1, 1, 3), np.uint8), {})
    written = np.concatenate(list(vote(embedded, facts, labels, soft)))
    assert (MaskPainter(embedded, facts).paint(labels, soft) == written).all()


def test_a_large_slides_mask_is_reduced(slide_folder):
    embedded = open_embeddings(slide_folder / "out" / "tissue.embeddings.zarr")
    facts = read_provenance(embedded)
    parameters = replace(facts.parameters, step=32 * 20, patch=64 * 20)
    painter = MaskPainter(embedded, replace(facts, height=384 * 20, width=512 * 20, parameters=parameters))
    n = len(embedded.centers)
    mask = painter.paint(np.zeros(n, int), np.ones((n, 2)) / 2)
    assert mask.shape == (1152, 1536) and painter.mpp == pytest.approx(20 * 512 / 1536)


def test_another_slide_of_the_same_name_and_size_is_not_shown(slide_folder, tmp_path):
    thumbnail = np.asarray(Image.open(slide_folder / "tissue.png"))
    identity = identify(slide_folder / "tissue.png")
    record = SlideFacts(str(tmp_path / "tissue.png"), identity, "PNG", 384, 512, 1.0)
    shutil.copy(slide_folder / "tissue.png", tmp_path / "tissue.png")
    same = open_picture(record, tmp_path, None, thumbnail)
    assert same.slide is not None and not same.notice
    same.close()
    Image.fromarray(thumbnail[::-1]).save(tmp_path / "tissue.png")
    other = open_picture(record, tmp_path, None, thumbnail)
    assert other.slide is None and "tissue.png is another slide than the one of the outputs" in other.notice
