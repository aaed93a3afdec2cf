"""The outlines of clusters, as QuPath reads them."""

import json
import uuid
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import rasterio.features
import shapely
from label_images import draw_smooth_labels

from fseg_jax.errors import InputError
from fseg_jax.outputs import geojson as module
from fseg_jax.outputs.colours import make_default_names, make_palette
from fseg_jax.outputs.geojson import encode_compact, merge_small, write_geojson, yield_features
from fseg_jax.outputs.labels import LabelWriter, open_labels


def outline(tmp_path, labels, k, *, mpp=1.0, slide_mpp=0.5, name="s", **options):
    """The labels written, outlined and read again: what was done and the parsed file."""
    folder = tmp_path / f"{name}.ome.zarr"
    writer = LabelWriter(folder, labels.shape, mpp, k, names=None, colours=make_palette(k), provenance={})
    writer.append(labels)
    writer.close()
    path = tmp_path / f"{name}.geojson"
    done = write_geojson(
        path, folder, slide_mpp=slide_mpp, names=make_default_names(k), colours=make_palette(k), **options
    )
    assert done.bytes == path.stat().st_size
    collection = json.loads(path.read_text(encoding="utf-8"))
    assert collection["type"] == "FeatureCollection"
    assert collection["fseg"] == {key: value for key, value in asdict(done).items() if key != "bytes"}
    assert done.features == len(collection["features"])
    assert [p.name for p in tmp_path.glob(".*")] == []
    return done, collection["features"], open_labels(folder)


def check_feature(feature, k, slide_mpp):
    """What RFC 7946 asks for, and what QuPath's reader does with each member."""
    assert set(feature) == {"type", "id", "geometry", "properties"} and feature["type"] == "Feature"
    assert str(uuid.UUID(feature["id"])) == feature["id"]
    properties = feature["properties"]
    assert properties["objectType"] == "annotation" and properties["isLocked"] is False
    classification = properties["classification"]
    assert properties["name"] == classification["name"]
    label = make_default_names(k).index(classification["name"]) + 1
    assert classification["color"] == make_palette(k)[label - 1].tolist()
    rings = feature["geometry"]["coordinates"]
    for index, ring in enumerate(rings):
        assert len(ring) >= 4 and ring[0] == ring[-1]
        assert all(a != b for a, b in pairwise(ring))
        assert shapely.LinearRing(ring).is_ccw == (index == 0)
    polygon = shapely.geometry.shape(feature["geometry"])
    assert polygon.is_valid and polygon.area > 0
    # QuPath takes measurements as an object of numbers.
    assert properties["measurements"] == {
        "Region area µm^2": pytest.approx(polygon.area * slide_mpp**2, abs=0.51)
    }
    assert (
        type(properties["measurements"]["Region area µm^2"]) is int
    )  # outlines are simplified by more than that
    return label, polygon


@pytest.mark.parametrize("shape", [(2000, 1500), (1203, 1999)])
@pytest.mark.parametrize(("k", "slide_mpp"), [(6, 0.5), (300, 0.2527)])
def test_smooth_regions_come_back(tmp_path, shape, k, slide_mpp):
    labels = draw_smooth_labels(shape, 6)
    done, features, pyramid = outline(tmp_path, labels.astype(np.uint16), k, slide_mpp=slide_mpp)
    found = [check_feature(feature, k, slide_mpp) for feature in features]
    assert done.level_mpp == 4.0 and done.tolerance_um == 4.0 and done.min_area_um2 == 0.0
    assert len({feature["id"] for feature in features}) == len(features)
    assert [label for label, _ in found] == sorted(label for label, _ in found)
    traced = pyramid.levels[done.level].read().result()
    again = rasterio.features.rasterize(
        [(polygon, label) for label, polygon in found],
        out_shape=traced.shape,
        transform=rasterio.Affine.scale(done.level_mpp / slide_mpp),
        dtype="int32",
    )
    assert (again == traced).mean() > 0.98
    polygons = np.array([polygon for _, polygon in found])
    x, y = shapely.get_coordinates(polygons).T
    assert min(x.min(), y.min()) >= 0
    assert x.max() <= shape[1] / slide_mpp + 0.05 and y.max() <= shape[0] / slide_mpp + 0.05
    # Neighbours share their borders: nothing is covered twice, and no slivers open between them.
    union = shapely.union_all(polygons)
    assert shapely.area(polygons).sum() - union.area < 1e-3 * union.area
    if slide_mpp == 0.5:  # rounding to 0.1 pixel moves nothing here
        assert shapely.coverage_is_valid(polygons)


