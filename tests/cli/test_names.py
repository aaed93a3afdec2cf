"""Names for clusters, as a user gives them: in every output, read by what is not ours."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import zarr
from PIL import Image

from fseg_jax import cli
from fseg_jax.files import partial_folders
from fseg_jax.outputs.labels import open_labels

TIMES = ("seconds", "tiles_per_second", "finished")
NAMES = "cluster,name,colour\n1,tumour nests,#ff0010\n3,Stroma,\n"


def fseg(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(a) for a in arguments])
    return exit_.value.code


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("names") / "names.csv"
    path.write_text(NAMES)
    return path


OPTIONS = ("--k", 3, "--tile", 128, "--encoder", "classical")


def test_names_are_in_every_output(slide, names, tmp_path):
    assert fseg("segment", slide, "-o", tmp_path, *OPTIONS, "--names", names) == 0
    expected = {"tumour nests": "#ff0010", "cluster 2": "#e69f00", "Stroma": "#0072b2"}
    record = json.loads((tmp_path / "small.json").read_text())
    assert record["colours"] == expected and list(record["areas_mm2"]) == list(expected)
    with (tmp_path / "small.csv").open(encoding="utf-8", newline="") as file:
        assert {row["name"]: row["colour"] for row in csv.DictReader(file)} == expected
    features = json.loads((tmp_path / "small.geojson").read_text())["features"]
    classes = [feature["properties"]["classification"] for feature in features]
    assert {c["name"]: "#" + bytes(c["color"]).hex() for c in classes} == expected
    label = zarr.open_group(tmp_path / "small.ome.zarr/labels/fseg", mode="r").attrs["ome"]["image-label"]
    assert [p["class"] for p in label["properties"]] == ["background", *expected]
    assert ["#" + bytes(c["rgba"][:3]).hex() for c in label["colors"][1:]] == list(expected.values())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("cluster,name\n4,a\n", "line 2: there is no cluster 4"),
        ("cluster,name\n1,a\n2,a\n", "'a' is also the name on line 2"),
        ("cluster,name\n1,a: b\n", "holds a colon"),
        ("name\na\n", "no column cluster"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_made(slide, tmp_path, content, says, capsys):
    path = tmp_path / "names.csv"
    path.write_text(content)
    assert fseg("segment", slide, "-o", tmp_path / "out", *OPTIONS, "--names", path) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_slides_with_clusters_of_their_own_have_no_names_in_common(slide, names, tmp_path, capsys):
    other = tmp_path / "other.tif"
    other.write_bytes(slide.read_bytes())
    assert fseg("segment", slide, other, "-o", tmp_path / "out", *OPTIONS, "--names", names) == 2
    assert "give a codebook, or one slide" in capsys.readouterr().err
    assert fseg("cohort", tmp_path, "-o", tmp_path / "out", *OPTIONS, "--names", names) == 2
    assert "give a codebook" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------- fseg names


@pytest.fixture(scope="module")
def plain(slide, tmp_path_factory) -> Path:
    """A slide that was segmented without names."""
    out = tmp_path_factory.mktemp("plain") / "out"
    assert fseg("segment", slide, "-o", out, *OPTIONS) == 0
    return out


def read_all(folder: Path) -> dict[str, object]:
    """Read all files of a folder; of records, all but the times."""
    files: dict[str, object] = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    for name in [name for name in files if name.endswith(".json") and "/" not in name]:
        record = json.loads(files[name])
        files[name] = {
            k: v for k, v in record.items() if k not in ("seconds", "tiles_per_second", "finished")
        }
    return files


def test_renamed_outputs_are_those_of_a_run_with_names(slide, plain, names, tmp_path, capsys):
    """Byte by byte, whatever they were called before; reset, all are as at first."""
    assert fseg("segment", slide, "-o", tmp_path / "fresh", *OPTIONS, "--names", names) == 0
    out = shutil.copytree(plain, tmp_path / "out")
    before = read_all(out)
    capsys.readouterr()
    assert fseg("names", out, names) == 0
    assert capsys.readouterr().out == f"{out}: clusters of 1 slide renamed\n"
    assert read_all(out) == read_all(tmp_path / "fresh") != before
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert fseg("names", out, names) == 0  # nothing is to be done
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == stamps
    defaults = tmp_path / "defaults.csv"
    defaults.write_text("cluster,name\n1,cluster 1\n")
    assert fseg("names", out, defaults) == 0  # the others stay as they are, and so does a colour
    assert json.loads((out / "small.json").read_text())["colours"] == {
        "cluster 1": "#ff0010",
        "cluster 2": "#e69f00",
        "Stroma": "#0072b2",
    }
    assert fseg("names", out, defaults, "--reset", "--quiet") == 0
    assert read_all(out) == before
    capsys.readouterr()


def test_a_slides_own_table_is_a_file_of_names(plain, tmp_path):
    out = shutil.copytree(plain, tmp_path / "out")
    edited = (out / "small.csv").read_text().replace("cluster 2", '"=Stroma, loose"')
    (tmp_path / "mine.csv").write_text(edited)
    assert fseg("names", out, tmp_path / "mine.csv") == 0
    assert list(json.loads((out / "small.json").read_text())["colours"])[1] == "=Stroma, loose"
    with (out / "small.csv").open(encoding="utf-8", newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)][1] == "'=Stroma, loose"


def test_the_page_shows_the_names(plain, names, tmp_path):
    out = shutil.copytree(plain, tmp_path / "out")
    assert fseg("names", out, names) == 0
    labels = open_labels(out / "small.ome.zarr")  # what the page shows
    assert labels.names == ("tumour nests", "cluster 2", "Stroma")
    assert labels.colours[0].tolist() == [255, 0, 16]


def test_classes_with_a_prefix_are_renamed_with_it(slide, names, tmp_path):
    assert fseg("segment", slide, "-o", tmp_path, *OPTIONS, "--class-prefix", "{slide} ", "--no-image") == 0

    def classes() -> set[str]:
        features = json.loads((tmp_path / "small.geojson").read_text())["features"]
        return {feature["properties"]["classification"]["name"] for feature in features}

    assert classes() == {"small cluster 1", "small cluster 2", "small cluster 3"}
    assert fseg("names", tmp_path, names) == 0
    assert classes() == {"small tumour nests", "small cluster 2", "small Stroma"}
    assert open_labels(tmp_path / "small.ome.zarr").names == ("tumour nests", "cluster 2", "Stroma")


def test_outputs_of_the_version_before_are_read_and_renamed(slide, names, tmp_path):
    assert fseg("segment", slide, "-o", tmp_path, *OPTIONS, "--no-image") == 0
    record = json.loads((tmp_path / "small.json").read_text())
    assert record.pop("form")["image"] is False
    (tmp_path / "small.json").write_text(json.dumps(record | {"format": 3}))
    assert fseg("names", tmp_path, names) == 0
    assert open_labels(tmp_path / "small.ome.zarr").names == ("tumour nests", "cluster 2", "Stroma")


def test_a_prefix_with_a_colon_is_one_line_before_anything_is_made(slide, tmp_path, capsys):
    assert fseg("segment", slide, "-o", tmp_path / "out", *OPTIONS, "--class-prefix", "a:") == 2
    assert "--class-prefix 'a:': QuPath splits classes at colons" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_slides_with_clusters_of_their_own_are_renamed_one_by_one(plain, names, tmp_path, capsys):
    out = shutil.copytree(plain, tmp_path / "out")
    other = json.loads((out / "small.json").read_text())
    other["codebook"]["hash"] = "0" * 64
    for path in list(out.glob("small.*")):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, out / f"b{path.name[len('small') :]}")
    (out / "b.json").write_text(json.dumps(other))
    before = read_all(out)
    assert fseg("names", out, names) == 2
    assert "its slides have clusters of their own" in capsys.readouterr().err and read_all(out) == before
    assert fseg("names", out, names, "--slide", "small") == 0
    changed = {name for name, data in read_all(out).items() if data != before[name]}
    assert changed == {
        *(f"small{suffix}" for suffix in (".json", ".geojson", ".png", ".csv")),
        "small.ome.zarr/labels/fseg/zarr.json",
    }
    assert fseg("names", out, names, "--slide", "none") == 2
    assert "holds no slide 'none'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("cluster,name\n4,a\n", "line 2: there is no cluster 4: {out} has 3"),
        ("cluster,name\n1,a\n2,a\n", "'a' is also the name on line 2"),
        ("cluster,name\n1,a: b\n", "holds a colon"),
        ("cluster,name\n1,\n", "no names, only a header or lines without one"),
        ("cluster,name,colour\n1,a,blue\n", "'blue' is no colour"),
        ("cluster\n1\n", "no column name"),
        ("cluster,name\n1,\udce9\n", "is not UTF-8"),
    ],
)
def test_a_mistake_renames_nothing(plain, tmp_path, content, says, capsys):
    out = shutil.copytree(plain, tmp_path / "out")
    before = read_all(out)
    path = tmp_path / "names.csv"
    path.write_text(content, errors="surrogateescape")
    assert fseg("names", out, path) == 2
    err = capsys.readouterr().err
    assert says.format(out=out) in err and err.count("\n") == 1 and read_all(out) == before


def test_outputs_that_cannot_be_renamed_are_one_line(plain, names, tmp_path, capsys):
    def says(damage, expected):
        out = shutil.copytree(plain, tmp_path / expected.replace("/", ""))
        damage(out)
        before = read_all(out)
        assert fseg("names", out, names) == 2
        err = capsys.readouterr().err
        assert expected in err and err.count("\n") == 1 and read_all(out) == before

    def edit_picture(out):
        Image.open(out / "small.png").save(out / "small.png")

    def age(out):
        record = json.loads((out / "small.json").read_text())
        (out / "small.json").write_text(json.dumps(record | {"format": 2}))

    says(edit_picture, "small.png: cannot be renamed, it does not hold what it was drawn from")
    says(
        lambda out: (out / "small.geojson").write_text("{"), "small.geojson: cannot be renamed, it is damaged"
    )
    says(lambda out: (out / "small.csv").unlink(), "small.csv: is gone")
    says(age, "small.json: made by another version")
    says(lambda out: (out / "small.json").write_text("{}"), "holds no segmented slides")
    assert fseg("names", tmp_path / "nowhere", names) == 2
    assert "nowhere: holds no segmented slides" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


def test_a_renaming_that_is_killed_leaves_either_and_the_next_one_completes_it(
    slide, plain, names, tmp_path, monkeypatch
):
    out = shutil.copytree(plain, tmp_path / "out")
    replaced = Path.replace
    moves = []

    def die(self, target):
        moves.append(target)
        if len(moves) == 4:
            raise KeyboardInterrupt
        return replaced(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        patch.setattr(partial_folders, "finish_exchange", lambda whole: None)
        with pytest.raises(SystemExit):
            cli.main(["names", str(out), str(names)])
    assert not (out / "small.json").exists()  # in between, nothing claims to be whole
    assert fseg("names", out, names) == 0
    assert fseg("segment", slide, "-o", tmp_path / "fresh", *OPTIONS, "--names", names) == 0
    assert {k: v for k, v in read_all(out).items() if not k.startswith(".")} == read_all(tmp_path / "fresh")
