"""Segmenting an embedded slide from seeds: what is written, and what is refused."""

import csv
import json
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import shapely
from embedded import ENCODER, SETTINGS, embed
from leica import write_leica

from fseg_jax import open_slide
from fseg_jax.errors import InputError
from fseg_jax.outputs.embeddings import open_embeddings
from fseg_jax.outputs.labels import open_labels
from fseg_jax.pipeline.clicks import SeedSettings, assign_seeds, seed_slide
from fseg_jax.pipeline.embed import PatchSettings, embed_slide, list_embedding_paths
from fseg_jax.pipeline.segment import output_paths
from fseg_jax.slides.identity import identify


@pytest.mark.smoke
def test_everything_is_written_and_agrees(folder, seeds):
    chosen = SeedSettings(hard=True, smooth=True, distance="cosine")
    record = seed_slide(folder, seeds, chosen, overwrite=True)
    assert all(path.exists() for path in output_paths("tissue.sic", folder))
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]
    assert json.loads((folder / "tissue.sic.json").read_text()) == record
    pyramid = open_labels(folder / "tissue.sic.ome.zarr")
    labels = pyramid.levels[0].read().result()
    assert pyramid.names == ("stroma", "crypt") and labels.shape == (384, 512)
    assert labels[60, 300] == 1 and labels[150, 100] == 2 and (labels[280:310] == 0).all()
    counts = np.bincount(labels.ravel(), minlength=3)[1:]
    with (folder / "tissue.sic.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["pixels"]) for row in rows] == counts.tolist()
    # Patches of 64 µm lie 32 µm apart, so that one adds 0.001024 mm².
    assert record["area_step_mm2"] == 32**2 * 1e-6
    assert list(record["areas_mm2"].values()) == [round(count * 1e-6, 3) for count in counts.tolist()]
    assert [row["area_mm2"] for row in rows] == [f"{count * 1e-6:.3f}" for count in counts.tolist()]
    assert "agreement with the clicks themselves" in record["score_of"] and "held out" in record["score_of"]
    outlines = json.loads((folder / "tissue.sic.geojson").read_text())
    assert {f["properties"]["name"] for f in outlines["features"]} == {"stroma", "crypt"}
    assert record["seeds"]["points"] == {"stroma": 1, "crypt": 1} and record["score"] == 1
    assert sum(record["patches"].values()) == record["embeddings"]["patches"]


def test_the_slide_is_not_needed_and_results_repeat(picture, tmp_path, seeds, caplog):
    moved = tmp_path / "moved.png"
    moved.write_bytes(picture.read_bytes())
    record = embed(moved, tmp_path / "out")
    assert record["slide"]["identity"] == identify(picture)
    seed_slide(tmp_path / "out", seeds, slide="moved")
    assert not caplog.messages
    moved.write_bytes(b"another slide")
    seed_slide(tmp_path / "out", seeds, slide="moved", overwrite=True)
    assert caplog.messages == [
        f"{moved}: is another slide than the one that was embedded, which is what is segmented here; "
        "fseg embed it again"
    ]
    moved.unlink()
    first, second = (
        seed_slide(tmp_path / "out", seeds, slide="moved", metric=metric, overwrite=True)
        for metric in (None, lambda y, labels: (y == labels).mean())
    )
    assert first["areas_mm2"] == second["areas_mm2"]
    assert first["parameters"]["metric"] == "f1" and second["parameters"]["metric"] == "<lambda>"


def test_anndata_carries_the_labels(picture, tmp_path, seeds):
    anndata = pytest.importorskip("anndata")
    embed(picture, tmp_path / "out", anndata=True, h5=True)
    assert all(path.exists() for path in list_embedding_paths("tissue", tmp_path / "out"))
    record = seed_slide(tmp_path / "out", seeds, anndata=True)
    table = anndata.read_h5ad(tmp_path / "out" / "tissue.sic.h5ad")
    assert table.obs["sic"].value_counts().to_dict() == record["patches"]
    assert ((table.obs["sic_crypt"] > 0.5) == (table.obs["sic"] == "crypt")).all()
    with (tmp_path / "out" / "tissue.sic.csv").open(encoding="utf-8", newline="") as file:
        colours = {row["name"]: row["colour"] for row in csv.DictReader(file)}
    shown = dict(zip(table.obs["sic"].cat.categories, table.uns["sic_colors"], strict=True))
    assert shown == {name: colours[name] for name in shown} and len(shown) == 2


NAMES = ["tumour/stroma", "tumour_stroma", ".", "..", "/", "x" * 300, "µ/ν", "tumour/stroma_"]


def test_classes_of_any_name_are_found_in_anndata_by_their_own(folder, tmp_path):
    """HDF5's paths are made of "/" and "."."""
    anndata = pytest.importorskip("anndata")
    centers = open_embeddings(folder / "tissue.embeddings.zarr").centers[:: len(NAMES)]
    placed = [{"x": x, "y": y, "class": c} for c, (y, x) in zip(NAMES, centers, strict=False)]
    (tmp_path / "seeds.json").write_text(json.dumps({"seeds": placed}))
    shutil.copytree(folder, tmp_path / "out")
    record = seed_slide(tmp_path / "out", tmp_path / "seeds.json", anndata=True, overwrite=True)
    assert record["parameters"]["classes"] == NAMES
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # h5py's and pandas' of each other
        table = anndata.read_h5ad(tmp_path / "out" / "tissue.sic.h5ad")
    counts = table.obs["sic"].value_counts()
    assert {c: counts.get(c, 0) for c in NAMES} == record["patches"]
    column = dict(zip(table.uns["sic"]["classes"], table.uns["sic"]["columns"], strict=True))
    assert list(column) == NAMES and len({*column.values()}) == len(NAMES)
    assert column["tumour_stroma"] == "sic_tumour_stroma" and column[".."] == "sic_.."
    soft = table.obs[[column[c] for c in NAMES]].to_numpy()
    np.testing.assert_allclose(soft.sum(1), 1, atol=1e-5)
    labels = np.array(NAMES)[soft.argmax(1)]
    assert (labels == table.obs["sic"].to_numpy()).mean() > 0.9  # but where two are as near
    assert not any("/" in c for c in table.obs)


@pytest.mark.parametrize("failure", [ValueError("keys with slashes\nand more"), OSError(28, "disk full")])
def test_an_optional_output_that_fails_loses_no_other(picture, seeds, tmp_path, monkeypatch, failure):
    pytest.importorskip("anndata")
    from fseg_jax.outputs import anndata_export

    def fail(path, *_):
        path.write_text("half")
        raise failure

    monkeypatch.setattr(anndata_export, "write_anndata", fail)
    with pytest.raises(InputError, match=r"out/tissue\.embeddings\.h5ad: cannot be written \(.*all other"):
        embed(picture, tmp_path / "out", anndata=True, h5=True)
    with pytest.raises(InputError, match=r"out/tissue\.sic\.h5ad: cannot be written") as caught:
        seed_slide(tmp_path / "out", seeds, anndata=True)
    assert "\n" not in str(caught.value)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    sic = {path.name for path in output_paths("tissue.sic", tmp_path / "out")}
    assert left == {"tissue.embeddings.json", "tissue.embeddings.zarr", "tissue.embeddings.h5", *sic}


def test_bad_folders_and_options_are_refused(folder, tmp_path, seeds):
    for out, slide, says in (
        (tmp_path, None, "fseg embed SLIDE"),
        (folder, "other", "no embedded slide 'other'; it holds tissue"),
    ):
        with pytest.raises(InputError, match=says):
            seed_slide(out, seeds, slide=slide)
    with pytest.raises(InputError, match="choose f1, accuracy"):
        seed_slide(folder, seeds, SeedSettings(metric="auc"))
    with pytest.raises(InputError, match="cannot be read"):
        seed_slide(folder, tmp_path / "none.json")
    (tmp_path / "a.embeddings.json").touch()  # a crash left it
    with pytest.raises(InputError, match="fseg embed SLIDE"):
        seed_slide(tmp_path, seeds)
    (tmp_path / "a.embeddings.json").write_text("{}")
    (tmp_path / "b.embeddings.json").write_text("foreign")
    (tmp_path / "c.embeddings.json").mkdir()
    with pytest.raises(InputError, match="holds a, b; choose one with --slide"):
        seed_slide(tmp_path, seeds)
    with pytest.raises(InputError, match=r"b\.embeddings\.zarr are not finished embeddings"):
        seed_slide(tmp_path, seeds, slide="b")


def test_contradictory_seeds_on_one_patch(folder):
    embedded = open_embeddings(folder / "tissue.embeddings.zarr")
    y, x = embedded.centers[7]
    points = np.array([[x, y], [x + 1, y], [x, y - 1]])
    for clicked, winner, overruled in (([0, 1, 0], 0, 1), ([1, 1, 0], 1, 1), ([0, 1], 1, 1), ([1, 1], 1, 0)):
        classes, lost = assign_seeds(
            points[: len(clicked)], np.array(clicked), embedded.centers, 64.0, (384, 512), Path("s")
        )
        assert classes[7] == winner and (classes >= 0).sum() == 1 and lost == overruled


def test_many_seeds_on_many_patches_go_to_the_nearest_in_seconds():
    rng = np.random.default_rng(0)
    grid = np.argwhere(np.ones((300, 300))).astype(np.int32)
    centers = grid * 128.0 + 128
    points = rng.uniform(200, 38000, (20_000, 2))
    given_ = np.zeros(len(points), np.int64)
    begun = time.perf_counter()
    classes, lost = assign_seeds(points, given_, centers, 256.0, (38528, 38528), Path("s"))
    assert time.perf_counter() - begun < 20 and lost == 0
    for x, y in points[:200]:
        away = np.abs(centers - (y, x))
        inside = away.max(1) <= 128
        assert classes[np.argmin(np.where(inside, (away**2).sum(1), np.inf))] == 0
    assert (classes == 0).sum() < len(grid)


def test_a_real_slide(data, tmp_path):
    """Epidermis and dermis, from two seeds each."""
    seeds = tmp_path / "seeds.json"
    placed = {"dermis": [(979, 2379), (1492, 2099)], "epidermis": [(1271, 2215), (1236, 1003)]}
    seeds.write_text(
        json.dumps(
            {
                "classes": list(placed),
                "seeds": [{"x": x, "y": y, "class": c} for c, points in placed.items() for x, y in points],
            }
        )
    )
    with open_slide(data / "slides" / "CMU-1-Small-Region.svs") as slide:
        embed_slide(slide, tmp_path / "out", ENCODER, PatchSettings(patch=128))
    record = seed_slide(tmp_path / "out", seeds)
    assert record["score"] == 1 and record["scores"][0] < 1 and record["iterations"] == 1
    labels = open_labels(tmp_path / "out" / "CMU-1-Small-Region.sic.ome.zarr").levels[0]
    # The follicle's epithelium, the dermis at its left, the epidermis at the lower right; then glass.
    assert [int(labels[y, x].read().result()) for y, x in ((2000, 1190), (1400, 950), (2700, 1650))] == [
        2,
        1,
        2,
    ]
    assert labels[300, 2000].read().result() == 0


def test_clicks_of_qupath_on_a_scan_of_a_larger_canvas_come_back_where_they_were(tmp_path):
    """QuPath counts from the scan's corner, OpenSlide from the canvas's: points in, outlines out."""
    rng = np.random.default_rng(0)
    scan = np.full((512, 640, 3), 243.0)
    scan[64:448, 64:320] = (225, 130, 180)
    scan[64:448, 320:576] = (120, 70, 150)
    scan += rng.normal(0, 6, (512, 640, 1))
    path = tmp_path / "s.scn"
    write_leica(path, (1600, 2000), [((800, 600), scan.round().clip(0, 255).astype(np.uint8))])
    with open_slide(path) as slide:
        assert slide.frame == "bounds" and slide.origin == (800, 600)
        embed_slide(slide, tmp_path / "out", ENCODER, SETTINGS)
    clicks = {"stroma": [(100, 100), (200, 400)], "tumour": [(400, 250), (540, 420)]}
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "MultiPoint", "coordinates": points},
            "properties": {"objectType": "annotation", "classification": {"name": name, "color": [1, 2, 3]}},
        }
        for name, points in clicks.items()
    ]
    (tmp_path / "clicks.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    seed_slide(tmp_path / "out", tmp_path / "clicks.geojson")
    content = json.loads((tmp_path / "out" / "s.sic.geojson").read_text())
    assert content["fseg"] | {"frame": "bounds", "frame_x": 600, "frame_y": 800} == content["fseg"]
    regions = [
        (each["properties"]["classification"]["name"], shapely.geometry.shape(each["geometry"]))
        for each in content["features"]
    ]
    for name, points in clicks.items():
        for point in points:
            at = shapely.Point(point)
            assert [found for found, polygon in regions if polygon.contains(at)] == [name]
