"""What docs/clients.md says of other programs runs as it stands, where they are installed."""

import ast
import importlib.util
import re
import sqlite3
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from label_images import draw_smooth_labels

from fseg_jax.outputs.areas import write_areas
from fseg_jax.outputs.colours import make_default_names, make_palette
from fseg_jax.outputs.form import DEFAULT_FORM
from fseg_jax.outputs.geojson import write_geojson
from fseg_jax.outputs.labels import LabelWriter
from fseg_jax.outputs.patch_h5 import write_patch_file
from fseg_jax.outputs.slide_image import SlideImage
from fseg_jax.pipeline.export import export_spatialdata, export_tissuumaps

K, MPP, SLIDE_MPP = 4, 1.0, 0.5
TEXT = (Path(__file__).parents[1] / "docs" / "clients.md").read_text(encoding="utf-8")
SNIPPETS = dict(re.findall(r"^## (.*?)\n(?:(?!^## ).)*?```python\n(.*?)```", TEXT, re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return draw_smooth_labels((600, 400), K)


@pytest.fixture(scope="module")
def folder(labels, tmp_path_factory) -> Path:
    """What a run has written of a slide, in ``out``."""
    root = tmp_path_factory.mktemp("clients")
    out, names, colours = root / "out", make_default_names(K), make_palette(K)
    slide_image = SlideImage(out / "slide.ome.zarr", DEFAULT_FORM)
    slide = {"path": "slide.svs", "height": 1200, "width": 800, "mpp": SLIDE_MPP}
    writer = LabelWriter(
        slide_image.clusters, labels.shape, MPP, K, names=names, colours=colours,
        provenance={"slide": slide}, slide_mpp=SLIDE_MPP, source=slide_image.source,
    )  # fmt: skip
    writer.append(labels)
    pixels = writer.close()
    slide_image.close(np.full((150, 100, 3), 200, np.uint8), 4.0, slide_mpp=SLIDE_MPP)
    write_areas(out / "slide.csv", names, pixels, MPP, step_mm2=1e-6, colours=colours)
    options = {"slide_mpp": SLIDE_MPP, "names": names, "colours": colours}
    write_geojson(out / "slide.geojson", slide_image.clusters, **options)
    return root


@pytest.fixture(scope="module")
def exported(folder) -> Path:
    """The slide as SpatialData, in ``slide.zarr``."""
    pytest.importorskip("spatialdata", reason="pip install 'fseg-jax[clients]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export_spatialdata(folder / "out", "slide", folder / "slide.zarr")
    return folder


def run(title: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Run a snippet; skip where a package that it imports is not installed."""
    code = SNIPPETS[title]
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in imports:
        for module in [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]:
            if importlib.util.find_spec(str(module).split(".")[0]) is None:
                pytest.skip(f"{module} is not installed: pip install 'fseg-jax[clients]'")
    monkeypatch.chdir(folder)
    given: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(code, given)
    return given


def test_each_program_has_a_snippet():
    assert len(SNIPPETS) == TEXT.count("```python") == 10


def test_napari(folder, labels, monkeypatch):
    layers = run("napari", folder, monkeypatch)["layers"]
    (shown,) = (data for data, _, kind in layers if kind == "labels")
    np.testing.assert_array_equal(np.asarray(shown[0]), labels)


def test_zarr(folder, labels, monkeypatch):
    title = next(title for title in SNIPPETS if title.startswith("Vizarr"))
    given = run(title, folder, monkeypatch)
    np.testing.assert_array_equal(given["labels"]["0"][:], labels)
    assert given["names"][3] == "cluster 3"


def test_neuroglancer(folder, labels, monkeypatch):
    volume = run("neuroglancer", folder, monkeypatch)["volume"]
    assert tuple(volume.shape) == labels.shape[::-1]


def test_spatialdata_and_squidpy(exported, monkeypatch):
    given = run("SpatialData and squidpy", exported, monkeypatch)
    assert given["regions"].uns["cluster_nhood_enrichment"]["zscore"].shape == (K, K)


def test_lazyslide(exported, labels, monkeypatch):
    options = {"tile": (256, 256), "resolution": (1e4 / SLIDE_MPP,) * 2, "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(exported / "slide.svs", np.full((1200, 800, 3), 255, np.uint8), bigtiff=True, **options)
    slide = run("LazySlide", exported, monkeypatch)["slide"]
    assert tuple(slide.properties.shape) == (1200, 800)
    regions, scale = slide["regions"], SLIDE_MPP / MPP
    places = regions.geometry.representative_point()
    found = [f"cluster {labels[int(place.y * scale), int(place.x * scale)]}" for place in places]
    assert np.average(regions["cluster"] == found, weights=regions.area) > 0.95  # outlines are simplified


def test_tissuumaps(folder, monkeypatch):
    export_tissuumaps(folder / "out", "slide", folder / "slide.tmap")
    project = run("TissUUmaps", folder, monkeypatch)["project"]
    assert project.layers[0].name == "slide" and project.marker_files[0].path == "slide.points.csv"


@pytest.mark.skipif(
    not hasattr(sqlite3.Connection, "enable_load_extension"),
    reason="this Python's sqlite3 takes no extensions",
)
def test_tiatoolbox(folder, monkeypatch):
    store = run("TIAToolbox", folder, monkeypatch)["store"]
    found = {each.properties["type"]: each.properties["color"] for each in store.values()}
    assert found["cluster 2"] == pytest.approx(make_palette(K)[1] / 255)


def test_geopandas(folder, labels, monkeypatch):
    areas = run("GeoPandas", folder, monkeypatch)["areas"]
    pixels = np.bincount(labels.ravel(), minlength=K + 1)[1:]
    expected = dict(zip(make_default_names(K), pixels * (MPP / SLIDE_MPP) ** 2, strict=True))
    assert areas.to_dict() == pytest.approx(expected, rel=0.05)


def test_duckdb(folder, labels, monkeypatch):
    areas = dict(run("DuckDB", folder, monkeypatch)["areas"])
    assert areas["cluster 1"] == pytest.approx((labels == 1).sum() * 1e-6, abs=1e-6)


def test_mil(folder, monkeypatch):
    features = np.arange(8, dtype=np.float32).reshape(2, 4)
    stated = {"patch_size_level0": 512, "name": "slide"}
    write_patch_file(folder / "slide.h5", [features], np.array([[0, 0], [512, 0]]), 4, stated)
    given = run("Patch features, for MIL programs", folder, monkeypatch)
    np.testing.assert_array_equal(given["features"], features)
    assert given["side"] == 512 and given["corners"].tolist() == [[0, 0], [512, 0]]
