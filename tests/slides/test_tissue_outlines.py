"""Outlines of tissue and artefacts in the shapes in which QuPath, TRIDENT, HEST and GrandQC write them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from fseg_jax.errors import InputError
from fseg_jax.slides.artefacts import FOLD, INK, OTHER, OUT_OF_FOCUS
from fseg_jax.slides.reader import Slide, open_slide
from fseg_jax.slides.tissue import find_tissue, load_tissue

Box = tuple[int, int, int, int]  # x, y, width, height in level-0 pixels
PIECE, HOLE, ISLAND, OTHER_PIECE = (
    (40, 40, 300, 200),
    (100, 80, 120, 80),
    (120, 100, 40, 30),
    (400, 60, 80, 100),
)
TRIDENT_CRS = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}}


@pytest.fixture
def slide(tmp_path: Path) -> Slide:
    """A slide of 512 × 384 pixels at 1 µm, all of it tissue."""
    path = tmp_path / "field.png"
    Image.fromarray(data.immunohistochemistry()[:384]).save(path)
    return open_slide(path, 1.0)


def make_ring(box: Box) -> list[list[float]]:
    x, y, w, h = box
    return [[x, y], [x + w, y], [x + w, y + h], [x, y + h], [x, y]]


def make_feature(*rings: Box, **properties: object) -> dict[str, object]:
    geometry = {"type": "Polygon", "coordinates": [make_ring(box) for box in rings]}
    return {"type": "Feature", "properties": properties, "geometry": geometry}


def make_collection(*features: dict[str, object], **more: object) -> dict[str, object]:
    return {"type": "FeatureCollection", **more, "features": list(features)}


def fill(*boxes: Box) -> np.ndarray:
    mask = np.zeros((384, 512), bool)
    for x, y, w, h in boxes:
        mask[y : y + h, x : x + w] = True
    return mask


def load(content: object, slide: Slide, tmp_path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Load tissue and the kinds of artefacts at 1 µm."""
    path = tmp_path / "outlines.geojson"
    path.write_text(json.dumps(content), "utf-8")
    tissue = load_tissue(path, slide)
    mask = tissue.crop(0, 0, 384, 512, 1.0)
    return mask, None if tissue.artefacts is None else tissue.crop_artefacts(0, 0, 384, 512, 1.0)


def test_tridents_contours(slide: Slide, tmp_path: Path) -> None:
    content = make_collection(
        make_feature(PIECE, HOLE, tissue_id=0),
        make_feature(ISLAND, tissue_id=1),
        make_feature(OTHER_PIECE, tissue_id=2),
        name="field",
        crs=TRIDENT_CRS,
    )
    mask, artefacts = load(content, slide, tmp_path)
    np.testing.assert_array_equal(mask, (fill(PIECE, OTHER_PIECE) & ~fill(HOLE)) | fill(ISLAND))
    assert artefacts is None  # nobody has looked for them


@pytest.mark.parametrize("shape", ["multipolygons", "rows"])
def test_hests_earlier_contours_have_holes_beside_their_tissue(
    shape: str, slide: Slide, tmp_path: Path
) -> None:
    """The hole of a piece is none of the island in it, whichever comes first."""
    if shape == "multipolygons":

        def make_piece(name: str, boxes: list[Box], holes: list[int]) -> dict[str, object]:
            geometry = {"type": "MultiPolygon", "coordinates": [[make_ring(box)] for box in boxes]}
            properties = {
                "objectType": "annotation",
                "classification": {"name": name, "color": [255, 0, 0]},
                "hole": holes,
            }
            return {"type": "Feature", "id": name, "geometry": geometry, "properties": properties}

        content: object = [
            make_piece("0", [ISLAND], []),
            make_piece("1", [PIECE, HOLE], [1]),
            make_piece("2", [OTHER_PIECE], []),
        ]
    else:
        content = make_collection(
            make_feature(ISLAND, tissue_id=0, hole=False),
            make_feature(PIECE, tissue_id=1, hole=False),
            make_feature(OTHER_PIECE, tissue_id=2, hole=False),
            make_feature(HOLE, tissue_id=1, hole=True),
        )
    mask, _ = load(content, slide, tmp_path)
    np.testing.assert_array_equal(mask, (fill(PIECE, OTHER_PIECE) & ~fill(HOLE)) | fill(ISLAND))


GRANDQC = {
    "Fold": FOLD,
    "Darkspot & Foreign Object": OTHER,
    "PenMarking": INK,
    "Edge & Air Bubble": OTHER,
    "OOF": OUT_OF_FOCUS,
}


