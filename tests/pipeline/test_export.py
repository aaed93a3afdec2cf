"""Results as other programs read them: their own readers open what is written."""

import csv
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import shapely
from label_images import draw_smooth_labels
from PIL import Image

from fseg_jax import cli
from fseg_jax.outputs.colours import make_palette
from fseg_jax.outputs.embeddings import open_embeddings
from fseg_jax.outputs.form import DEFAULT_FORM
from fseg_jax.outputs.labels import LabelWriter, open_labels
from fseg_jax.outputs.slide_image import SlideImage
from fseg_jax.pipeline.export import export_patches, export_spatialdata, export_tissuumaps

NAMES = ("tumour/stroma", "b", "c", "d")
SLIDE = {"path": "/nowhere/s.svs", "height": 1600, "width": 1200, "mpp": 0.5, "frame_x": 0, "frame_y": 0}
COLOURS = {name: "#" + bytes(colour).hex() for name, colour in zip(NAMES, make_palette(4), strict=True)}


def write(folder: Path, name: str, labels: np.ndarray, slide: dict = SLIDE) -> None:
    slide_image = SlideImage(folder / f"{name}.ome.zarr", DEFAULT_FORM)
    writer = LabelWriter(
        slide_image.clusters, labels.shape, 1.0, 4, names=NAMES, colours=make_palette(4),
        provenance={"slide": slide}, slide_mpp=0.5, source=slide_image.source,
    )  # fmt: skip
    writer.append(labels)
    writer.close()
    image = np.full((200, 150, 3), 255, np.uint8)
    image[:, 75:] = (200, 120, 180)
    slide_image.close(image, 4.0, slide_mpp=0.5)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """Two slides, of which one is the other upside down."""
    out = tmp_path_factory.mktemp("results")
    labels = draw_smooth_labels((800, 600), 4)
    labels[:104] = 0
    for name, image in (("s", labels), ("t", labels[::-1])):
        write(out, name, np.ascontiguousarray(image))
    return out


def fseg(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(a) for a in arguments])
    return exit_.value.code


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_statistics_are_tidy_tables_that_agree(results, tmp_path, capsys):
    out = tmp_path / "out"
    assert fseg("export", results, "--statistics", out) == 0
    clusters, pairs, regions = (read(out / f"{name}.csv") for name in ("clusters", "pairs", "regions"))
    assert [row["slide_id"] for row in clusters] == ["s"] * 4 + ["t"] * 4 and len(pairs) == 2 * 16
    labels = open_labels(results / "s.ome.zarr")  # the finest, which areas.csv counts
    areas = np.bincount(labels.read(0).ravel(), minlength=5)[1:] * labels.mpp[0] ** 2 * 1e-6
    np.testing.assert_allclose([float(row["area_mm2"]) for row in clusters[:4]], areas, rtol=1e-3)
    for row in clusters:
        own = [r for r in regions if (r["slide_id"], r["cluster"]) == (row["slide_id"], row["cluster"])]
        assert int(row["regions"]) == len(own)
        # Regions are of labels of 4 µm a pixel, as outlines are.
        assert sum(float(r["area_um2"]) for r in own) == pytest.approx(float(row["area_mm2"]) * 1e6, rel=0.05)
        assert all(0 < float(r["roundness"]) <= 1 and 0 <= float(r["border_share"]) <= 1 for r in own)
    by_pair = {(r["slide_id"], r["cluster"], r["other"]): r for r in pairs}
    for (slide, a, b), row in by_pair.items():
        assert row["interface_mm"] == by_pair[slide, b, a]["interface_mm"]
        assert (float(row["distance_mean_um"]) == 0) == (a == b)
    key = "distance_mean_um"  # what lies upside down has the same statistics
    assert [float(r[key]) for r in pairs[:16]] == pytest.approx([float(r[key]) for r in pairs[16:]], rel=0.05)
    stained = [
        [float(r["haematoxylin"]) for r in regions if low < float(r["x_um"]) < low + 250] for low in (0, 350)
    ]
    assert np.mean(stained[1]) > np.mean(stained[0]) + 0.01
    assert Image.open(out / "neighbours.png").size[0] > 300
    capsys.readouterr()
    assert fseg("export", results, "--statistics", out) == 2
    assert "exists: choose another folder, or --overwrite" in capsys.readouterr().err
    assert fseg("export", results, "--statistics", out, "--slide", "t", "--overwrite") == 0
    assert read(out / "clusters.csv") == clusters[4:]


