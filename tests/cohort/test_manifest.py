"""Manifests: what they may look like, and what is said of those that are wrong."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fseg_jax.cohort import manifest
from fseg_jax.cohort.manifest import ManifestSlide, load_manifest, select_split
from fseg_jax.errors import InputError

pytestmark = pytest.mark.smoke


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    (tmp_path / "scans").mkdir()
    for name in ("a.png", "b.jpg"):
        Image.fromarray(np.full((40, 50, 3), 200, np.uint8)).save(tmp_path / "scans" / name)
    (tmp_path / "scans" / "notes.txt").write_text("not a slide")
    (tmp_path / "scans" / ".hidden.png").write_text("not either")
    return tmp_path


def write(folder: Path, *lines: str, name: str = "slides.csv") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_is_read_relative_to_itself(slides, separator):
    lines = (
        "slide_id,path,mpp,tissue,site,split",
        "",
        "A,scans/a.png,0.5,all,Leeds,train",
        "B,scans/b.jpg,,,,",
    )
    path = write(slides, *(line.replace(",", separator) for line in lines))
    assert load_manifest(path) == (
        ManifestSlide("A", slides / "scans/a.png", 0.5, "all", "Leeds", "train", 3),
        ManifestSlide("B", slides / "scans/b.jpg", line=4),
    )


def test_what_spreadsheets_write_is_read(slides):
    path = slides / "slides.csv"
    path.write_bytes(
        '\ufeffSlide_ID, Path ,site\r\n"A, first",scans/a.png,"two\r\nlines"\r\nB,scans/b.jpg,\r\n'.encode()
    )
    first, second = load_manifest(path)
    assert (first.slide_id, first.site, first.line) == ("A, first", "two\r\nlines", 2)
    assert second.line == 4


def test_a_folder_and_a_glob_name_slides_by_their_files(slides):
    assert [s.slide_id for s in load_manifest(slides / "scans")] == ["a", "b"]
    assert [s.path.name for s in load_manifest(f"{slides}/**/*.png")] == ["a.png"]
    (slides / "scans" / "a.jpg").write_bytes((slides / "scans" / "b.jpg").read_bytes())
    with pytest.raises(InputError, match=r"a\.png: the slide_id 'a' is also that of .*a\.jpg"):
        load_manifest(slides / "scans")


def test_every_problem_is_listed_with_its_line(slides):
    path = write(
        slides,
        "slide_id,path,mpp,tissue",
        "A,scans/a.png,0.5,",
        "a,scans/b.jpg,,",
        "../B,scans/b.jpg,,",
        "C,scans/none.png,abc,nomask.png",
        "D,s3://bucket,,",
        "E,scans/a.png",
        ",,nan,",
    )
    with pytest.raises(InputError) as error:
        load_manifest(path)
    first, *rest = str(error.value).split("\n")
    assert first == f"{path}: 10 problems; nothing was started"
    assert [int(line.split()[1].rstrip(":")) for line in rest] == [3, 4, 5, 5, 5, 6, 7, 8, 8, 8]
    for line, text in (
        (3, "'a' is also that of line 2"),
        (4, "names files"),
        (5, "mpp abc"),
        (5, "path scans/none.png: no such file"),
        (6, "names no file"),
        (7, "2 cells, but the header has 4"),
        (8, "no slide_id"),
        (8, "no path"),
    ):
        assert any(said.startswith(f"  line {line}: ") and text in said for said in rest), (line, text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("slide_id,file\nA,a.png\n", "no column path in its first line"),
        ("slide_id,path\n", "no slides, only a header"),
        ("", "no column slide_id and no column path"),
        ("slide_id,path,path\nA,a,b\n", "two columns are called path"),
        ('slide_id,path\n"A,a.png\n', "is not CSV"),
    ],
)
def test_tables_that_are_none(tmp_path, content, message):
    path = tmp_path / "slides.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        load_manifest(path)


def test_bytes_that_are_not_utf8_are_placed(tmp_path):
    path = tmp_path / "slides.csv"
    path.write_bytes(b"slide_id,path\nA,a.png\nB,\xe9.png\n")
    with pytest.raises(InputError, match=r"line 3 is not UTF-8"):
        load_manifest(path)


def test_the_sample_check_opens_headers(slides):
    (slides / "scans" / "b.jpg").write_bytes(b"\xff\xd8\xff broken")
    path = write(slides, "slide_id,path,mpp", "A,scans/a.png,", "B,scans/b.jpg,0.5")
    assert len(load_manifest(path)) == 2
    with pytest.raises(InputError) as error:
        load_manifest(path, sample_check=True)
    first, no_mpp, broken = str(error.value).split("\n")
    assert "2 problems" in first
    assert no_mpp.startswith("  line 2: ") and "give it in the column mpp" in no_mpp
    assert broken.startswith("  line 3: ")
    assert "--mpp-override" not in str(error.value)


def test_splits(slides):
    path = write(slides, "slide_id,path,split", "A,scans/a.png,train", "B,scans/b.jpg,test")
    lines = load_manifest(path)
    assert [s.slide_id for s in select_split(lines, "train", path)] == ["A"]
    assert select_split(lines, None, path) == lines
    with pytest.raises(InputError, match=r"no slide of the split 'val'; it has test, train"):
        select_split(lines, "val", path)


@pytest.mark.parametrize("name", ["nothing.csv", "*.nothing"])
def test_nothing_there(tmp_path, name):
    with pytest.raises(InputError, match=r"no such file|matches no file"):
        load_manifest(tmp_path / name)


def test_a_manifest_in_a_bucket(slides, monkeypatch):
    content = f"slide_id,path\nA,{slides}/scans/a.png\nB,scans/b.svs\nC,gs://other/c.svs\n"
    monkeypatch.setattr(manifest, "read_bytes", lambda location: content.encode())
    paths = [str(slide.path) for slide in load_manifest("s3://bucket/all/slides.csv")]
    assert paths == [f"{slides}/scans/a.png", "s3://bucket/all/scans/b.svs", "gs://other/c.svs"]


def test_addresses_in_a_manifest(slides):
    path = write(
        slides,
        "slide_id,path,tissue",
        "A,https://host.org/scans/a.svs,all",
        "B,s3://bucket/b.ome.zarr,",
        name="good.csv",
    )
    assert [str(s.path) for s in load_manifest(path)] == [
        "https://host.org/scans/a.svs",
        "s3://bucket/b.ome.zarr",
    ]
    path = write(
        slides,
        "slide_id,path,tissue",
        "A,https://me:secret@host.org/a.svs,",
        "B,https://host.org/a.svs?signature=secret,",
        "C,scans/a.png,s3://bucket/tissue.geojson",
        "D,s3://bucket,",
    )
    with pytest.raises(InputError) as error:
        load_manifest(path)
    first, *rest = str(error.value).split("\n")
    assert first.endswith("4 problems; nothing was started") and "secret" not in str(error.value)
    for said, text in zip(
        rest, ("a password or a query",) * 2 + ("is read from a disk", "no file"), strict=True
    ):
        assert text in said


def test_paths_that_cannot_be_looked_at_are_a_line_each_and_hide_no_other(slides):
    (slides / "loop.png").symlink_to(slides / "loop.png")
    path = write(
        slides,
        "slide_id,path,tissue",
        f"A,{'x' * 300}.svs,",
        "B,loop.png,",
        "C,scans/none.png,",
        f"D,scans/a.png,{'y' * 300}",
        "E,scans/b.jpg,",
        "F,a\0b.svs,",
    )
    with pytest.raises(InputError) as error:
        load_manifest(path)
    first, *rest = str(error.value).split("\n")
    assert first == f"{path}: 5 problems; nothing was started"
    for said, (line, text) in zip(
        rest,
        [
            (2, "cannot be looked at (File name too long)"),
            (3, f"path {slides}/loop.png: cannot be looked at (Too many levels of symbolic links)"),
            (4, "no such file"),
            (5, "cannot be looked at (File name too long)"),
            (7, "no path has such a character"),
        ],
        strict=True,
    ):
        assert said.startswith(f"  line {line}: ") and text in said


def test_a_slide_of_a_folder_or_a_glob_that_cannot_be_looked_at_is_named(slides):
    (slides / "scans" / "loop.png").symlink_to(slides / "scans" / "loop.png")
    for source in (slides / "scans", f"{slides}/scans/*.png"):
        with pytest.raises(InputError, match=r"1 problem; .*\n  .*loop\.png: cannot be looked at"):
            load_manifest(source)


def test_a_slide_is_no_manifest(slides):
    says = "a manifest is a CSV file, a folder or a glob of slides; fseg segment takes single slides"
    (slides / "slide.ome.zarr").mkdir()
    (slides / "scan.img").write_bytes(b"II*\0" + bytes(range(256)))
    for source, what in (
        ("scans/a.png", "is a slide"),
        ("slide.ome.zarr", "is a slide"),
        ("scan.img", "is no text"),
    ):
        with pytest.raises(InputError) as error:
            load_manifest(slides / source)
        assert str(error.value) == f"{slides / source}: {what}; {says}"
    (slides / "excel.csv").write_bytes("slide_id,path\nA,a.png\n".encode("utf-16"))
    with pytest.raises(InputError, match="line 1 is not UTF-8"):
        load_manifest(slides / "excel.csv")


def test_a_column_says_which_image_of_a_file_a_slide_is(slides):
    lines = ("slide_id,path,series,mpp", "A,scans/a.png,0,0.5", "B,scans/b.jpg,,0.5")
    first, second = load_manifest(write(slides, *lines), sample_check=True)
    assert (first.series, second.series) == (0, None)
    with pytest.raises(InputError, match=r"b\.jpg: --series 3: the file has a single image"):
        load_manifest(write(slides, *lines), sample_check=True, series=3)
    for bad in ("-1", "1.5", "Scene 1", "9999999"):
        with pytest.raises(
            InputError, match=rf"line 2: series {bad}: must be the number of one of the file's"
        ):
            load_manifest(write(slides, lines[0], f"A,scans/a.png,{bad},0.5"))


def test_the_sample_check_knows_the_mpp_that_all_slides_are_given(slides):
    assert len(load_manifest(slides / "scans", sample_check=True, mpp_override=0.5)) == 2
    with pytest.raises(InputError, match="no resolution"):
        load_manifest(slides / "scans", sample_check=True)
