"""Masks of every kind of file against the array that was written, whatever the file says of its display."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from fseg_jax.errors import InputError
from fseg_jax.slides import masks
from fseg_jax.slides.masks import open_mask, read_bright, read_marked

pytestmark = pytest.mark.smoke

MARKED = np.zeros((150, 200), bool)
MARKED[40:90, 30:130] = True

TIFFS = {
    "1 bit": (bool, 1, {}),
    "1 bit packed": (bool, 1, {"compression": "packbits"}),
    "8 bits": (np.uint8, 255, {}),
    "16 bits": (np.uint16, 65535, {"compression": "lzw"}),
    "16 bits of 0 and 255": (np.uint16, 255, {}),
    "big-endian": (np.uint16, 40000, {"byteorder": ">"}),
    "fractions": (np.float32, 1, {"compression": "zlib"}),
    "signed": (np.int16, 255, {}),
    "tiled": (np.uint8, 255, {"tile": (64, 48), "compression": "zlib", "predictor": True}),
    "strips": (np.uint8, 255, {"rowsperstrip": 17, "compression": "zstd"}),
    "jpeg": (np.uint8, 255, {"tile": (64, 64), "compression": "jpeg"}),
}


@pytest.mark.parametrize("photometric", ["miniswhite", "minisblack"])
@pytest.mark.parametrize("kind", TIFFS)
def test_a_tiff_mask_that_is_min_is_white_is_read_by_its_values(
    kind: str, photometric: str, tmp_path: Path
) -> None:
    dtype, value, options = TIFFS[kind]
    path = tmp_path / "mask.tif"
    tifffile.imwrite(path, MARKED.astype(dtype) * dtype(value), photometric=photometric, **options)
    np.testing.assert_array_equal(read_marked(path), MARKED)
    np.testing.assert_array_equal(read_bright(path), MARKED)


def test_fax_is_read_by_its_values(tmp_path: Path) -> None:
    path = tmp_path / "mask.tif"  # min-is-white, as fax is: what is stored as 1 is shown as black
    Image.fromarray(~MARKED).save(path, compression="group4", tiffinfo={262: 0})
    stored = tifffile.imread(path)
    np.testing.assert_array_equal(read_marked(path), stored != 0)
    with open_mask(path) as mask:
        codes = np.concatenate([block for _, block in mask.yield_codes()])
    np.testing.assert_array_equal(codes, np.where(stored, 255, 0))


def test_the_noise_of_a_jpeg_marks_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mask.jpg"
    Image.fromarray(MARKED.astype(np.uint8) * 255).save(path, quality=30)
    noisy = np.asarray(Image.open(path))
    assert ((noisy > 0) & ~MARKED).any()
    np.testing.assert_array_equal(read_marked(path), noisy > 127)
    assert (read_marked(path) != MARKED).mean() < 0.002


@pytest.mark.parametrize(("lossless", "quality"), [(True, 80), (False, 5)])
def test_a_webp_is_noisy_where_it_is_lossy(lossless: bool, quality: int, tmp_path: Path) -> None:
    path = tmp_path / "mask.webp"
    rgb = np.repeat(MARKED[..., None].astype(np.uint8) * 200, 3, axis=-1)
    Image.fromarray(rgb).save(path, lossless=lossless, quality=quality)
    with open_mask(path) as mask:
        assert mask.lossy is not lossless
    assert (read_marked(path) != MARKED).mean() < (0.001 if lossless else 0.02)


def test_palettes_are_indices_where_anything_marks_and_colours_where_half_does(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    image = Image.fromarray(MARKED.astype(np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 0, 0, 200])
    image.putdata(MARKED.astype(np.uint8).ravel().tolist())
    image.save(path)
    np.testing.assert_array_equal(read_marked(path), MARKED)
    np.testing.assert_array_equal(read_bright(path), MARKED)
    with open_mask(path) as mask:
        (codes,), (colours,) = (
            [block for _, block in blocks] for blocks in (mask.yield_codes(), mask.yield_colours())
        )
    np.testing.assert_array_equal(codes, MARKED)
    np.testing.assert_array_equal(colours, MARKED[..., None] * np.array([0, 0, 200]))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_transparency_is_ignored_and_the_strongest_channel_counts(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"mask{suffix}"
    rgba = np.zeros((150, 200, 4), np.uint8)
    rgba[..., 3] = np.arange(200)
    rgba[MARKED, 0] = 255  # red, which is dark to the eye
    Image.fromarray(rgba).save(path)
    np.testing.assert_array_equal(read_marked(path), MARKED)
    np.testing.assert_array_equal(read_bright(path), MARKED)


def test_a_mask_of_labels_is_never_read_as_empty(tmp_path: Path) -> None:
    for name in ("mask.png", "mask.jpg", "mask.tif"):
        Image.fromarray(MARKED.astype(np.uint8) * 2).save(tmp_path / name)
        with pytest.raises(InputError, match=r"its largest value is \d+: a mask's marks must be above 127"):
            read_bright(tmp_path / name)
    with pytest.raises(InputError, match="its largest value"):
        read_marked(tmp_path / "mask.jpg")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "empty.png")
    assert not read_bright(tmp_path / "empty.png").any()


@pytest.mark.parametrize("block", [1, 7 * 200, 1 << 24])
@pytest.mark.parametrize("options", [{}, {"tile": (64, 48), "compression": "zlib"}], ids=["mapped", "tiled"])
def test_blocks_make_up_the_mask(
    block: int, options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masks, "_BLOCK", block)
    values = np.random.default_rng(0).integers(0, 60000, (150, 200)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "mask.tif", values, **options)
    with open_mask(tmp_path / "mask.tif") as mask:
        assert mask.shape == (150, 200)
        np.testing.assert_array_equal(np.concatenate([part for _, part in mask.yield_codes()]), values)


def test_what_was_never_written_is_unmarked(tmp_path: Path) -> None:
    path = tmp_path / "mask.tif"
    tiles = (np.full((64, 64), 255, np.uint8) if i == 0 else None for i in range(9))
    tifffile.imwrite(path, tiles, shape=(192, 192), dtype=np.uint8, tile=(64, 64), compression="zlib")
    found = read_marked(path)
    assert found[:64, :64].all() and found.sum() == 64 * 64


def test_a_pyramid_is_read_by_its_first_page_and_a_stack_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.tif"
    values = MARKED.astype(np.uint8) * 255
    with tifffile.TiffWriter(path) as writer:
        writer.write(values, tile=(64, 64))
        writer.write(values[::2, ::2], tile=(64, 64), subfiletype=1)
    np.testing.assert_array_equal(read_marked(path), MARKED)
    tifffile.imwrite(path, np.stack([values, 255 - values]), photometric="minisblack")
    with pytest.raises(InputError, match=r"mask\.tif: has 2 pages: give a mask of one page"):
        read_marked(path)


def longer(path: Path) -> None:
    """Declare twice as many rows as there are tiles for."""
    tifffile.imwrite(path, MARKED.astype(np.uint8), tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["ImageLength"].overwrite(300)


def wide(path: Path) -> None:
    """Declare more pixels than are decoded at once, of strips that are all there."""
    tifffile.imwrite(path, MARKED.astype(np.uint8), rowsperstrip=10, compression="zlib")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["ImageWidth"].overwrite(4_000_000)


def cut(path: Path) -> None:
    tifffile.imwrite(path, np.random.default_rng(0).integers(0, 255, (150, 200)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:20_000])


BAD = {
    "longer.tif": (longer, "its list of tiles is too short"),
    "wide.tif": (wide, "the mask is too large, 4000000 × 150 pixels"),
    "cut.tif": (cut, "truncated"),
    "complex.tif": (lambda p: tifffile.imwrite(p, MARKED.astype(np.complex64)), "give a mask of grey"),
    "cmyk.tif": (
        lambda p: tifffile.imwrite(p, np.zeros((9, 9, 4), np.uint8), photometric="separated"),
        "give a mask of grey",
    ),
    "empty.tif": (lambda p: p.touch(), "not a mask image"),
    "head.tif": (lambda p: p.write_bytes(b"II*\0\xff\xff\xff\x7f"), "not a mask image"),
    "missing.png": (lambda p: None, "cannot be read (No such file or directory)"),
    "folder.png": (lambda p: p.mkdir(), "cannot be read (Is a directory)"),
    "n" * 300 + ".png": (lambda p: None, "cannot be read (File name too long)"),
}


@pytest.mark.parametrize("name", BAD, ids=[name[:12] for name in BAD])
def test_a_mask_that_cannot_be_read_is_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write, says = BAD[name]
    write(path)
    with pytest.raises(InputError) as error:
        read_marked(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and says in message and "\n" not in message


def test_damage_inside_a_mask_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "mask.tif"
    tifffile.imwrite(path, MARKED.astype(np.uint8), tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[5]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 20)
    with pytest.raises(InputError, match=r"mask\.tif: cannot be decoded at y = 64 .*damaged") as error:
        read_marked(path)
    assert "\n" not in str(error.value)


def test_a_turned_tiff_mask_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", MARKED, extratags=[(274, 3, 1, 6, True)])
    with pytest.raises(InputError, match="stored turned"):
        read_marked(tmp_path / "a.tif")
