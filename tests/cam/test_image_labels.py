"""Labels from subfolders and from tables."""

import numpy as np
import pytest

from fseg_jax.cam.image_labels import read_labels
from fseg_jax.errors import InputError
from fseg_jax.outputs.csv_table import write_csv

pytestmark = pytest.mark.smoke


@pytest.fixture
def folder(tmp_path):
    for name in ("polyp/a.png", "normal/b.png", "unlabelled/c.png", "d.png", "Unlabeled/x/e.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "images"


def by_name(found):
    classes = {-1: None} | dict(enumerate(found.classes))
    return {found.name(p): classes[n] for p, n in zip(found.files, found.labels.tolist(), strict=True)}


def test_subfolders_are_labels(folder):
    found = read_labels(folder)
    assert found.classes == ("normal", "polyp") and not found.held_out.any()
    assert by_name(found) == {
        "polyp/a.png": "polyp",
        "normal/b.png": "normal",
        "unlabelled/c.png": None,
        "d.png": None,
        "Unlabeled/x/e.png": None,
    }
    assert read_labels(folder, positive="normal").classes == ("polyp", "normal")
    with pytest.raises(InputError, match="--positive cat: the labels are normal, polyp"):
        read_labels(folder, positive="cat")


def test_a_table_says_labels_and_what_is_set_aside(folder, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text(
        "\ufeffimage,source,label,held_out\npolyp/a.png,given,ill,\nd.png,,well,yes\nnormal/b.png,,,\n"
    )
    found = read_labels(folder, table)
    assert found.classes == ("ill", "well")
    assert by_name(found)["polyp/a.png"] == "ill" and by_name(found)["normal/b.png"] is None
    assert np.array(found.files)[found.held_out].tolist() == [folder / "d.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\n../secret.png,polyp\n", "which is no image in"),
        ("image,label\nd.png,a\nd.png,b\n", "twice"),
        ("file,class\nd.png,a\n", "no columns image and label"),
        (None, "cannot be read"),
        (b"\xff\xfe\x00", "not CSV in UTF-8"),
    ],
)
def test_a_table_that_cannot_be_is_one_line(folder, tmp_path, text, message):
    table = tmp_path / "labels.csv"
    if isinstance(text, str):
        table.write_text(text)
    elif text:
        table.write_bytes(text)
    with pytest.raises(InputError, match=message) as error:
        read_labels(folder, table)
    assert "\n" not in str(error.value)


def test_names_that_a_spreadsheet_would_run_come_back_from_the_table_that_is_written(tmp_path):
    rows: list[dict[str, object]] = [
        {"image": "=a.png", "label": "-polyp"},
        {"image": "'=b.png", "label": "+normal"},
        {"image": "c.png", "label": ""},
    ]
    for row in rows:
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / str(row["image"])).touch()
    write_csv(tmp_path / "labels.csv", ("image", "label"), rows)
    assert "'=a.png,'-polyp\n''=b.png,'+normal\n" in (tmp_path / "labels.csv").read_text()
    found = read_labels(tmp_path / "images", tmp_path / "labels.csv")
    assert by_name(found) == {str(row["image"]): row["label"] or None for row in rows}
