"""DICOM slides: one slide by any of its files, with the pixels that were written, whoever reads it."""

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from dicom_files import write_series
from PIL import Image
from pydicom import dcmread
from pydicom.uid import (
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    generate_uid,
)

from fseg_jax.cohort.manifest import load_manifest
from fseg_jax.errors import InputError
from fseg_jax.slides.dicom_series import merge_series
from fseg_jax.slides.identity import identify
from fseg_jax.slides.reader import compute_shape, open_slide

pytestmark = pytest.mark.smoke

FINE = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (25, 38, 3)).astype(np.uint8)).resize(
        (300, 200)
    )
)
LEVELS = [FINE, FINE.reshape(100, 2, 150, 2, 3).mean((1, 3)).round().astype(np.uint8)]


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A folder, called as archives call them, of two levels and a label."""
    write_series(tmp_path / "1.2.840.7", LEVELS, label=True)
    return tmp_path / "1.2.840.7"


def read_all(path: Path, mpp: float = 0.5) -> np.ndarray:
    with open_slide(path) as slide:
        return slide.read(0, 0, *compute_shape(slide, mpp), mpp)


def test_a_folder_and_each_of_its_files_are_one_slide(scan, monkeypatch):
    paths = [scan, *sorted(scan.iterdir())]
    assert [path.name for path in paths[1:]] == ["level-0.dcm", "level-1.dcm", "level-label.dcm"]
    for path in paths:
        with open_slide(path) as slide:
            assert (slide.name, slide.format, slide.mpp) == ("1.2.840.7", "openslide/dicom", 0.5)
            assert (slide.height, slide.width) == (200, 300)
            assert slide.level_mpps == [0.5, 1.0]
    assert len({identify(path) for path in paths}) == 1
    assert merge_series(paths) == merge_series(paths[::-1]) == [scan]
    assert merge_series(paths[:0:-1]) == [scan / "level-0.dcm"]
    monkeypatch.chdir(scan)
    assert open_slide(".").name == "1.2.840.7"


def test_files_that_are_renamed_or_have_no_suffix_are_the_same_slide(scan, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for number, path in enumerate(sorted(scan.iterdir(), reverse=True)):
        shutil.copyfile(path, moved / f"I{number}")
    assert identify(moved / "I0") == identify(scan)
    np.testing.assert_array_equal(read_all(moved / "I0"), read_all(scan))
    (moved / "I1").write_bytes((moved / "I1").read_bytes()[:-2] + b"\0\1")
    assert identify(moved) != identify(scan)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, ExplicitVRLittleEndian, JPEGLSLossless, HTJ2KLossless])
def test_pixels_are_those_written(syntax, tmp_path):
    write_series(tmp_path / "scan", LEVELS, syntax=syntax)
    np.testing.assert_array_equal(read_all(tmp_path / "scan"), FINE)
    np.testing.assert_array_equal(read_all(tmp_path / "scan", 1.0), LEVELS[1])
    with open_slide(tmp_path / "scan") as slide:
        by_openslide = syntax in (JPEG2000Lossless, ExplicitVRLittleEndian)
        assert slide.format == ("openslide/dicom" if by_openslide else "wsidicom")
        boxes = [(y, x, 70, 90) for y in range(0, 130, 13) for x in range(0, 210, 21)]
        with ThreadPoolExecutor(8) as pool:
            parts = list(pool.map(lambda box: slide.read(*box, 0.5), boxes))
    for (y, x, height, width), part in zip(boxes, parts, strict=True):
        np.testing.assert_array_equal(part, FINE[y : y + height, x : x + width])


def test_both_libraries_read_a_jpeg_alike(tmp_path, monkeypatch):
    write_series(tmp_path / "scan", LEVELS, syntax=JPEGBaseline8Bit)
    read = read_all(tmp_path / "scan")
    assert abs(read.astype(int) - FINE).mean() < 2

    def refuse(path: Path, frame: str) -> None:
        raise InputError(f"{path}: refused")

    monkeypatch.setattr("fseg_jax.slides.dicom.OpenSlidePixels", refuse)
    assert abs(read_all(tmp_path / "scan").astype(int) - read).max() <= 1


def test_levels_whose_tiles_differ_in_size_are_all_read(tmp_path):
    ids = dict.fromkeys(("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"), generate_uid())
    for level, (mpp, tile) in enumerate([(0.5, 64), (1.0, 32)]):
        options = {"mpp": mpp, "tile": tile, "name": f"level-{level}", "syntax": JPEGLSLossless}
        write_series(tmp_path / "scan", [LEVELS[level]], **options, **ids)
    with open_slide(tmp_path / "scan") as slide:
        assert (slide.format, slide.level_mpps) == ("wsidicom", [0.5, 1.0])
        np.testing.assert_array_equal(slide.read(0, 0, 200, 300, 0.5), FINE)
        np.testing.assert_array_equal(slide.read(0, 0, 100, 150, 1.0), LEVELS[1])


def test_grey_is_read_and_fluorescence_is_not(tmp_path):
    grey = FINE[..., 1].copy()
    write_series(tmp_path / "grey", [grey], syntax=JPEG2000Lossless)
    np.testing.assert_array_equal(read_all(tmp_path / "grey"), np.repeat(grey[..., None], 3, axis=-1))
    write_series(tmp_path / "dapi", [grey], syntax=JPEG2000Lossless, light="111743")
    with pytest.raises(InputError, match="dapi: is fluorescence of 1 channel"):
        open_slide(tmp_path / "dapi")


def test_what_is_refused_is_said(tmp_path, monkeypatch):
    write_series(tmp_path / "deep", [FINE.astype(np.uint16)], syntax=ExplicitVRLittleEndian)
    write_series(tmp_path / "stack", [FINE], TotalPixelMatrixFocalPlanes=3)
    write_series(tmp_path / "huge", [FINE], Rows=60000, Columns=60000)
    write_series(tmp_path / "label", [], label=True)
    write_series(tmp_path / "other", [FINE], SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
    for name, message in (
        ("deep", r"level-0\.dcm has 3 channel\(s\) of 16 bits"),
        ("stack", "has 3 focal planes"),
        ("huge", r"level-0\.dcm has tiles of 60000 × 60000 pixels, too large"),
        ("label", "no level of a slide, only a label"),
        ("other/level-0.dcm", "a DICOM file that is no slide"),
    ):
        with pytest.raises(InputError, match=f"{name}: .*{message}") as error:
            open_slide(tmp_path / name)
        assert "\n" not in str(error.value)
    write_series(tmp_path / "ls", [FINE], syntax=JPEGLSLossless)
    monkeypatch.setitem(sys.modules, "wsidicom", None)
    with pytest.raises(
        InputError, match=r"ls: .*3 channel\(s\), JPEG-LS Lossless.*pip install 'fseg-jax\[dicom\]'"
    ):
        open_slide(tmp_path / "ls")


def test_several_series_of_a_folder_are_named_apart(tmp_path):
    uids = {name: write_series(tmp_path / "flat", LEVELS, name=name) for name in ("a", "b")}
    write_series(tmp_path / "flat", [FINE], name="c")
    with pytest.raises(InputError, match=r"holds 3 DICOM slides .* give a file of one, such as a-0\.dcm"):
        open_slide(tmp_path / "flat")
    slides = load_manifest(tmp_path / "flat")
    assert [s.slide_id for s in slides] == [uids["a"], uids["b"], "c-0"]
    assert [open_slide(slide.path).name for slide in slides] == [slide.slide_id for slide in slides]


def test_manifests_count_a_slide_once(tmp_path, caplog):
    scans = tmp_path / "scans"
    for name in ("A.1", "B"):
        write_series(scans / name, LEVELS, label=True, suffix=".dcm" if name == "B" else "")
    write_series(scans / "B", [FINE], name="seg", SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4")
    Image.fromarray(FINE).save(scans / "c.png")
    (scans / "empty").mkdir()
    expected = [("A.1", scans / "A.1"), ("B", scans / "B"), ("c", scans / "c.png")]
    for source in (scans, f"{scans}/*", f"{scans}/**"):
        assert [(s.slide_id, s.path) for s in load_manifest(source)] == expected, source
    for source in (scans / "B", f"{scans}/**/*.dcm", f"{scans}/B/level-1.dcm*"):
        assert [s.slide_id for s in load_manifest(source)] == ["B"], source
    assert "1 DICOM file(s) that are no slides are left out, such as" in caplog.text
    table = tmp_path / "slides.csv"
    table.write_text("slide_id,path\nA,scans/B/level-0.dcm\nB,scans/c.png\nC,scans/B\n")
    with pytest.raises(
        InputError, match="line 4: path scans/B: is of the same DICOM slide as that of line 2"
    ):
        load_manifest(table)


def test_a_damaged_file_is_one_line(scan):
    path = scan / "level-0.dcm"
    whole = path.read_bytes()
    for damage in (whole[:200], whole[: len(whole) // 2], whole[:132] + bytes(len(whole) - 132)):
        path.write_bytes(damage)
        with pytest.raises(InputError) as error:
            read_all(path)
        assert "\n" not in str(error.value) and str(path) in str(error.value), error.value
    assert dcmread(scan / "level-1.dcm").TotalPixelMatrixColumns == 150


@pytest.mark.parametrize("syntax", [JPEGLSLossless, HTJ2KLossless])
def test_a_tile_that_states_more_pixels_than_it_has_is_not_decoded(syntax, tmp_path):
    write_series(tmp_path / "scan", [FINE], syntax=syntax)
    path = tmp_path / "scan" / "level-0.dcm"
    content = path.read_bytes()
    if syntax == JPEGLSLossless:
        at, stated = content.index(b"\xff\xf7") + 5, b"\x7f\xff\x7f\xff"
    else:
        at, stated = content.index(b"\xff\x4f\xff\x51") + 8, b"\0\0\x7f\xff\0\0\x7f\xff"
    path.write_bytes(content[:at] + stated + content[at + len(stated) :])
    with pytest.raises(InputError, match="a tile states more pixels than it has"):
        read_all(path)