def test_spatialdata_is_read_by_spatialdata(results, tmp_path):
    spatialdata = pytest.importorskip("spatialdata", reason="the extra clients brings it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        moved = SLIDE | {"frame": "bounds", "frame_x": 300, "frame_y": 100}
        write(tmp_path, "s", open_labels(results / "s.ome.zarr").read(0), moved)
        export_spatialdata(tmp_path, "s", tmp_path / "s.zarr")
        content = spatialdata.read_zarr(tmp_path / "s.zarr")
        assert content.coordinate_systems == ["um"]
        regions = spatialdata.transform(content["regions"], to_coordinate_system="um")
        extent = spatialdata.get_extent(content["clusters"], coordinate_system="um")
        pixels = np.asarray(content["clusters"]["scale0"].image)
        table = content["regions_table"]
    np.testing.assert_array_equal(pixels, open_labels(results / "s.ome.zarr").read(0))
    assert extent["x"] == (0, 600) and extent["y"] == (0, 800)
    assert content["slide"].shape[0] == 3 and table.n_obs == len(content["regions"])
    colours = dict(zip(table.obs["cluster"].cat.categories, table.uns["cluster_colors"], strict=True))
    assert colours == {name: COLOURS[name] for name in colours} and len(colours) == 4
    # A place in a region has its label, and the table its area.
    inside = shapely.point_on_surface(regions.geometry.values)
    right = [
        ("", *NAMES)[pixels[int(p.y), int(p.x)]] == c
        for p, c in zip(inside, table.obs["cluster"], strict=True)
    ]
    assert np.mean(right) > 0.9  # outlines are simplified
    area = np.asarray(table[:, "area_um2"].X).ravel()
    assert regions.area.sum() == pytest.approx(area.sum(), rel=0.01)
    # Stored are pixels of the file, as programs that open the slide itself take them.
    np.testing.assert_allclose(content["regions"].total_bounds, regions.total_bounds * 2 + [300, 100] * 2)


def test_squidpy_takes_the_tables(results, tmp_path):
    squidpy = pytest.importorskip("squidpy", reason="the extra clients brings it")
    import spatialdata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export_spatialdata(results, "s", tmp_path / "s.zarr")
        table = spatialdata.read_zarr(tmp_path / "s.zarr")["regions_table"]
        squidpy.gr.spatial_neighbors(table, coord_type="generic", delaunay=True)
        squidpy.gr.nhood_enrichment(table, "cluster", n_perms=20, show_progress_bar=False)
    assert table.uns["cluster_nhood_enrichment"]["zscore"].shape == (4, 4)


def test_a_project_of_tissuumaps_has_its_files_beside_it(results, tmp_path):
    export_tissuumaps(results, "s", tmp_path / "p.tmap")
    project = json.loads((tmp_path / "p.tmap").read_text())
    assert project["layers"] == [{"name": "s", "tileSource": "p.image.png.dzi"}]
    image = Image.open(tmp_path / "p.image.png")
    scale = 600 / image.size[0]  # µm a pixel: the slide is not there, so all is in pixels of its picture
    labels = open_labels(results / "s.ome.zarr").read(0)
    points = read(tmp_path / project["markerFiles"][0]["path"])
    right = [
        ("", *NAMES)[labels[int(float(p["y"]) * scale), int(float(p["x"]) * scale)]] == p["cluster"]
        for p in points
    ]
    assert np.mean(right) > 0.9 and all(p["colour"] == COLOURS[p["cluster"]] for p in points)
    features = json.loads((tmp_path / project["regionFiles"][0]["path"]).read_text())["features"]
    extent = shapely.total_bounds([shapely.geometry.shape(f["geometry"]) for f in features])
    y, x = np.nonzero(labels)
    bounds = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) / scale
    np.testing.assert_allclose(extent, bounds, atol=8 / scale)