@pytest.mark.smoke
def test_holes_are_kept(tmp_path):
    labels = np.zeros((400, 400), np.uint8)
    labels[40:360, 40:360] = 1
    labels[120:280, 120:280] = 2
    labels[160:200, 160:240] = 0
    _, features, _ = outline(tmp_path, labels, 2, slide_mpp=1.0)
    (_, outer), (_, inner) = [check_feature(feature, 2, 1.0) for feature in features]
    assert outer.equals(shapely.box(40, 40, 360, 360) - shapely.box(120, 120, 280, 280))
    assert inner.equals(shapely.box(120, 120, 280, 280) - shapely.box(160, 160, 240, 200))


def test_a_cluster_is_one_annotation_or_a_region_a_detection_where_that_is_wanted(tmp_path):
    labels = draw_smooth_labels((800, 600), 4)
    labels[200:300, 200:300] = 5
    _, regions, _ = outline(tmp_path, labels, 5)
    done, clusters, _ = outline(tmp_path, labels, 5, name="c", outlines="clusters")
    _, detections, _ = outline(tmp_path, labels, 5, name="d", outlines="detections")
    assert {each["properties"].pop("objectType") for each in detections} == {"detection"}
    assert {each["properties"].pop("objectType") for each in [*regions, *clusters]} == {"annotation"}
    assert detections == regions and done.features == len(clusters) == 5 < len(regions)
    for each in clusters:
        geometry = shapely.geometry.shape(each["geometry"])
        own = [r for r in regions if r["properties"]["name"] == each["properties"]["name"]]
        assert geometry.is_valid
        if len(own) == 1:  # QuPath 0.5 reads nothing of a file with a collection of one
            assert each["geometry"] == own[0]["geometry"] and each["properties"]["name"] == "cluster 5"
        else:
            assert each["geometry"]["type"] == "MultiPolygon"
            assert each["geometry"]["coordinates"] == [r["geometry"]["coordinates"] for r in own]
        area = sum(r["properties"]["measurements"]["Region area µm^2"] for r in own)
        assert each["properties"]["measurements"] == {"Region area µm^2": pytest.approx(area, abs=len(own))}


@pytest.mark.smoke
def test_regions_that_touch_at_a_corner_are_two(tmp_path):
    labels = np.zeros((256, 256), np.uint8)
    labels[64:128, 64:128] = labels[128:192, 128:192] = 1
    _, features, _ = outline(tmp_path, labels, 1, mpp=4.0, slide_mpp=4.0)
    assert [check_feature(feature, 1, 4.0)[1].area for feature in features] == [4096, 4096]


