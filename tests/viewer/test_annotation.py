"""Annotations, their undo history, and their file, which other programs read."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fseg_jax.errors import InputError
from fseg_jax.outputs.labels import LabelWriter, open_labels
from fseg_jax.pipeline.seed_file import read_seeds
from fseg_jax.pipeline.slide_facts import SlideFacts
from fseg_jax.viewer.annotation import (
    Annotation,
    History,
    Seed,
    check_classes,
    read_annotation,
    write_annotation,
)
from fseg_jax.viewer.session import check_labels

pytestmark = pytest.mark.smoke

SLIDE = SlideFacts("a.scn", None, "openslide/leica", 400, 300, 0.5, "bounds", 8000, 6000)
TWO = Annotation(("stroma", "Crypt"), (Seed(10.5, 20.25, 1), Seed(300.0, 60.0, 0), Seed(1.0, 2.0, 1)))


def test_what_is_saved_is_what_fseg_seed_and_qupath_read(tmp_path):
    write_annotation(tmp_path / "a.geojson", TWO, SLIDE)
    points, given_, names, _ = read_seeds(tmp_path / "a.geojson")
    assert points.tolist() == [[10.5, 20.25], [300, 60], [1, 2]] and given_.tolist() == [1, 0, 1]
    assert names == TWO.classes and read_annotation(tmp_path / "a.geojson") == TWO
    for feature in json.loads((tmp_path / "a.geojson").read_text())["features"]:  # QuPath's GsonTools
        assert feature["type"] == "Feature" and feature["geometry"]["type"] == "Point"
        assert feature["properties"]["objectType"] == "annotation"
        assert len(feature["properties"]["classification"]["color"]) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.geojson"]


def test_seeds_say_what_they_count_from_and_are_refused_on_a_slide_that_counts_from_elsewhere(tmp_path):
    path = tmp_path / "a.geojson"
    write_annotation(path, TWO, SLIDE)
    content = json.loads(path.read_text())
    assert content["fseg"] == {
        "classes": ["stroma", "Crypt"],
        "frame": "bounds",
        "frame_x": 8000,
        "frame_y": 6000,
    }
    assert read_annotation(path, slide=SLIDE) == TWO
    canvas = replace(SLIDE, frame="canvas", frame_x=0, frame_y=0)
    with pytest.raises(InputError, match=r"a\.geojson: .* x = 8000, y = 6000 .* --frame bounds"):
        read_annotation(path, slide=canvas)
    del content["fseg"]  # another program's: it does not say
    path.write_text(json.dumps(content))
    assert read_annotation(path, slide=canvas).seeds


def test_classes_without_seeds_are_kept(tmp_path):
    write_annotation(tmp_path / "a.geojson", Annotation(("a", "b", "c")), SLIDE)
    assert read_annotation(tmp_path / "a.geojson") == Annotation(("a", "b", "c"))


def test_a_file_that_states_no_classes_is_of_those_expected(tmp_path):
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}}
    (tmp_path / "a.geojson").write_text(json.dumps([point | {"properties": {"class": "B"}}]))
    assert read_annotation(tmp_path / "a.geojson", ("a", "b")) == Annotation(("a", "b"), (Seed(1.0, 2.0, 1),))
    assert read_annotation(tmp_path / "a.geojson", ("c", "d")).classes == ("negative", "B")  # its own


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "3",
        '{"fseg": 3, "features": []}',
        '{"type": "FeatureCollection"}',
        '{"classes": ["a,b", "c"], "seeds": []}',
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, text):
    (tmp_path / "a.geojson").write_text(text)
    with pytest.raises(InputError, match=r"a\.geojson") as caught:
        read_annotation(tmp_path / "a.geojson")
    assert "\n" not in str(caught.value)


def test_classes_are_renamed_added_and_removed():
    three = TWO.add_class().rename_class(2, "  glass \n slide ")
    assert three.classes == ("stroma", "Crypt", "glass slide")
    assert three.remove_class(0) == Annotation(
        ("Crypt", "glass slide"), (Seed(10.5, 20.25, 0), Seed(1.0, 2.0, 0))
    )
    for act, says in (
        (lambda: TWO.remove_class(0), "fewest"),
        (lambda: TWO.rename_class(0, "crypt"), "two classes are called"),
        (lambda: TWO.rename_class(0, " "), "no class's name"),
        (lambda: TWO.rename_class(0, "a,b"), "no comma"),
        (lambda: TWO.rename_class(0, "a\ud800"), "no class's name"),
        (lambda: TWO.rename_class(0, "a\0"), "no class's name"),
        (lambda: TWO.rename_class(0, "a" * 41), "1 to 40 letters"),
        (lambda: TWO.rename_class(2, "a"), "removed just now"),
        (lambda: TWO.add_seeds((Seed(1.0, 1.0, 2),)), "removed just now"),
        (lambda: check_classes(tuple("abcdefghij")), "10 classes: choose 2 to 9"),
    ):
        with pytest.raises(InputError, match=says):
            act()
    nine = TWO
    for _ in range(7):
        nine = nine.add_class()
    assert check_classes(nine.classes) == nine.classes
    with pytest.raises(InputError, match="the most"):
        nine.add_class()


def test_a_class_is_found_again_by_its_name():
    three = Annotation(("a", "b", "c"))
    assert [three.remove_class(0).find_class(j, three) for j in range(3)] == [None, 0, 1]
    assert [three.rename_class(1, "d").find_class(j, three) for j in range(3)] == [0, 1, 2]
    assert [three.add_class().find_class(j, three) for j in range(3)] == [0, 1, 2]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["do", "undo", "redo"]), max_size=40))
def test_undo_and_redo_are_an_editors(steps):
    """Compare the history with two stacks."""
    history, past, present, future = History(0), [], 0, []
    histories = [history]
    for i, step in enumerate(steps, 1):
        if step == "do":
            history = history.do(i)
            past, present, future = [*past, present], i, []
        elif step == "undo":
            history = history.undo()
            if past:
                past, present, future = past[:-1], past[-1], [present, *future]
        else:
            history = history.redo()
            if future:
                past, present, future = [*past, present], future[0], future[1:]
        assert (history.present, list(history.past), list(history.future)) == (present, past, future)
        histories.append(history)
    assert histories[0] == History(0)  # a step changes no history, it gives another


def test_labels_of_another_image_of_the_file_are_refused(tmp_path):
    writer = LabelWriter(
        tmp_path / "a.ome.zarr", (4, 4), 0.5, 1, names=None, colours=np.zeros((1, 3), np.uint8),
        provenance={"slide": replace(SLIDE, series=0).to_json()},
    )  # fmt: skip
    writer.append(np.ones((4, 4), np.uint8))
    writer.close()
    labels = open_labels(tmp_path / "a.ome.zarr")
    check_labels(labels, replace(SLIDE, series=0))
    with pytest.raises(InputError, match="different images of the file"):
        check_labels(labels, replace(SLIDE, series=1))
