"""Names for clusters, as a user gives them: in every output, read by what is not ours."""

import csv
import json
from pathlib import Path

import pytest
import tifffile
import zarr
from skimage import data as pictures

from fseg_jax import cli

NAMES = "cluster,name,colour\n1,tumour nests,#ff0010\n3,Stroma,\n"


def fseg(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(a) for a in arguments])
    return exit_.value.code


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> Path:
    """Write a TIFF of 256 × 256 pixels at 1 µm."""
    path = tmp_path_factory.mktemp("slide") / "small.tif"
    resolution = {"resolution": (10000, 10000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pictures.immunohistochemistry()[:256, :256], tile=(128, 128), **resolution)
    return path


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
    label = zarr.open_group(tmp_path / "small.ome.zarr", mode="r").attrs["ome"]["image-label"]
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