@pytest.mark.smoke
def test_a_ring_of_diagonal_steps_is_valid(tmp_path):
    y, x = np.mgrid[:256, :256]
    labels = np.where((y // 8 + x // 8) % 3 == 0, 1, 2).astype(np.uint8)
    _, features, _ = outline(tmp_path, labels, 2, mpp=4.0, slide_mpp=0.25)
    assert sum(check_feature(feature, 2, 0.25)[1].area for feature in features) == 4096**2


@pytest.mark.smoke
def test_it_says_the_same_twice(tmp_path):
    labels = draw_smooth_labels((900, 900), 4)
    outline(tmp_path, labels, 4, name="a")
    outline(tmp_path, labels, 4, name="b")
    assert (tmp_path / "a.geojson").read_bytes() == (tmp_path / "b.geojson").read_bytes()


def test_a_geometry_reads_as_python_writes_it():
    """Renaming writes geometries anew, and makes ids of their text: both must be as in a new file."""
    corners = np.round(np.random.default_rng(0).uniform(0, 400_000, (3000, 3, 2)), 1)
    features = yield_features(np.ones(3000, int), shapely.polygons(corners), [{"name": "a"}], 0.5)
    for feature in features:
        assert encode_compact(json.loads(feature)["geometry"]) in feature


@pytest.mark.smoke
def test_no_tissue_is_an_empty_collection(tmp_path):
    done, features, _ = outline(tmp_path, np.zeros((300, 300), np.uint8), 3)
    assert features == [] and done.features == 0


@pytest.mark.smoke
def test_a_slide_of_one_pixel(tmp_path):
    _, (feature,), _ = outline(tmp_path, np.ones((1, 1), np.uint8), 1, mpp=8.0, slide_mpp=1.0)
    assert shapely.box(0, 0, 8, 8).covers(check_feature(feature, 1, 1.0)[1])


@pytest.mark.smoke
def test_crumbs_go_to_a_neighbour_and_leave_no_gap():
    labels = np.ones((40, 40), np.uint8)
    labels[:, 20:] = 2
    labels[5:8, 5:8] = 3  # 9 pixels, inside 1
    labels[30, 30] = 0  # a pinhole in 2
    labels[20:24, 30:34] = 4  # 16 pixels stay
    found = merge_small(labels, 16)
    assert set(np.unique(found)) == {1, 2, 4}
    assert (found[labels == 3] == 1).all() and found[30, 30] == 2 and (found == 4).sum() == 16


@pytest.mark.smoke
def test_a_large_slide_is_traced_coarsely_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MAX_TRACED_PIXELS", 50_000)
    done, _, pyramid = outline(tmp_path, draw_smooth_labels((1600, 1600), 3), 3)
    assert pyramid.levels[done.level].shape == (200, 200)
    assert done.tolerance_um == done.level_mpp == 8.0


@pytest.mark.parametrize("noise", ["tokens", "checkerboard"])
def test_noise_stays_small_enough_for_qupath(tmp_path, monkeypatch, noise):
    monkeypatch.setattr(module, "_MAX_FEATURES", 150)
    monkeypatch.setattr(module, "_MAX_BYTES", 200_000)
    if noise == "tokens":
        labels = np.random.default_rng(0).integers(1, 9, (80, 80), np.uint8).repeat(16, 0).repeat(16, 1)
        done, features, _ = outline(tmp_path, labels, 8)
    else:  # every region is a pixel without a larger neighbour, so no merging helps
        labels = (np.indices((600, 600)).sum(0) % 2 + 1).astype(np.uint8)
        done, features, _ = outline(tmp_path, labels, 2, mpp=4.0)
    assert done.min_area_um2 > 256 and len(features) <= 150 and done.bytes < 250_000
    covered = sum(check_feature(feature, 8, 0.5)[1].area for feature in features)
    assert covered == pytest.approx(labels.size * (1 if noise == "tokens" else 16) * 4, rel=1e-6)


@pytest.mark.smoke
def test_what_cannot_be_read_or_written_is_one_line(tmp_path):
    outline(tmp_path, np.ones((300, 300), np.uint8), 1)
    for path, folder in [
        (tmp_path / "absent" / "s.geojson", tmp_path / "s.ome.zarr"),
        (tmp_path / "t.geojson", tmp_path / "absent.ome.zarr"),
    ]:
        with pytest.raises(InputError) as caught:
            write_geojson(path, folder, slide_mpp=1.0, names=["a"], colours=make_palette(1))
        assert "\n" not in str(caught.value) and "absent" in str(caught.value)
    assert not (tmp_path / "t.geojson").exists()


def test_the_scripts_for_qupath_know_our_objects_by_their_measurement():
    scripts = sorted((Path(__file__).parents[2] / "docs" / "qupath").glob("*.groovy"))
    assert len(scripts) == 2
    for script in scripts:
        assert f'getMeasurements().containsKey("{module.AREA}")' in script.read_text(encoding="utf-8")
