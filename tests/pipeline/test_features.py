"""The public reader of kept features: each token of tissue once, and where it lies."""

import shutil

import numpy as np
import pytest

import fseg_jax as fseg
from fseg_jax.encoders.classical import classical
from fseg_jax.pipeline.plan import Plan
from fseg_jax.pipeline.slide_facts import SlideFacts
from fseg_jax.pipeline.tokens import open_writer
from fseg_jax.slides.tiles import find_tissue_tiles, make_grid
from fseg_jax.slides.tissue import Tissue

MPP, SLIDE_MPP, STRIDE = 1.0, 0.25, 16
CARD = classical().card


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Features of a slide of 300 × 500 µm that say where each token lies: its row and its column."""
    folder = tmp_path_factory.mktemp("kept")
    grid = make_grid(300, 500, STRIDE, 128)
    tissue = np.zeros((100, 167), bool)
    tissue[6:53, 13:119] = True
    tissue[79:, 133:] = True
    slide = SlideFacts("s.svs", None, "tiff", 1200, 2000, SLIDE_MPP)
    tiles = find_tissue_tiles(grid, tissue, 3.0, MPP)
    image = np.zeros((30, 50, 3), np.uint8)
    plan = Plan("s", slide, MPP, grid, Tissue(tissue, 3.0), tiles, image, 10.0)
    writer = open_writer(folder, plan, CARD, "hash", "float32")
    for row, column in plan.tiles():
        y, x, *_ = grid.locate_tile(row, column)
        at = np.zeros((8, 8, CARD.channels), np.float32)
        at[..., 0], at[..., 1] = np.mgrid[y // STRIDE : y // STRIDE + 8, x // STRIDE : x // STRIDE + 8]
        writer.append(at[None])
    writer.close()
    return folder / "s.features.zarr", tissue


@pytest.mark.smoke
def test_each_token_of_tissue_is_there_once_where_it_lies(kept):
    path, tissue = kept
    features = fseg.open_features(path)
    tokens = features.read()
    assert tokens.dtype == np.float32 and tokens.shape == (len(features), features.channels)
    np.testing.assert_array_equal(tokens[:, :2], features.grid)
    np.testing.assert_array_equal(features.centres_um, (tokens[:, 1::-1] + 0.5) * STRIDE * MPP)
    np.testing.assert_allclose(features.centres, features.centres_um / SLIDE_MPP)
    # A token is there where the mask has tissue at its centre, whatever tile it is in.
    y, x = np.mgrid[: -(-300 // STRIDE), : -(-500 // STRIDE)]
    expected = {(r, c) for r, c in zip(y.ravel(), x.ravel(), strict=True) if _at(tissue, r, c)}
    found = [tuple(each) for each in features.grid.tolist()]
    assert len(found) == len(set(found)) and set(found) == expected


def _at(tissue: np.ndarray, row: int, column: int) -> bool:
    y, x = (int((i + 0.5) * STRIDE / 3) for i in (row, column))
    return bool(tissue[min(y, len(tissue) - 1), min(x, tissue.shape[1] - 1)])  # the last reach over the edge


def test_parts_are_the_whole(kept):
    features = fseg.open_features(str(kept[0]))
    whole = features.read()
    np.testing.assert_array_equal(np.concatenate(list(features.read_batches(37))), whole)
    np.testing.assert_array_equal(features.read(100, 103), whole[100:103])
    assert features.read(len(features)).shape == (0, features.channels)
    assert features.made_with["encoder"]["name"] == "classical" and features.made_with["mpp"] == MPP
    assert features.made_with["slide"]["path"] == "s.svs" and features.side_um == 16.0


def test_what_is_not_there_or_damaged_is_one_line(kept, tmp_path):
    with pytest.raises(fseg.InputError, match="is not called NAME"):
        fseg.open_features(tmp_path / "s.ome.zarr")
    with pytest.raises(fseg.InputError, match="no finished features"):
        fseg.open_features(tmp_path / "t.features.zarr")
    damaged = shutil.copytree(kept[0], tmp_path / "s.features.zarr")
    for chunk in (damaged / "tokens" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"none")
    with pytest.raises(fseg.InputError, match="damaged; run with --keep-features again"):
        fseg.open_features(damaged).read()
