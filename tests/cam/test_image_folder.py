"""Images of every kind as RGB, resized once, kept by their content."""

import os

import numpy as np
import pytest
import tifffile
from PIL import Image

from fseg_jax.cam import image_folder
from fseg_jax.cam.image_folder import find_images, read_image, resize_images
from fseg_jax.errors import InputError
from fseg_jax.files.downloads import find_cache_folder

pytestmark = pytest.mark.smoke


def save(path, pixels, **more):
    Image.fromarray(pixels).save(path, **more)
    return path


@pytest.fixture
def colours():
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)


def test_colour_grey_palette_transparent_and_sixteen_bits(tmp_path, colours):
    np.testing.assert_array_equal(read_image(save(tmp_path / "c.png", colours)), colours)
    grey = read_image(save(tmp_path / "g.png", colours[..., 0]))
    np.testing.assert_array_equal(grey, np.repeat(colours[..., :1], 3, -1))
    clear = np.dstack([colours, np.full((20, 30), 255, np.uint8)])
    clear[:10, :, 3] = 0
    seen = read_image(save(tmp_path / "a.png", clear))
    np.testing.assert_array_equal(seen[10:], colours[10:])
    assert (seen[:10] == 0).all()
    deep = (np.arange(600).reshape(20, 30) * 10).astype(np.uint16)
    found = read_image(save(tmp_path / "d.tif", deep))
    assert found.min() == 0 and found.max() == 255 and found.shape == (20, 30, 3)
    Image.fromarray(colours).convert("P").save(tmp_path / "p.png")
    assert read_image(tmp_path / "p.png").shape == (20, 30, 3)


def test_a_camera_that_was_turned_is_heeded(tmp_path, colours):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "t.png", colours, exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "t.png"), np.rot90(colours, -1))


def test_unreadable_images_are_left_out_and_named(tmp_path, colours, caplog):
    good = save(tmp_path / "a.png", colours)
    cut = tmp_path / "b.png"
    cut.write_bytes(good.read_bytes()[:200])
    text = tmp_path / "c.jpg"
    text.write_text("no image")
    read = resize_images([good, cut, text], 16)
    assert read.files == (good,) and read.images.shape == (1, 16, 16, 3)
    assert [path for path, _ in read.unreadable] == [cut, text]
    assert "b.png" in caplog.text and "c.jpg" in caplog.text
    for path, says in ((cut, "cannot be read as an image"), (text, "not an image that can be read")):
        with pytest.raises(InputError, match=says) as error:
            read_image(path)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="none of the 2 images can be read"):
        resize_images([cut, text], 16)


def test_resized_once_by_content_and_again_when_it_changes(tmp_path, colours, monkeypatch):
    path = save(tmp_path / "a.png", colours)
    first = resize_images([path], 16)
    assert len(list((find_cache_folder() / "images" / "16").glob("*.npy"))) == 1
    moved = path.rename(tmp_path / "moved.png")
    decoded = []
    monkeypatch.setattr(image_folder, "read_image", lambda p: decoded.append(p) or read_image(p))
    np.testing.assert_array_equal(resize_images([moved], 16).images, first.images)
    assert not decoded
    resize_images([moved], 24)
    save(moved, 255 - colours)
    assert (resize_images([moved], 16).images != first.images).any()
    assert decoded == [moved, moved]


def test_a_damaged_cache_is_made_again(tmp_path, colours):
    path = save(tmp_path / "a.png", colours)
    first = resize_images([path], 16).images
    (kept,) = (find_cache_folder() / "images" / "16").glob("*.npy")
    kept.write_bytes(b"broken")
    np.testing.assert_array_equal(resize_images([path], 16).images, first)
    assert np.load(kept).shape == (16, 16, 3)


def test_folders_are_read_in_order_without_what_is_hidden(tmp_path, colours):
    for name in ("b.png", "a.JPG", "sub/c.png", ".hidden/d.png", ".e.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [p.name for p in find_images(tmp_path)] == ["a.JPG", "b.png", "c.png"]
    for folder, message in ((tmp_path / "none", "no such folder"), (tmp_path / ".hidden", None)):
        if message:
            with pytest.raises(InputError, match=message):
                find_images(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        find_images(tmp_path / "empty")


def test_a_folder_that_cannot_be_looked_at_is_named(tmp_path, colours, monkeypatch):
    """Not left out without a word, with all that is in it."""
    save(tmp_path / "a.png", colours)
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"closed: cannot be looked at \(Permission denied\)") as error:
        find_images(tmp_path)
    assert "\n" not in str(error.value)
    assert [path.name for path in find_images(tmp_path, deep=False)] == ["a.png"]
    with pytest.raises(InputError, match=r"cannot be looked at \(File name too long\)"):
        find_images(tmp_path / ("n" * 300))


def test_an_image_of_too_many_pixels_is_left_out_and_named(tmp_path, colours, monkeypatch, caplog):
    monkeypatch.setattr("fseg_jax.files.images.MOST_PIXELS", 700)
    good, large = save(tmp_path / "a.png", colours), save(tmp_path / "b.png", np.zeros((40, 40), np.uint8))
    read = resize_images([good, large], 16)
    assert read.files == (good,)
    assert "b.png: has too many pixels" in caplog.text


@pytest.mark.parametrize(
    "options", [{}, {"tile": (16, 16)}, {"rowsperstrip": 4, "compression": "lzw"}], ids=str
)
@pytest.mark.parametrize("tag", ["ImageLength", "ImageWidth"])
def test_a_tiff_that_declares_more_than_it_holds_is_not_read_as_black(tmp_path, colours, tag, options):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, colours, photometric="rgb", **options)
    np.testing.assert_array_equal(read_image(path), colours)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags[tag].overwrite(200)
    with pytest.raises(InputError, match=r"a\.tif: (the TIFF is damaged|cannot be read as an image)"):
        read_image(path)
