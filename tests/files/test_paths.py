"""Paths that cannot be looked at, wherever one may be given: one line that names the path, exit code 2."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fseg_jax as fseg
from fseg_jax.cli import main
from fseg_jax.codebook import Codebook
from fseg_jax.errors import InputError, explain
from fseg_jax.files.paths import format_path, is_file, is_folder, is_there

pytestmark = pytest.mark.smoke

LONG = "x" * 300


@pytest.fixture
def circle(tmp_path) -> Path:
    """A link to a link to itself."""
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    return tmp_path / "a"


@pytest.fixture
def slide(tmp_path) -> Path:
    Image.fromarray(np.full((64, 64, 3), 150, np.uint8)).save(tmp_path / "slide.png")
    return tmp_path / "slide.png"


def said(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    assert end.value.code == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and "fault of the program" not in text and len(text) < 500
    return text


def test_nothing_a_file_and_a_folder(tmp_path, slide):
    assert is_there(slide) and is_file(str(slide)) and not is_folder(slide)
    assert is_there(tmp_path) and is_folder(tmp_path) and not is_file(tmp_path)
    for nothing in (tmp_path / "none", slide / "below a file"):
        assert not is_there(nothing) and not is_file(nothing) and not is_folder(nothing)


@pytest.mark.parametrize("look", [is_there, is_file, is_folder])
def test_what_cannot_be_looked_at_says_why(tmp_path, circle, look, monkeypatch):
    for path, why in (
        (tmp_path / LONG, "File name too long"),
        (circle, "Too many levels of symbolic links"),
        ("a\0b", "null"),
    ):
        with pytest.raises(InputError, match="cannot be looked at") as caught:
            look(path)
        assert why in str(caught.value) and str(caught.value).isprintable()
    assert len(format_path("x" * 5000)) < 300

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(InputError, match=r"secret: cannot be looked at \(Permission denied\)"):
        look("secret")


@pytest.mark.parametrize(
    "arguments",
    [
        ("segment", "{bad}", "-o", "{out}"),
        ("segment", "{slide}", "-o", "{bad}", "--mpp-override", "1"),
        ("segment", "{slide}", "-o", "{out}", "--mpp-override", "1", "--codebook", "{bad}"),
        ("cohort", "{bad}", "-o", "{out}"),
        ("cohort", "{bad}*", "-o", "{out}"),
        ("cohort", "{slide}", "-o", "{out}"),
        ("fit", "{bad}", "-o", "{out}.safetensors"),
        ("fit", "{folder}", "-o", "{bad}.safetensors"),
        ("embed", "{bad}", "-o", "{out}"),
        ("codebook", "show", "{bad}"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_every_argument_that_is_a_path(arguments, tmp_path, slide, capsys):
    given = {"bad": tmp_path / LONG, "slide": slide, "folder": tmp_path, "out": tmp_path / "out"}
    text = said(capsys, *(argument.format(**given) for argument in arguments))
    if not any("{bad}" in argument for argument in arguments):
        assert "slide.png: is a slide; a manifest is a CSV file, a folder or a glob" in text
    elif arguments[1] != "{bad}*":
        assert "File name too long" in text
    assert not (tmp_path / "out").exists()


def test_paths_in_python_that_cannot_be_looked_at(tmp_path):
    for call in (fseg.open_slide, Codebook.load):
        for path in (f"{tmp_path}/{LONG}", "a\0b"):
            with pytest.raises(InputError) as caught:
                call(path)
            assert "\n" not in str(caught.value)


def test_an_error_of_the_file_system_is_no_fault_of_the_program():
    assert explain(PermissionError(13, "Permission denied", "/archive/a.svs")) == (
        "/archive/a.svs: Permission denied"
    )


def test_a_folder_of_slides_in_place_of_a_slide_is_sent_to_where_folders_go(tmp_path, slide, capsys):
    text = said(capsys, "segment", tmp_path, "-o", tmp_path / "out")
    assert (
        "a folder that is no OME-Zarr" in text and "fseg cohort and fseg fit take folders of slides" in text
    )