def test_its_own_schema_takes_the_project(results, tmp_path):
    pytest.importorskip("tissuumaps_schema", reason="the extra clients brings it")
    from tissuumaps_schema.v01 import Project

    export_tissuumaps(results, "t", tmp_path / "p.tmap")
    project = Project.model_validate_json((tmp_path / "p.tmap").read_text())
    assert project.layers[0].name == "t" and project.marker_files[0].path == "p.points.csv"


def test_where_the_slide_is_there_it_is_the_image(results, tmp_path):
    slide = tmp_path / "slides" / "s.svs"
    slide.parent.mkdir()
    slide.write_bytes(b"")
    labels = open_labels(results / "s.ome.zarr").read(0)
    moved = SLIDE | {"path": str(slide), "frame": "bounds", "frame_x": 300, "frame_y": 100}
    write(tmp_path / "r", "s", labels, moved)
    export_tissuumaps(tmp_path / "r", None, tmp_path / "r" / "p.tmap")
    project = json.loads((tmp_path / "r" / "p.tmap").read_text())
    assert project["layers"][0]["tileSource"] == "../slides/s.svs.dzi"
    assert not (tmp_path / "r" / "p.image.png").exists()
    places = [  # on the canvas, which TissUUmaps shows
        ((float(p["x"]) - 300) * 0.5, (float(p["y"]) - 100) * 0.5, p["cluster"])
        for p in read(tmp_path / "r" / "p.points.csv")
    ]
    assert np.mean([("", *NAMES)[labels[int(y), int(x)]] == c for x, y, c in places]) > 0.9


def test_patches_are_parquet_and_hdf5(folder, tmp_path):
    h5py = pytest.importorskip("h5py")
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra clients brings it")
    export_patches(folder, None, tmp_path / "p.parquet")
    export_patches(folder, None, tmp_path / "p.h5")
    embedded = open_embeddings(folder / "tissue.embeddings.zarr")
    table = parquet.read_table(tmp_path / "p.parquet")
    features = np.array(table["features"].to_pylist(), np.float32)
    np.testing.assert_array_equal(features, embedded.read())
    np.testing.assert_allclose(np.array(table["x"]) + 32, embedded.centers[:, 1])
    with h5py.File(tmp_path / "p.h5") as file:
        np.testing.assert_array_equal(file["features"][:], features)
        assert file["coords"].attrs["patch_size_level0"] == 64


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "say what: --spatialdata"),
        (("--patches", "{out}/there.h5"), "there.h5 exists"),
        (("--tissuumaps", "{out}/p.json", "--slide", "s"), "give a name that ends in .tmap"),
        (("--spatialdata", "{out}/p.h5", "--slide", "s"), "give a name that ends in .zarr"),
        (("--tissuumaps", "{out}/p.tmap"), "holds s, t; choose with --slide"),
        (("--tissuumaps", "{out}/p.tmap", "--slide", "u"), "holds no labels of 'u'"),
        (("--tokens", "{out}/p.h5", "--slide", "s"), "holds no dense tokens of 's'"),
        (("--patches", "{out}/p.npz"), "give a name that ends in .h5 or .parquet"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(results, folder, tmp_path, options, says, capsys):
    (tmp_path / "there.h5").write_text("")
    place = folder if "--patches" in options else results
    assert fseg("export", place, *(str(o).format(out=tmp_path) for o in options)) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there.h5"]


def test_a_package_that_is_missing_is_named(results, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "spatialdata", None)
    assert fseg("export", results, "--slide", "s", "--spatialdata", tmp_path / "s.zarr") == 2
    assert "pip install 'fseg-jax[spatialdata]'" in capsys.readouterr().err and not [*tmp_path.iterdir()]
