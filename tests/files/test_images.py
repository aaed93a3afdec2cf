"""Image files are opened by one door: raster formats only, sizes bounded, every fault one line."""

import ast
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
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


def test_an_image_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), np.rot90(values, -1))
    assert read_image_size(tmp_path / "a.png") == (3, 2) and load_image(tmp_path / "a.png").format == "PNG"


def save_tiff(path: Path, *images: np.ndarray, **options: object) -> None:
    with tifffile.TiffWriter(path) as writer:
        for image in images:
            writer.write(image, metadata=None, **({"photometric": "rgb", "rowsperstrip": 5} | options))


RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("images", "options", "says"),
    [
        ([RGB, RGB], {}, "has 2 pages of one size"),
        ([RGB[:5], RGB], {}, "its largest image is not its first"),
        ([RGB * np.uint16(16)], {}, "the TIFF is 16-bit RGB"),
        ([RGB], {"photometric": "cielab"}, "the TIFF is 8-bit CIELab"),
        (
            [RGB],
            {"photometric": "minisblack", "planarconfig": "contig"},
            "its channels are stored one by one",
        ),
    ],
)
def test_a_tiff_is_refused_where_pillow_would_show_something_else(
    images: list[np.ndarray], options: dict[str, object], says: str, tmp_path: Path
) -> None:
    save_tiff(tmp_path / "a.tif", *images, **options)
    with pytest.raises(InputError, match=says):
        load_image(tmp_path / "a.tif")


def test_other_tiffs_are_read(tmp_path: Path) -> None:
    save_tiff(tmp_path / "small second.tif", RGB, RGB[:5])
    save_tiff(tmp_path / "deep grey.tif", RGB[..., 0] * np.uint16(256), photometric="minisblack")
    save_tiff(tmp_path / "turned.tif", RGB, extratags=[(274, 3, 1, 6, True)])
    np.testing.assert_array_equal(load_image(tmp_path / "small second.tif"), RGB)
    np.testing.assert_array_equal(load_image(tmp_path / "deep grey.tif"), RGB[..., 0] * np.uint16(256))
    np.testing.assert_array_equal(load_image(tmp_path / "turned.tif"), np.rot90(RGB, -1))
    assert read_image_size(tmp_path / "turned.tif") == (30, 20)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"GIF89a" + bytes(200), "it is a GIF image"),
        (b"ZISRAWFILE" + bytes(200), "it is a CZI file of Zeiss"),
        (b"\0\0\0\x18ftypheic" + bytes(200), "it is a HEIC or AVIF image"),
        (bytes(128) + b"DICM", "it is a DICOM file"),
        (b'<DataObject ObjectType="DPUfsImport">', "it is an iSyntax file of Philips"),
        (b"\xff\xd8\xff" + bytes(200), "it begins as a JPEG image, and is damaged or truncated"),
        (b"a note\n" * 50, "it is a text file"),
        (b"\xfe?" * 200, "it is of a format that is not known, or damaged"),
    ],
)
def test_what_is_no_image_is_told_what_it_is(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=rf"not an image that can be read: {says}$"):
        load_image(tmp_path / "a.png")
