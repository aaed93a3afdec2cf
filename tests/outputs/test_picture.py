"""What a picture carries: the same when it is read again, and none of a reader's business."""

import io

import numpy as np
import pytest
from PIL import Image

from fseg_jax.outputs.outlines import Outline
from fseg_jax.outputs.picture import (
    CHUNK,
    Picture,
    arrange_tiles,
    cut_tiles,
    decode_picture,
    encode_picture,
    find_chunk,
)

rng = np.random.default_rng(0)
IMAGE = np.asarray(Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((160, 120)))
TILES = {2: np.stack([IMAGE[:64, :64], IMAGE[32:96, 32:96]]), 300: IMAGE[None, 10:74, 10:74]}
LABELS = rng.integers(0, 301, (240, 320), np.uint16)
OUTLINES = [
    Outline("tissue", rng.random((31, 47)) < 0.5, 4.0, "#009e73"),
    Outline("ink", LABELS > 9, 1.0, "#0", "x"),
]
PICTURE = Picture(
    "Schnitt µ", IMAGE, 4.5, LABELS, [0.5] * 300, 256e-6, [0.25] * 300, TILES, 128.0, outlines=OUTLINES
)


def test_what_is_encoded_is_decoded():
    found = decode_picture(encode_picture(PICTURE))
    arrays = {"image": 0, "labels": 0, "tiles": 0, "outlines": 0}
    assert found._replace(**arrays) == PICTURE._replace(**arrays)
    for outline, expected in zip(found.outlines, OUTLINES, strict=True):
        assert outline._replace(mask=0) == expected._replace(mask=0)
        np.testing.assert_array_equal(outline.mask, expected.mask)
    np.testing.assert_array_equal(found.labels, PICTURE.labels)
    assert np.abs(found.image.astype(int) - IMAGE).mean() < 2
    assert {j: tiles.shape for j, tiles in found.tiles.items()} == {2: (2, 64, 64, 3), 300: (1, 64, 64, 3)}
    assert np.abs(found.tiles[300][0].astype(int) - TILES[300][0]).mean() < 3
    assert encode_picture(PICTURE) == encode_picture(PICTURE)


def test_tiles_are_cut_as_they_were_arranged():
    sheet = arrange_tiles(TILES)
    assert sheet.shape == (128, 128, 3) and (sheet[64:, 64:] == 255).all()
    for cluster, tiles in cut_tiles(sheet, {2: 2, 300: 1}).items():
        np.testing.assert_array_equal(tiles, TILES[cluster])


def test_other_programs_read_the_png_and_skip_the_chunk():
    from PIL.PngImagePlugin import PngInfo

    info, out = PngInfo(), io.BytesIO()
    info.add(CHUNK, encode_picture(PICTURE), after_idat=True)
    Image.fromarray(IMAGE).save(out, "PNG", pnginfo=info)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(out.getvalue()))), IMAGE)
    assert find_chunk(out.getvalue()) == encode_picture(PICTURE)
    again = io.BytesIO()
    Image.open(io.BytesIO(out.getvalue())).save(again, "PNG")
    assert find_chunk(again.getvalue()) is None and find_chunk(b"no PNG") is None


@pytest.mark.parametrize("cut", [0, 10, 2000, -40])
def test_damage_is_a_value_error(cut):
    with pytest.raises(ValueError, match="damaged"):
        decode_picture(encode_picture(PICTURE)[:cut])
