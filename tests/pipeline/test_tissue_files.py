"""A slide's tissue alone: outlines that come back as they were, areas, a picture, one line for a mistake."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image
from scipy import ndimage
from skimage import draw

from fseg_jax.errors import InputError
from fseg_jax.pipeline.artefact_names import COLOURS, TISSUE_COLOUR
from fseg_jax.pipeline.tissue_files import list_tissue_paths, write_tissue_files
from fseg_jax.slides.artefacts import FOLD, INK, OUT_OF_FOCUS
from fseg_jax.slides.reader import Slide, open_slide
from fseg_jax.slides.tissue import find_tissue, load_tissue

MPP = 4.0
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])  # haematoxylin, eosin
SHAPE = (520, 640)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """A slide with two pieces, a lumen, a fold, a part out of focus and a stroke of a green pen."""
    random = np.random.default_rng(0)
    piece = np.zeros(SHAPE, bool)
    piece[draw.disk((240, 230), 180, shape=SHAPE)] = True
    piece[draw.disk((200, 320), 30, shape=SHAPE)] = False
    piece[draw.disk((430, 520), 60, shape=SHAPE)] = True
    texture = np.exp(ndimage.gaussian_filter(random.normal(size=(*SHAPE, 2)), (0.9, 0.9, 0)))
    density = np.array((0.08, 0.16)) * texture @ STAINS
    blurred = ndimage.gaussian_filter(density, (9, 9, 0))
    density[:, :150] = blurred[:, :150]
    density[280:292, 160:350] *= 2.4
    density *= piece[..., None]
    stroke = np.zeros(SHAPE)
    stroke[40:480, 590:616] = 1
    density += ndimage.gaussian_filter(stroke, 2)[..., None] * np.log10(243 / np.array([30, 140, 70]))
    image = 243 * 10**-density + random.normal(size=(*SHAPE, 3))
    path = tmp_path_factory.mktemp("slide") / "piece.png"
    Image.fromarray(image.round().clip(0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def slide(path: Path) -> Slide:
    return open_slide(path, MPP)


def test_everything_is_written_and_agrees(slide: Slide, tmp_path: Path) -> None:
    record = write_tissue_files(slide, tmp_path, mpp_override=MPP)
    paths = list_tissue_paths("piece", tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert json.loads(paths[0].read_text()) == record
    tissue = find_tissue(slide)
    assert tissue.artefacts is not None
    pixel = tissue.mpp**2 * 1e-6
    assert record["tissue_mm2"] == pytest.approx(tissue.mask.sum() * pixel, abs=1e-6)
    for name, kind in (("ink", INK), ("fold", FOLD), ("out_of_focus", OUT_OF_FOCUS)):
        area = (tissue.artefacts == kind).sum() * pixel
        assert area > 0 and record["artefacts_mm2"][name] == pytest.approx(area, abs=1e-6), name
    assert record["mpp_override"] == MPP and record["slide"]["mpp"] == MPP
    assert max(Image.open(paths[2]).size) > 900


def test_outlines_are_annotations_that_come_back_as_they_were(slide: Slide, tmp_path: Path) -> None:
    record = write_tissue_files(slide, tmp_path)
    content = json.loads((tmp_path / "piece.tissue.geojson").read_text())
    features = content["features"]
    assert len(features) == record["annotations"]
    names = [feature["properties"]["classification"]["name"] for feature in features]
    assert names == sorted(names, key=["Tissue", "Ink", "Fold", "Out of focus"].index)
    assert names.count("Tissue") == 2 and {"Ink", "Fold", "Out of focus"} < set(names)
    for feature in features:
        polygon = shapely.from_geojson(json.dumps(feature["geometry"]))
        assert polygon.is_valid and feature["properties"]["objectType"] == "annotation"
        assert len(feature["properties"]["classification"]["color"]) == 3
        assert polygon.area * MPP**2 == pytest.approx(
            feature["properties"]["measurements"]["Region area µm^2"], rel=1e-3
        )
    found, read = find_tissue(slide), load_tissue(tmp_path / "piece.tissue.geojson", slide)
    assert found.artefacts is not None and read.artefacts is not None
    ours, theirs = (tissue.crop(0, 0, *SHAPE, MPP) for tissue in (found, read))
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.99
    ours, theirs = (tissue.crop_artefacts(0, 0, *SHAPE, MPP) for tissue in (found, read))
    for kind in (INK, FOLD, OUT_OF_FOCUS):
        assert ((ours == kind) & (theirs == kind)).sum() / ((ours == kind) | (theirs == kind)).sum() > 0.9


def test_the_picture_outlines_what_was_found(slide: Slide, tmp_path: Path) -> None:
    write_tissue_files(slide, tmp_path)
    picture = np.asarray(Image.open(tmp_path / "piece.tissue.png")).astype(int)
    scale = 1500 / max(SHAPE)
    panel = picture[92 : 92 + round(SHAPE[0] * scale), 36 : 36 + 1500]
    for colour, at_least in ((TISSUE_COLOUR, 2000), (COLOURS[0], 500), (COLOURS[1], 300), (COLOURS[2], 300)):
        assert (np.abs(panel - np.asarray(colour)).max(axis=-1) < 12).sum() > at_least, colour
    # The tissue's outline lies on the border of the mask.
    drawn = np.argwhere(np.abs(panel - TISSUE_COLOUR).max(axis=-1) < 12) / scale
    mask = find_tissue(slide).crop(0, 0, *SHAPE, MPP)
    border = np.where(mask, ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask))
    assert np.percentile(border[tuple(drawn.astype(int).T)], 99) < 3


@pytest.mark.parametrize(
    ("colour", "says"),
    [((243, 243, 243), "no tissue found, and nothing"), ((50, 70, 170), "only ink on 100% of the slide")],
    ids=["glass", "ink"],
)
def test_a_slide_without_tissue_is_one_line(colour: tuple[int, int, int], says: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    noise = random.normal(size=(*SHAPE, 3))
    path = tmp_path / "empty.png"
    Image.fromarray((colour + noise).round().clip(0, 255).astype(np.uint8)).save(path)
    with open_slide(path, MPP) as slide, pytest.raises(InputError, match=says) as caught:
        write_tissue_files(slide, tmp_path / "out")
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_nothing_waits_for_jax() -> None:
    code = "import sys, fseg_jax.pipeline.tissue_files; print('jax' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
