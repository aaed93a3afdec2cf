"""What makes a slide another one, and what does not."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from fseg_jax.errors import InputError
from fseg_jax.slides import identity
from fseg_jax.slides.identity import SlideFile, identify, is_same_slide

pytestmark = pytest.mark.smoke


def write(path: Path, size: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.random.default_rng(seed).bytes(size))
    return path


def test_a_copy_under_another_name_is_the_same_slide(tmp_path):
    slide = write(tmp_path / "a.svs", 3_000_000)
    copy = tmp_path / "elsewhere" / "b.tif"
    copy.parent.mkdir()
    shutil.copyfile(slide, copy)
    os.utime(copy, (0, 0))
    assert identify(copy) == identify(slide) == identify(str(slide)) and len(identify(slide)) == 64


@pytest.mark.parametrize("size", [1000, 3_000_000])
@pytest.mark.parametrize("at", ["begin", "end", "size"])
def test_another_file_of_the_same_name_is_another_slide(tmp_path, size, at):
    slide = write(tmp_path / "a.svs", size)
    before, times = identify(slide), slide.stat()
    data = bytearray(slide.read_bytes())
    if at == "size":
        data += b"\0"
    else:
        data[0 if at == "begin" else -1] ^= 1
    slide.write_bytes(data)
    os.utime(slide, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert identify(slide) != before


def test_raw_pixels_that_differ_in_the_middle_are_another_slide(tmp_path):
    """Two uncompressed slides of one size, whose headers and ends are equal."""
    pixels = np.zeros((2000, 1500), np.uint8)
    (tmp_path / "a.bmp").write_bytes(pixels)
    pixels[900:1100] = 1
    (tmp_path / "b.bmp").write_bytes(pixels)
    assert identify(tmp_path / "a.bmp") != identify(tmp_path / "b.bmp")


def test_no_more_than_a_quarter_of_a_mebibyte_is_read(tmp_path, monkeypatch):
    slide = tmp_path / "large.svs"
    with slide.open("wb") as file:
        file.truncate(20 << 30)  # without taking room
    read = []
    opened = Path.open

    class Counted:
        def __init__(self, file):
            self._file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

        def __getattr__(self, name):
            return getattr(self._file, name)

        def read(self, size=-1):
            read.append(len(data := self._file.read(size)))
            return data

    monkeypatch.setattr(Path, "open", lambda path, mode: Counted(opened(path, mode)))
    identify(slide)
    assert sum(read) == 256 << 10


def test_a_slide_of_several_files_is_all_of_them(tmp_path):
    for folder, data in (("a", 1), ("b", 1), ("c", 2)):
        write(tmp_path / folder / "slide.mrxs", 5000)
        write(tmp_path / folder / "slide" / "Data0000.dat", 600_000, data)
        (tmp_path / folder / "slide.vms").write_text("[Virtual]\nImageFile=slide-0.jpg\nMapFile=gone.jpg\n")
        write(tmp_path / folder / "slide-0.jpg", 1000, data)
    for name in ("slide.mrxs", "slide.vms"):
        a, b, c = (identify(tmp_path / folder / name) for folder in "abc")
        assert a == b != c


def test_an_ome_tiff_is_its_set_too(tmp_path):
    header = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="32" SizeY="32" '
        'SizeC="2" SizeZ="1" SizeT="1"><Channel ID="Channel:0:0"/><Channel ID="Channel:0:1"/>'
        '<TiffData FirstC="0" IFD="0"><UUID FileName="a.ome.tif">urn:uuid:a</UUID></TiffData>'
        '<TiffData FirstC="1" IFD="0"><UUID FileName="b &amp; c.ome.tif">urn:uuid:b</UUID></TiffData>'
        "</Pixels></Image></OME>"
    )
    plane = np.zeros((32, 32), np.uint8)
    tifffile.imwrite(tmp_path / "a.ome.tif", plane, description=header, metadata=None)
    alone = identify(tmp_path / "a.ome.tif")
    seen = set()
    for value in (1, 2):
        tifffile.imwrite(tmp_path / "b & c.ome.tif", plane + value, metadata=None)
        seen.add(identify(tmp_path / "a.ome.tif"))
    assert len(seen | {alone}) == 3


def zarr(path: Path, *, pixel: int = 0) -> Path:
    import tensorstore as ts

    for level, side in enumerate((256, 64)):
        store = ts.open(
            {
                "driver": "zarr",
                "kvstore": {"driver": "file", "path": f"{path}/{level}/"},
                "metadata": {"shape": [side, side], "chunks": [16, 16], "dtype": "|u1", "compressor": None},
                "create": True,
            }
        ).result()
        store[...] = np.random.default_rng(pixel).integers(0, 255, (side, side)).astype(np.uint8)
    (path / ".zattrs").write_text('{"multiscales": []}')
    return path


def test_an_ome_zarr_is_its_pixels_and_not_what_lies_beside_them(tmp_path):
    slide = zarr(tmp_path / "a.ome.zarr")
    assert identify(zarr(tmp_path / "b.ome.zarr")) == identify(slide)
    assert identify(zarr(tmp_path / "c.ome.zarr", pixel=1)) != identify(slide)
    before = identify(slide)
    write(slide / "labels" / "tumour" / ".zattrs", 10)  # as napari and QuPath write them
    write(slide / ".DS_Store", 10)
    assert identify(slide) == before
    (slide / "0" / "3.3").unlink()
    assert identify(slide) != before


def test_a_folder_of_many_files_is_looked_into_here_and_there(tmp_path, monkeypatch):
    for y in range(12):
        for x in range(12):
            write(tmp_path / "a.zarr" / "0" / str(y) / str(x), 10)
    looked = []
    add = identity._add_file
    monkeypatch.setattr(identity, "_add_file", lambda digest, path: (looked.append(path), add(digest, path)))
    identify(tmp_path / "a.zarr")
    assert 16 <= len(looked) < 144


@pytest.mark.parametrize("path", ["none.svs", "a\0b.svs", "x" * 5000])
def test_what_cannot_be_read_is_one_line(tmp_path, path):
    with pytest.raises(InputError, match="cannot be read") as caught:
        identify(tmp_path / path)
    assert "\n" not in str(caught.value)


def test_slides_of_records_without_identity_go_by_their_files_names():
    old = SlideFile("/before/a.svs", None)
    assert is_same_slide(old, SlideFile("/now/a.svs", "1"))
    assert not is_same_slide(old, SlideFile("/before/b.svs", "1"))
    assert is_same_slide(SlideFile("a.svs", "1"), SlideFile("b.svs", "1"))
    assert not is_same_slide(SlideFile("a.svs", "1"), SlideFile("a.svs", "2"))
