"""``fseg tissue``: files beside a segmentation, which takes them back; one line for each mistake."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from leica import write_leica
from PIL import Image
from skimage import data as pictures

from fseg_jax import cli


def fseg(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(a) for a in arguments])
    return exit_.value.code


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> Path:
    """A TIFF of 256 × 256 pixels at 1 µm, the lower third of it glass."""
    image = pictures.immunohistochemistry()[:256, :256].copy()
    image[170:] = 244
    path = tmp_path_factory.mktemp("slide") / "small.tif"
    resolution = {"resolution": (10000, 10000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, image, tile=(128, 128), **resolution)
    return path


@pytest.mark.smoke
def test_tissue_is_written_beside_a_segmentation_that_takes_it_back(slide, tmp_path, capsys):
    assert fseg("tissue", slide, "-o", tmp_path) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(tmp_path / "small.tissue.png") and err == ""
    record = json.loads((tmp_path / "small.tissue.json").read_text())
    assert record["tissue_mm2"] == pytest.approx(170 * 256e-6, rel=0.05)
    outlines = tmp_path / "small.tissue.geojson"
    segment = ("segment", slide, "-o", tmp_path, "--encoder", "classical", "--k", 2, "--tile", 128)
    assert fseg(*segment, "--tissue", outlines) == 0
    segmented = json.loads((tmp_path / "small.json").read_text())
    assert segmented["tissue_mm2"] == pytest.approx(record["tissue_mm2"], rel=0.03)
    assert segmented["parameters"]["tissue"] == str(outlines)
    assert len(list(tmp_path.iterdir())) == 8


def test_coordinates_count_from_the_scan_or_from_its_canvas(tmp_path, capsys):
    picture = pictures.immunohistochemistry()[:256, :256].copy()
    picture[200:] = 244
    write_leica(tmp_path / "a.scn", (800, 1000), [((300, 400), picture)])
    corners = []
    for frame in ("bounds", "canvas"):
        assert fseg("tissue", tmp_path / "a.scn", "-o", tmp_path / frame, "--frame", frame) == 0
        content = json.loads((tmp_path / frame / "a.tissue.geojson").read_text())
        points = [xy for f in content["features"] for xy in f["geometry"]["coordinates"][0]]
        corners.append(np.min(points, axis=0))
    assert np.abs(corners[1] - corners[0] - (400, 300)).max() <= 8  # a pixel of each mask
    outlines = tmp_path / "canvas" / "a.tissue.geojson"
    options = ("-o", tmp_path / "out", "--encoder", "classical", "--k", 2, "--tissue", outlines)
    assert fseg("segment", tmp_path / "a.scn", *options) == 2
    assert "give --frame canvas" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_one_outline_for_several_slides_is_said(slide, tmp_path, capsys):
    other, outlines = tmp_path / "other.tif", tmp_path / "small.tissue.geojson"
    other.write_bytes(slide.read_bytes())
    assert fseg("tissue", slide, "-o", tmp_path) == 0
    options = ("-o", tmp_path, "--encoder", "classical", "--k", 2, "--tile", 128, "--tissue", outlines)
    assert fseg("segment", slide, other, *options) == 0
    assert (
        f"--tissue: {outlines} is taken for all 2 slides; a manifest of fseg cohort"
        in capsys.readouterr().err
    )


def test_overwrite_and_the_resolution(slide, tmp_path, capsys):
    assert fseg("tissue", slide, "-o", tmp_path) == 0
    first = (tmp_path / "small.tissue.geojson").read_bytes()
    assert fseg("tissue", slide, "-o", tmp_path) == 2
    assert "small.tissue.png exists: choose another folder, or --overwrite" in capsys.readouterr().err
    assert fseg("tissue", slide, "-o", tmp_path, "--overwrite") == 0
    assert (tmp_path / "small.tissue.geojson").read_bytes() == first
    assert fseg("tissue", slide, "-o", tmp_path, "--overwrite", "--mpp-override", 2) == 0
    record = json.loads((tmp_path / "small.tissue.json").read_text())
    assert record["mpp_override"] == 2 and record["tissue_mm2"] == pytest.approx(4 * 170 * 256e-6, rel=0.05)


def test_a_slide_that_fails_does_not_stop_the_others(slide, tmp_path, capsys):
    (tmp_path / "text.svs").write_text("this is no slide\n" * 100)
    Image.fromarray(np.full((300, 300, 3), 244, np.uint8)).save(tmp_path / "glass.png")
    slides = (tmp_path / "text.svs", tmp_path / "glass.png", slide)
    assert fseg("tissue", *slides, "-o", tmp_path / "out", "--mpp-override", 1) == 2
    out, err = capsys.readouterr()
    assert out.strip() == str(tmp_path / "out" / "small.tissue.png")
    lines = err.strip().splitlines()
    assert len(lines) == 3 and "text.svs: " in lines[0] and "glass.png: no tissue found" in lines[1]
    assert lines[2] == "fseg: 2 of 3 slides failed"
    assert len(list((tmp_path / "out").iterdir())) == 3


SHADES = {"glass": (244, 244, 244), "ink": (50, 70, 170)}


@pytest.mark.parametrize("shade", SHADES)
@pytest.mark.parametrize("command", ["tissue", "segment"])
def test_a_slide_of_nothing_but_glass_or_ink_is_one_line(shade, command, tmp_path, capsys):
    image = SHADES[shade] + np.random.default_rng(0).normal(size=(300, 400, 3))
    Image.fromarray(image.round().clip(0, 255).astype(np.uint8)).save(tmp_path / "slide.png")
    arguments = (tmp_path / "slide.png", "-o", tmp_path / "out", "--mpp-override", 4)
    assert fseg(command, *arguments, *(("--encoder", "classical") if command == "segment" else ())) == 2
    out, err = capsys.readouterr()
    says = (
        "no tissue found, only ink on 100% of the slide" if shade == "ink" else "slide.png: no tissue found"
    )
    assert out == "" and err.count("\n") == 1 and says in err and "--tissue" in err
    assert not (tmp_path / "out").exists()


def test_a_slide_of_nothing_but_tissue_works(tmp_path):
    Image.fromarray(pictures.immunohistochemistry()).save(tmp_path / "slide.png")
    assert fseg("tissue", tmp_path / "slide.png", "-o", tmp_path, "--mpp-override", 1) == 0
    record = json.loads((tmp_path / "slide.tissue.json").read_text())
    assert record["tissue_share"] > 0.95 and record["annotations"] == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{folder}/none.svs"], "none.svs: no such file"),
        (["{slide}", "{slide}"], "several slides are called 'small'"),
        (["{slide}", "--mpp-override", "0"], "--mpp-override"),
        ([], "SLIDE"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(arguments, says, slide, tmp_path, capsys):
    given = [argument.format(slide=slide, folder=tmp_path) for argument in arguments]
    assert fseg("tissue", *given, "-o", tmp_path / "out") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and says in err
    assert not (tmp_path / "out").exists()
