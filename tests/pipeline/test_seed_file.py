"""Reading files of seeds: every kind there is, and what is refused."""

import json
from pathlib import Path

import pytest

from fseg_jax.errors import InputError
from fseg_jax.pipeline.clicks import seed_slide
from fseg_jax.pipeline.seed_file import read_seeds

pytestmark = pytest.mark.smoke

SEED = {"x": 300, "y": 60, "class": "c0"}


def feature(geometry, coordinates, classification):
    return {
        "type": "Feature",
        "geometry": {"type": geometry, "coordinates": coordinates},
        "properties": {"objectType": "annotation", "classification": classification},
    }


QUPATH = [
    feature("MultiPoint", [[1.5, 2], [3, 4]], {"name": "Positive", "color": [250, 62, 62]}),
    feature("Point", [5, 6], {"name": "Negative", "color": [112, 112, 225]}),
]


@pytest.mark.parametrize("content", [QUPATH, {"type": "FeatureCollection", "features": QUPATH}])
def test_qupath_points_are_seeds(tmp_path, content):
    (tmp_path / "a.geojson").write_text(json.dumps(content), encoding="utf-8-sig")
    points, classes, names, _ = read_seeds(tmp_path / "a.geojson")
    assert points.tolist() == [[1.5, 2], [3, 4], [5, 6]] and classes.tolist() == [1, 1, 0]
    assert names == ("negative", "positive")
    assert read_seeds(tmp_path / "a.geojson", ("Positive", "Negative"))[1].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON"),
        ("[]", "holds no seeds"),
        ("3", "not a file of seeds"),
        ('{"seeds": [{"x": 1, "class": "positive"}]}', "each needs x, y and class"),
        ('{"seeds": [{"x": "a", "y": 1, "class": "positive"}]}', "not a file of seeds"),
        (
            '{"classes": ["a", "b"], "seeds": [{"x": 1, "y": 2, "class": "Tumor"}]}',
            "x = 1, y = 2 is of class 'Tumor'; there are a, b",
        ),
        ('{"classes": ["a", "A"], "seeds": [{"x": 1, "y": 2, "class": "a"}]}', "two classes are called 'A'"),
        ('{"classes": ["a", ""], "seeds": [{"x": 1, "y": 2, "class": "a"}]}', "'' is no class's name"),
        ('{"classes": ["a", {}], "seeds": [{"x": 1, "y": 2, "class": "a"}]}', "{} is no class's name"),
        ('{"seeds": [{"x": 1, "y": 2, "class": "a\\u0000b"}]}', "no class's name"),
        ('{"seeds": [{"x": 1, "y": 2, "class": "\\ud800"}]}', r"'\\ud800' is no class's name"),
        ('{"seeds": [{"x": 1, "y": 2, "class": true}]}', "True is no class's name"),
        (json.dumps({"classes": [f"c{i}" for i in range(256)], "seeds": [SEED]}), "256 classes"),
        ('{"classes": ["a"], "seeds": [{"x": 1, "y": 2, "class": "a"}]}', "at least two"),
        ('{"fseg": 3, "features": [], "type": "FeatureCollection"}', "not a file of seeds"),
        ('{"fseg": {"classes": 3}, "features": [], "type": "FeatureCollection"}', "classes are no list"),
        (
            json.dumps(feature("Polygon", [[[0, 0], [1, 0], [1, 1], [0, 0]]], {"name": "Positive"})),
            "a Polygon",
        ),
        (json.dumps(feature("Point", [1, 2], None)), "y = 2 has no class"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[" * 900 + "]" * 900, "not a file of seeds"),
        ('{"type": "FeatureCollection", "features": [' * 400 + "]}" * 400, "not a file of seeds"),
        ('{"seeds": [{"x": 1' + "0" * 5000 + ', "y": 2, "class": "a"}]}', "not valid JSON"),
        ('{"seeds": [{"x": 1' + "0" * 400 + ', "y": 2, "class": "a"}]}', "a coordinate is too large"),
        ('{"seeds": [{"x": "12", "y": 2, "class": "a"}]}', "'12' is no coordinate"),
        ('{"seeds": [{"x": true, "y": 2, "class": "a"}]}', "True is no coordinate"),
        ('{"seeds": {"x": 1, "y": 2, "class": "a"}}', "not a file of seeds"),
        ('{"type": "FeatureCollection", "features": 3}', "not a file of seeds"),
        ('{"type": "Feature", "geometry": null}', "not a file of seeds"),
        (json.dumps(feature("Point", ["1", "2"], {"name": "a"})), "'1' is no coordinate"),
        (json.dumps(feature("Point", [1], {"name": "a"})), "not a file of seeds"),
        (json.dumps(feature("Point", {"x": 1}, {"name": "a"})), "not a file of seeds"),
        (json.dumps(feature("Point", [1, 2], ["a"])), "is no class's name"),
        (json.dumps(feature("Point", [1, 2], {"name": None})), "y = 2 has no class"),
        ('{"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}}', "has no class"),
        ('{"seeds": [{"x": 1e308, "y": -1e308, "class": "positive"}]}', "outside the slide"),
        ('{"seeds": [{"x": Infinity, "y": 1, "class": "positive"}]}', "outside the slide"),
        ('{"seeds": [{"x": 512, "y": 2, "class": "positive"}]}', "outside the slide, 512 × 384 pixels"),
        ('{"seeds": [{"x": NaN, "y": 2, "class": "positive"}]}', "outside the slide"),
        ('{"seeds": [{"x": 100, "y": 290, "class": "positive"}]}', "on no embedded patch"),
    ],
)
def test_bad_seeds_are_refused_in_one_line(folder, tmp_path, text, says):
    path = tmp_path / "seeds.json"
    path.write_text(text)
    before = sorted(folder.iterdir())
    with pytest.raises(InputError, match=says) as caught:
        seed_slide(folder, path, overwrite=True)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert str(path) in str(caught.value) and sorted(folder.iterdir()) == before


