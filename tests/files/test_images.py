"""Image files are opened by one door: raster formats only, sizes bounded, every fault one line."""

import ast
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fseg_jax
from fseg_jax.errors import InputError
from fseg_jax.files.images import FORMATS, MOST_PIXELS, load_image, read_image_size

pytestmark = pytest.mark.smoke

PACKAGE = Path(fseg_jax.__file__).parent
OPENERS = {"imread", "imopen", "open_image"}


def test_there_is_one_door_to_images() -> None:
    """Nothing but files/images.py calls Pillow's Image.open, or another library's reader of any image."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            of = node.func.value
            image = isinstance(of, ast.Name) and of.id in ("Image", "PIL") and node.func.attr == "open"
            image |= isinstance(of, ast.Attribute) and of.attr == "Image" and node.func.attr == "open"
            if image or node.func.attr in OPENERS:
                found.append((path.relative_to(PACKAGE).as_posix(), [k.arg for k in node.keywords]))
    assert found == [("files/images.py", ["formats"])]


def test_no_format_starts_another_program() -> None:
    assert set(FORMATS) <= {"PNG", "JPEG", "BMP", "WEBP", "TIFF"}


@pytest.mark.parametrize("name", ["page.eps", "page.png", "page.jpg"])
def test_a_page_description_is_no_image_whatever_it_is_called(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.Popen", None)  # nothing is started
    path = tmp_path / name
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    for read in (load_image, read_image_size):
        with pytest.raises(InputError, match="not an image that can be read"):
            read(path)


def png_header(path: Path, width: int, height: int) -> None:
    """A PNG of a few bytes that states a size."""
    chunks = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(chunks)


def test_a_size_above_the_limit_is_refused_by_the_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    for width, height in ((MOST_PIXELS // 1000 + 1, 1000), (60_000, 60_000)):
        png_header(path, width, height)
        for read in (load_image, read_image_size):
            with pytest.raises(InputError, match=r"large\.png: has too many pixels .*178 million") as error:
                read(path)
            assert "\n" not in str(error.value)


def test_paths_that_cannot_be_looked_at_are_one_line(tmp_path: Path) -> None:
    for path, says in (
        (tmp_path / "none.png", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (tmp_path / ("n" * 300), "File name too long"),
        (tmp_path / "a\0b", "null byte"),
    ):
        with pytest.raises(InputError, match=f"cannot be read as an image .*{says}") as error:
            load_image(path)
        assert "\n" not in str(error.value)


def test_an_image_is_turned_as_its_camera_says_where_that_is_wanted(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), values)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", upright=True), np.rot90(values, -1))