def test_grandqcs_artefacts_are_marked_on_tissue_that_is_found(slide: Slide, tmp_path: Path) -> None:
    boxes = {name: (20 + 90 * i, 40, 60, 50) for i, name in enumerate(GRANDQC)}
    features = (
        make_feature(box, class_id=i, classification=name, area=3000.0)
        for i, (name, box) in enumerate(boxes.items(), 2)
    )
    classes = {str(i): name for i, name in enumerate(GRANDQC, 2)} | {"1": "Normal Tissue", "7": "Background"}
    content = make_collection(*features, metadata={"class_mapping": classes, "scale_factor": 3.0})
    mask, artefacts = load(content, slide, tmp_path)
    np.testing.assert_array_equal(mask, find_tissue(slide).crop(0, 0, 384, 512, 1.0))
    assert artefacts is not None
    for name, box in boxes.items():
        x, y, w, h = box
        assert (artefacts[y + 2 : y + h - 2, x + 2 : x + w - 2] == GRANDQC[name]).all(), name
    assert (artefacts > 0).sum() == pytest.approx(5 * 60 * 50, rel=0.1)


def test_a_file_of_grandqc_without_artefacts_marks_none(slide: Slide, tmp_path: Path) -> None:
    content = make_collection(metadata={"class_mapping": {"2": "Fold"}, "scale_factor": 3.0})
    mask, artefacts = load(content, slide, tmp_path)
    np.testing.assert_array_equal(mask, find_tissue(slide).crop(0, 0, 384, 512, 1.0))
    assert artefacts is not None and not artefacts.any()


def test_classes_that_are_no_tissue_are_not_taken_as_tissue(slide: Slide, tmp_path: Path) -> None:
    inside, beside = (60, 60, 40, 30), (400, 300, 60, 50)
    content = make_collection(
        make_feature(PIECE, classification="Normal Tissue"),
        make_feature((0, 0, 512, 384), classification="Background"),
        make_feature(inside, classification="Fold"),
        make_feature(beside, classification="OOF"),
    )
    mask, artefacts = load(content, slide, tmp_path)
    np.testing.assert_array_equal(mask, fill(PIECE))
    assert artefacts is not None
    np.testing.assert_array_equal(artefacts == FOLD, fill(inside))
    np.testing.assert_array_equal(artefacts == OUT_OF_FOCUS, fill(beside))


@pytest.mark.parametrize("name", ["Ink", "Pen-marking", "pen_mark", "PenMarking", "Fold", "Out of focus"])
@pytest.mark.parametrize("written", ["object", "text"])
def test_qupaths_annotations(name: str, written: str, slide: Slide, tmp_path: Path) -> None:
    classification: object = {"name": name, "color": [1, 2, 3]} if written == "object" else name
    content = [
        make_feature(PIECE, objectType="annotation", classification={"name": "Tumor", "color": [9, 9, 9]}),
        make_feature(OTHER_PIECE, objectType="annotation"),  # no class
        make_feature((60, 60, 40, 30), objectType="annotation", classification=classification),
        make_feature((400, 300, 60, 50), objectType="annotation", classification={"name": "Ignore*"}),
        make_feature((10, 300, 60, 50), objectType="tmaCore", isMissing=True),
    ]
    mask, artefacts = load(content, slide, tmp_path)
    np.testing.assert_array_equal(mask, fill(PIECE, OTHER_PIECE))
    assert artefacts is not None
    np.testing.assert_array_equal(artefacts > 0, fill((60, 60, 40, 30)))


def test_where_artefacts_overlap_the_first_kind_counts(slide: Slide, tmp_path: Path) -> None:
    content = make_collection(
        make_feature(PIECE),
        make_feature((60, 60, 60, 60), classification="Ink"),
        make_feature((90, 60, 60, 60), classification="Fold"),
    )
    _, artefacts = load(content, slide, tmp_path)
    assert artefacts is not None
    np.testing.assert_array_equal(artefacts == INK, fill((60, 60, 60, 60)))
    np.testing.assert_array_equal(artefacts == FOLD, fill((120, 60, 30, 60)))


def test_a_file_whose_outlines_are_no_tissue_and_no_artefact_is_an_error(
    slide: Slide, tmp_path: Path
) -> None:
    content = make_collection(make_feature(PIECE, classification="Background"))
    with pytest.raises(InputError, match=r"outlines\.geojson: .* no Polygon"):
        load(content, slide, tmp_path)