def test_files_that_are_no_text_are_refused_in_one_line(folder, tmp_path):
    path = tmp_path / "seeds.json"
    path.write_bytes(b'{"seeds": [{"x": 1, "y": 2, "class": "\xe4"}]}')
    with pytest.raises(InputError, match="not UTF-8"):
        seed_slide(folder, path, overwrite=True)
    with path.open("wb") as file:
        file.truncate(80 << 20)
    with pytest.raises(InputError, match="80 MB, and a file of seeds has 64 at most"):
        seed_slide(folder, path, overwrite=True)
    with pytest.raises(InputError, match="cannot be read"):
        seed_slide(folder, tmp_path, overwrite=True)
    with pytest.raises(InputError, match="cannot be read"):
        seed_slide(folder, Path("a\0b"), overwrite=True)


@pytest.mark.parametrize(
    ("given", "classes"),
    [
        (["Tumour", "stroma", "tumour"], ["Tumour", "stroma"]),
        (["tumour", "Background", "glass  slide"], ["Background", "tumour", "glass slide"]),
        (["tumour", "negative"], ["negative", "tumour"]),
        (["tumour"], ["negative", "tumour"]),
        (["background"], ["background", "positive"]),
        (["Positive"], ["negative", "positive"]),
        (["POSITIVE", "Negative"], ["negative", "positive"]),
        ([1, 2], ["1", "2"]),
    ],
)
def test_a_file_that_does_not_say_its_classes_has_those_of_its_seeds(tmp_path, given, classes):
    """As they first appear, the background's first."""
    path = tmp_path / "seeds.json"
    path.write_text(json.dumps({"seeds": [{"x": 1, "y": 2, "class": c} for c in given]}))
    points, numbers, names, _ = read_seeds(path)
    squeezed = [" ".join(str(c).split()).lower() for c in given]
    assert list(names) == classes and [names[j].lower() for j in numbers] == squeezed
    assert len(points) == len(given)
    with pytest.raises(InputError, match=r"of class .*; there are a, b: name others with --classes"):
        read_seeds(path, ("a", "b"))
