"""A slide's labels: the same by tiles of any number, and as on an accelerator; W in bounded memory."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from skimage import data as pictures

from fseg_jax import open_slide
from fseg_jax.codebook import Codebook
from fseg_jax.encoders.classical import classical
from fseg_jax.methods import fseg
from fseg_jax.numerics import resample
from fseg_jax.pipeline import batching
from fseg_jax.pipeline.labels import Shortfall, label_rows
from fseg_jax.pipeline.plan import Settings, lay_out
from fseg_jax.pipeline.tile_ring import TileRing
from fseg_jax.pipeline.tokens import encode_tiles
from fseg_jax.slides.tiles import TileGrid

ENCODER = classical()


@pytest.fixture
def as_on_an_accelerator(monkeypatch):
    """Labels are made as on an accelerator: many tiles at once, and every cluster compared at every pixel."""
    monkeypatch.setattr(batching, "_read_device_memory", lambda: 80 << 30)
    monkeypatch.setattr(resample, "_argmax_of_candidates", resample._argmax_of_all)
    fseg.label_pixels.clear_cache()
    yield
    fseg.label_pixels.clear_cache()


@pytest.fixture(scope="module")
def book() -> Codebook:
    image = pictures.immunohistochemistry()
    A = np.asarray(ENCODER(jnp.asarray(image)[None]))[0].reshape(-1, 20)
    return Codebook(A[:: len(A) // 5][:5])


def label_slide(picture, book, batch) -> np.ndarray:
    settings = Settings(tile=64, batch=batch, threads=2)
    with open_slide(picture, 1.0) as slide:
        plan = lay_out(slide, ENCODER.card, settings, book)
        source = encode_tiles(slide, plan, ENCODER, settings)
        rows = label_rows(plan, source, ENCODER.card, book, settings, lambda *_: None, Shortfall())
        return np.concatenate(list(rows))


def test_an_accelerator_labels_a_slide_as_a_cpu_does(picture, book, request):
    labels = label_slide(picture, book, 3)
    request.getfixturevalue("as_on_an_accelerator")
    assert set(np.unique(labels)) == {0, 1, 2, 3, 4, 5} and labels.dtype == np.uint8
    np.testing.assert_array_equal(label_slide(picture, book, 4), labels)


@pytest.mark.parametrize(("batch", "share"), [(1, 0.6), (4, 1.0), (7, 0.3), (50, 0.9)])
def test_a_ring_holds_a_few_rows_of_tiles_for_as_long_as_they_are_wanted(batch, share):
    rows, columns, tokens = 60, 9, 4
    grid = TileGrid(rows * 32, columns * 32, 64, 16, 16)
    tissue = np.random.default_rng(batch).random((rows, columns)) < share
    tissue[20:25] = False
    tiles = np.argwhere(tissue)
    plan = SimpleNamespace(grid=grid, tissue_tiles=tissue, tiles=tiles.tolist)
    ring, next_row = TileRing(plan, 1), 0
    for first in range(0, len(tiles), batch):
        numbers = np.arange(first, first + batch, dtype=np.float32) + 1
        ring.store(jnp.asarray(np.tile(numbers[:, None, None, None], (1, tokens, tokens, 1))), first)
        # A row is begun once the row below it is there, and may go on until the next is begun.
        at_work = int(tiles[first + batch][0]) - 2 if first + batch < len(tiles) else rows
        while next_row < at_work:
            for column in np.flatnonzero(tissue[next_row]):
                block = np.asarray(ring.blend(next_row, np.array([column]), 2, 1))
                check_corner(block[0, ..., 0], tissue, next_row, int(column))
                assert not block[1].any()
            next_row += 1
    assert next_row == rows
    assert ring.slots <= 1.25 * (4 * columns + 2 * batch)


def check_corner(block, tissue, row, column) -> None:
    """The top left token of a core is the mean of the tiles round it, which count alike there or less."""
    number = np.where(tissue, np.cumsum(tissue).reshape(tissue.shape), 0).astype(float)
    shares = {0: 0.75, -1: 0.25}  # of the tile and the one before it: half a token of four inside the halo
    total = weight = 0.0
    for dy, y in shares.items():
        for dx, x in shares.items():
            if row + dy >= 0 and column + dx >= 0 and tissue[row + dy, column + dx]:
                total, weight = total + y * x * number[row + dy, column + dx], weight + y * x
    assert block[1, 1] == pytest.approx(total / weight, rel=1e-5)
