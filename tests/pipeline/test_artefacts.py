"""Artefacts in a slide's outputs: their label image, their areas, and what is fitted and labelled without."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image
from skimage import data as pictures

from fseg_jax import open_slide
from fseg_jax.encoders.classical import classical
from fseg_jax.errors import InputError
from fseg_jax.outputs.form import OutputForm
from fseg_jax.outputs.labels import open_labels
from fseg_jax.pipeline.artefact_names import COLOURS, NAMES
from fseg_jax.pipeline.plan import Settings
from fseg_jax.pipeline.segment import segment_slide

ENCODER = classical()
FOLD, INK = (96, 64, 160, 96), (352, 208, 64, 64)  # x, y, width, height; the ink lies beside the tissue
TISSUE = (0, 0, 320, 384)


def outline(box: tuple[int, int, int, int], name: str) -> dict[str, object]:
    x, y, w, h = box
    ring = [[x, y], [x + w, y], [x + w, y + h], [x, y + h], [x, y]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "annotation", "classification": {"name": name}},
    }


def fill(box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((384, 512), bool)
    x, y, w, h = box
    mask[y : y + h, x : x + w] = True
    return mask


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "tissue.png"
    Image.fromarray(pictures.immunohistochemistry()[:384]).save(path)
    return path


@pytest.fixture(scope="module")
def settings(picture) -> Settings:
    path = picture.with_name("outlines.geojson")
    path.write_text(json.dumps([outline(TISSUE, "Tissue"), outline(FOLD, "Fold"), outline(INK, "Ink")]))
    return Settings(k=3, tile=128, batch=4, tissue=str(path))


def run(picture: Path, out: Path, settings: Settings, **options):
    with open_slide(picture, 1.0) as slide:
        record = segment_slide(slide, out, ENCODER, None, settings, **options)
    return record, open_labels(out / "tissue.ome.zarr").read(0)


def test_artefacts_are_a_second_label_image_beside_the_clusters(picture, settings, tmp_path):
    record, labels = run(picture, tmp_path, settings)
    group = zarr.open_group(tmp_path / "tissue.ome.zarr", mode="r")
    assert group["labels"].attrs["ome"] == {"version": "0.5", "labels": ["fseg", "artefacts"]}
    image = group["labels/artefacts"]
    assert len(list(image.arrays())) == len(list(group.arrays())) == len(list(group["labels/fseg"].arrays()))
    expected = np.where(fill(FOLD), 2, np.where(fill(INK), 1, 0))
    np.testing.assert_array_equal(image["0"][:], expected)
    label = image.attrs["ome"]["image-label"]
    assert [each["class"] for each in label["properties"]] == ["background", *NAMES]
    assert [each["rgba"][:3] for each in label["colors"]][1:] == COLOURS.tolist()
    assert record["artefacts_mm2"] == {
        "ink": pytest.approx(64 * 64e-6),
        "fold": pytest.approx(160 * 96e-6),
        "out_of_focus": 0,
        "other": 0,
    }
    assert record["parameters"]["artefacts"] == "keep"
    assert (labels[fill(FOLD)] > 0).all() and not labels[~fill(TISSUE)].any()


def test_other_programs_read_both_label_images(picture, settings, tmp_path):
    pytest.importorskip("ome_zarr")
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    run(picture, tmp_path / "image", settings)
    root = tmp_path / "image" / "tissue.ome.zarr"
    nodes = {str(node.zarr.basename()): node for node in Reader(parse_url(root))()}
    image, clusters, marked = nodes["tissue.ome.zarr"], nodes["fseg"], nodes["artefacts"]
    assert [level.shape for level in marked.data] == [level.shape for level in clusters.data]
    assert len(image.data) == len(clusters.data) and image.data[0].shape[0] == 3
    assert marked.metadata["properties"][2]["class"] == "Fold"
    run(picture, tmp_path / "alone", settings, form=OutputForm(image=False))
    nodes = {
        str(node.zarr.basename()): node
        for node in Reader(parse_url(tmp_path / "alone" / "tissue.ome.zarr"))()
    }
    assert nodes.keys() == {"tissue.ome.zarr", "labels", "artefacts"}


def test_dropped_artefacts_have_no_labels_and_change_no_others_far_from_them(picture, settings, tmp_path):
    _, kept = run(picture, tmp_path / "keep", settings)
    record, dropped = run(picture, tmp_path / "drop", replace(settings, artefacts="drop"))
    assert record["parameters"]["artefacts"] == "drop" and record["artefacts_mm2"]["fold"] > 0
    inner, outer = np.zeros((2, 384, 512), bool)
    x, y, w, h = FOLD
    inner[y + 1 : y + h - 1, x + 1 : x + w - 1] = True
    outer[y - 60 : y + h + 60, x - 60 : x + w + 60] = True
    assert not dropped[inner].any()
    assert (dropped != kept)[~outer].mean() < 1e-3  # where two clusters tie
    tissue = (fill(TISSUE) & ~fill(FOLD)).sum() * 1e-6
    assert record["tissue_mm2"] == pytest.approx(tissue, rel=0.01)


def test_no_centre_is_fitted_on_artefacts(picture, settings, tmp_path):
    """A fold in a colour of its own, which would have a cluster of its own, has none."""
    image = np.asarray(Image.open(picture)).copy()
    image[fill(FOLD)] = (20, 90, 60)
    Image.fromarray(image).save(tmp_path / "tissue.png")
    own = replace(settings, mixtures=0)
    record, labels = run(tmp_path / "tissue.png", tmp_path / "out", own)
    outlines = json.loads(Path(settings.tissue).read_text())
    (tmp_path / "bare.geojson").write_text(json.dumps(outlines[:1]))
    bare_record, bare = run(
        tmp_path / "tissue.png", tmp_path / "bare", replace(own, tissue=str(tmp_path / "bare.geojson"))
    )
    assert record["codebook"]["source"] == f"tissue.png itself, {20 * 24 - 10 * 6} tokens"
    assert bare_record["codebook"]["source"] == f"tissue.png itself, {20 * 24} tokens"
    assert bare_record["artefacts_mm2"] is None  # nobody has looked for them
    assert not (tmp_path / "bare" / "tissue.ome.zarr" / "labels" / "artefacts").exists()
    shares = [
        max((fill(FOLD) & (found == j)).sum() / max((found == j).sum(), 1) for j in (1, 2, 3))
        for found in (labels, bare)
    ]
    assert shares[0] < 0.6 and shares[1] > 0.8


def test_artefacts_do_not_depend_on_tiles_or_batch(picture, settings, tmp_path):
    run(picture, tmp_path / "a", settings)
    run(picture, tmp_path / "b", replace(settings, tile=256, batch=1, threads=1))
    first, second = (
        open_labels(tmp_path / name / "tissue.ome.zarr" / "labels" / "artefacts") for name in ("a", "b")
    )
    for level in range(len(first.levels)):
        np.testing.assert_array_equal(first.read(level), second.read(level))


def test_a_slide_that_is_all_artefact_is_one_line(picture, settings, tmp_path):
    path = tmp_path / "all.geojson"
    path.write_text(json.dumps([outline(TISSUE, "Tissue"), outline((0, 0, 512, 384), "Fold")]))
    everything = replace(settings, tissue=str(path))
    expected = r"--k 3: tissue\.png has 0 tokens of tissue without artefacts .*only --codebook labels that$"
    with pytest.raises(InputError, match=expected):
        run(picture, tmp_path / "out", everything)
    with pytest.raises(InputError, match=r"tissue\.png: all of its tissue is ink, folded or out of focus"):
        run(picture, tmp_path / "out", replace(everything, artefacts="drop"))
    assert not (tmp_path / "out").exists()
