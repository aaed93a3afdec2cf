"""The label pyramid, against its stated rule, zarr-python and the schemas of NGFF 0.5."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import hypothesis.extra.numpy as hnp
import jsonschema
import numpy as np
import pytest
import referencing
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from label_images import draw_smooth_labels

from fseg_jax.errors import InputError
from fseg_jax.outputs import labels as module
from fseg_jax.outputs.colours import make_palette
from fseg_jax.outputs.labels import LabelWriter, compute_level_shapes, halve, open_labels

SCHEMAS = Path(__file__).parent / "ngff-0.5"


def write(path, labels, k, cuts=(), **kwargs):
    options = {"names": None, "colours": make_palette(k), "provenance": {"encoder": "test"}} | kwargs
    writer = LabelWriter(path, labels.shape, 0.5, k, **options)
    for rows in np.split(labels, sorted(cuts)):
        writer.append(rows)
    return writer.close()


def halve_slowly(labels):
    h, w = labels.shape
    out = np.zeros(((h + 1) // 2, (w + 1) // 2), labels.dtype)
    for y, x in np.ndindex(out.shape):
        block = labels[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].ravel().tolist()
        tissue = Counter(v for v in block if v)
        if 2 * tissue.total() >= len(block):
            out[y, x] = min(tissue, key=lambda v: (-tissue[v], v))
    return out


@given(
    st.sampled_from([np.uint8, np.uint16]).flatmap(
        lambda dtype: hnp.arrays(
            dtype,
            hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
            elements=st.one_of(st.integers(0, 3), st.sampled_from([0, np.iinfo(dtype).max])),
        )
    )
)
@settings(max_examples=300, deadline=None)
def test_halving_is_the_stated_rule(labels):
    np.testing.assert_array_equal(halve(labels), halve_slowly(labels))


def test_every_block_of_four_is_halved_by_the_rule():
    blocks = np.stack(np.meshgrid(*[np.arange(5, dtype=np.uint8)] * 4, indexing="ij"), -1).reshape(-1, 2, 2)
    labels = blocks.transpose(1, 0, 2).reshape(2, -1)
    np.testing.assert_array_equal(halve(labels), halve_slowly(labels))


def test_halving_does_not_depend_on_its_strips(monkeypatch):
    labels = np.random.default_rng(0).integers(0, 4, (67, 33), np.uint8)
    whole = halve(labels)
    monkeypatch.setattr(module, "_STRIP_PIXELS", 1)
    np.testing.assert_array_equal(halve(labels), whole)


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (515, 1), (256, 256), (257, 2050), (2049, 301)])
@pytest.mark.parametrize("k", [1, 7, 300])
def test_every_level_reads_back_with_readers_that_are_not_ours(tmp_path, shape, k):
    labels = np.random.default_rng(1).integers(0, k + 1, shape).astype(np.uint8 if k <= 255 else np.uint16)
    pixels = write(tmp_path / "s.ome.zarr", labels, k)
    np.testing.assert_array_equal(pixels, np.bincount(labels.ravel(), minlength=k + 1))
    assert pixels.dtype == np.int64 and pixels.shape == (k + 1,)
    group = zarr.open_group(tmp_path / "s.ome.zarr", mode="r")
    pyramid = open_labels(tmp_path / "s.ome.zarr")
    assert len(pyramid.levels) == len(compute_level_shapes(shape)) == len(list(group.arrays()))
    expected = labels
    for index, level in enumerate(pyramid.levels):
        array = group[str(index)]
        assert array.dtype == labels.dtype and array.metadata.dimension_names == ("y", "x")
        np.testing.assert_array_equal(array[:], expected)
        np.testing.assert_array_equal(level.read().result(), expected)
        assert pyramid.mpp[index] == 0.5 * 2**index
        expected = halve(expected)
    assert max(pyramid.levels[-1].shape) <= 256
    assert pyramid.provenance["encoder"] == "test" and pyramid.provenance["pixels"] == pixels.tolist()
    np.testing.assert_array_equal(pyramid.colours, make_palette(k))


@pytest.mark.smoke
def test_ome_zarr_py_reads_it(tmp_path):
    pytest.importorskip("ome_zarr")
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    labels = draw_smooth_labels((600, 900), 5)
    write(tmp_path / "s.ome.zarr", labels, 5)
    (node,) = list(Reader(parse_url(tmp_path / "s.ome.zarr"))())
    assert [level.shape for level in node.data] == [(600, 900), (300, 450), (150, 225)]
    np.testing.assert_array_equal(np.asarray(node.data[0]), labels)
    np.testing.assert_array_equal(np.asarray(node.data[1]), halve(labels))
    assert [axis["name"] for axis in node.metadata["axes"]] == ["y", "x"]
    assert set(node.metadata["color"]) == set(range(6))


def test_ome_zarr_models_accepts_it(tmp_path):
    models = pytest.importorskip("ome_zarr_models")
    from ome_zarr_models.v05.image_label import ImageLabel

    write(tmp_path / "s.ome.zarr", draw_smooth_labels((300, 300), 3), 3)
    group = zarr.open_group(tmp_path / "s.ome.zarr", mode="r")
    assert isinstance(models.open_ome_zarr(group), ImageLabel)


@pytest.mark.parametrize("schema", ["image", "label", "strict_image", "strict_label"])
@pytest.mark.parametrize("k", [1, 256])
def test_metadata_are_valid_by_the_ngff_schemas(tmp_path, schema, k):
    write(tmp_path / "s.ome.zarr", np.ones((600, 700), np.uint16), k)
    attributes = json.loads((tmp_path / "s.ome.zarr" / "zarr.json").read_text())["attributes"]
    registry = referencing.Registry().with_resources(
        (f"https://ngff.openmicroscopy.org/0.5/schemas/{path.name}", resource)
        for path in SCHEMAS.glob("*.schema")
        if (
            resource := referencing.Resource.from_contents(
                json.loads(path.read_text()), default_specification=referencing.jsonschema.DRAFT202012
            )
        )
    )
    contents = json.loads((SCHEMAS / f"{schema}.schema").read_text())
    validator = jsonschema.Draft202012Validator(contents, registry=registry)
    validator.validate(attributes)
    with pytest.raises(jsonschema.ValidationError):  # the schema does judge
        validator.validate({"ome": {**attributes["ome"], "version": "0.4"}})


@pytest.mark.smoke
def test_metadata_say_where_the_pixels_lie(tmp_path):
    write(tmp_path / "slide-7.ome.zarr", np.zeros((600, 700), np.uint8), 2, names=("stroma", "tumour"))
    ome = json.loads((tmp_path / "slide-7.ome.zarr" / "zarr.json").read_text())["attributes"]["ome"]
    (multiscale,) = ome["multiscales"]
    assert multiscale["name"] == "slide-7"
    assert multiscale["datasets"][2] == {
        "path": "2",
        "coordinateTransformations": [
            {"type": "scale", "scale": [2.0, 2.0]},
            {"type": "translation", "translation": [0.75, 0.75]},
        ],
    }
    assert ome["image-label"]["properties"][2] == {"label-value": 2, "class": "tumour"}
    assert ome["image-label"]["colors"][0]["rgba"][3] == 0


@pytest.mark.parametrize("slide_mpp", [0.25, 0.499, 0.5, 0.7])
def test_labels_lie_on_the_slide_in_a_frame_of_pixel_centres(tmp_path, slide_mpp):
    """A label pixel's corner, by the transformations of centres, is where the slide's has it."""
    writer = LabelWriter(
        tmp_path / "s.ome.zarr", (600, 700), 0.5, 2, names=None, colours=make_palette(2), provenance={},
        slide_mpp=slide_mpp,
    )  # fmt: skip
    writer.append(np.ones((600, 700), np.uint8))
    writer.close()
    ome = json.loads((tmp_path / "s.ome.zarr" / "zarr.json").read_text())["attributes"]["ome"]
    for dataset in ome["multiscales"][0]["datasets"]:
        scale, *moves = dataset["coordinateTransformations"]
        move = moves[0]["translation"][0] if moves else 0.0
        assert move - scale["scale"][0] / 2 == pytest.approx(-slide_mpp / 2)


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@given(cuts=st.lists(st.integers(0, 2300), max_size=6))
@settings(max_examples=12, deadline=None)
def test_the_file_does_not_depend_on_how_rows_come(tmp_path_factory, cuts):
    labels = draw_smooth_labels((2300, 70), 4)
    first, second = (tmp_path_factory.mktemp("rows") / "s.ome.zarr" for _ in range(2))
    write(first, labels, 4)
    write(second, labels, 4, cuts=cuts)
    assert files(first) == files(second)


def test_a_wide_slide_gets_lower_shards_and_the_same_labels(tmp_path, monkeypatch):
    labels = draw_smooth_labels((600, 2100), 4)
    monkeypatch.setattr(module, "_BAND_BYTES", 1 << 19)
    write(tmp_path / "s.ome.zarr", labels, 4)
    pyramid = open_labels(tmp_path / "s.ome.zarr")
    assert pyramid.levels[0].chunk_layout.write_chunk.shape == (256, 1024)
    np.testing.assert_array_equal(pyramid.levels[0].read().result(), labels)
    np.testing.assert_array_equal(pyramid.levels[1].read().result(), halve(labels))


def test_labels_are_compressed(tmp_path):
    write(tmp_path / "s.ome.zarr", draw_smooth_labels((1024, 1024), 6), 6)
    assert sum(map(len, files(tmp_path).values())) < 1024**2 / 15


def test_nothing_unfinished_looks_finished(tmp_path):
    labels = draw_smooth_labels((700, 700), 3)
    writer = LabelWriter(
        tmp_path / "s.ome.zarr", (700, 700), 1.0, 3, names=None, colours=make_palette(3), provenance={}
    )
    writer.append(labels[:650])
    with pytest.raises(ValueError, match="650 of 700"):
        writer.close()
    with pytest.raises(InputError, match="not a finished label pyramid"):
        open_labels(tmp_path / "s.ome.zarr")
    with pytest.raises(FileNotFoundError):
        zarr.open_group(tmp_path / "s.ome.zarr", mode="r")
    with pytest.raises(ValueError, match="more than the 700"):
        writer.append(labels[:51])
    writer.append(labels[650:])
    writer.close()
    np.testing.assert_array_equal(open_labels(tmp_path / "s.ome.zarr").levels[0].read().result(), labels)


def test_a_damaged_level_is_one_line_that_names_it(tmp_path):
    labels = draw_smooth_labels((700, 900), 5)
    write(tmp_path / "s.ome.zarr", labels, 5)
    pyramid = open_labels(tmp_path / "s.ome.zarr")
    np.testing.assert_array_equal(pyramid.read(0, slice(100, 300)), labels[100:300])
    (shard,) = (path for path in (tmp_path / "s.ome.zarr" / "1" / "c").rglob("*") if path.is_file())
    data = bytearray(shard.read_bytes())
    data[-2] ^= 0xFF  # of the shard's index, which has a checksum
    shard.write_bytes(data)
    with pytest.raises(InputError, match=r"s\.ome\.zarr: level 1 is damaged: make the labels again"):
        pyramid.read(1)
    np.testing.assert_array_equal(pyramid.read(0), labels)


def test_a_label_that_no_cluster_has_is_damage(tmp_path):
    write(tmp_path / "s.ome.zarr", draw_smooth_labels((300, 300), 5), 5)
    level = zarr.open_array(tmp_path / "s.ome.zarr" / "0", mode="r+")
    level[7, 8] = 6
    with pytest.raises(InputError, match=r"level 0 is damaged.*a label 6 of 5"):
        open_labels(tmp_path / "s.ome.zarr").read(0)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda a: a.pop("fseg"),
        lambda a: a["fseg"].update(pixels=[1]),
        lambda a: a["fseg"].update(pixels=[90_000.0, 0, 0, 0, 0, 0]),
        lambda a: a["fseg"].update(pixels=[90_001, 0, 0, 0, 0, 0]),
        lambda a: a["fseg"].update(pixels=[90_001, 0, 0, 0, 0, -1]),
        lambda a: a["ome"].pop("image-label"),
        lambda a: a["ome"]["image-label"].update(colors=["red"]),
        lambda a: a["ome"]["image-label"]["colors"][2].update(rgba=[300, 0, 0, 255]),
        lambda a: a["ome"]["image-label"]["properties"].pop(),
        lambda a: a["ome"]["multiscales"][0]["datasets"].pop(),
        lambda a: a["ome"]["multiscales"][0]["datasets"][1].update(path="nowhere"),
        lambda a: a["ome"]["multiscales"][0]["datasets"][1].update(path="0"),
        lambda a: a["ome"]["multiscales"][0]["datasets"][0].update(
            coordinateTransformations=[{"scale": [0]}]
        ),
    ],
)
def test_metadata_that_contradict_each_other_are_refused(tmp_path, wrong):
    write(tmp_path / "s.ome.zarr", draw_smooth_labels((300, 300), 5), 5)
    path = tmp_path / "s.ome.zarr" / "zarr.json"
    group = json.loads(path.read_text())
    wrong(group["attributes"])
    path.write_text(json.dumps(group))
    with pytest.raises(InputError, match="not a finished label pyramid"):
        open_labels(tmp_path / "s.ome.zarr")


def test_a_level_that_states_a_greater_size_than_its_pyramid_is_refused(tmp_path):
    write(tmp_path / "s.ome.zarr", draw_smooth_labels((300, 300), 5), 5)
    path = tmp_path / "s.ome.zarr" / "1" / "zarr.json"
    level = json.loads(path.read_text())
    path.write_text(json.dumps(level | {"shape": [150_000, 150]}))
    with pytest.raises(InputError, match="not a finished label pyramid"):
        open_labels(tmp_path / "s.ome.zarr")


@pytest.mark.parametrize(
    "rows",
    [np.zeros((2, 9), np.uint8), np.zeros((2, 10)), np.full((2, 10), 4, np.uint8), np.zeros(10, np.uint8)],
)
def test_wrong_rows_are_refused(tmp_path, rows):
    writer = LabelWriter(
        tmp_path / "s.ome.zarr", (10, 10), 1.0, 3, names=None, colours=make_palette(3), provenance={}
    )
    with pytest.raises(ValueError):
        writer.append(rows)


def test_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "there", tmp_path / "file" / "s.ome.zarr"):
        with pytest.raises(InputError) as caught:
            write(path, np.zeros((3, 3), np.uint8), 1)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_disk_that_fails_midway_is_one_line(tmp_path):
    writer = LabelWriter(
        tmp_path / "s.ome.zarr", (2048, 64), 1.0, 1, names=None, colours=make_palette(1), provenance={}
    )
    blocked = tmp_path / "s.ome.zarr" / "0"
    (blocked / "zarr.json").rename(tmp_path / "zarr.json")
    blocked.rmdir()
    blocked.write_text("in the way")
    with pytest.raises(InputError, match="cannot be written") as caught:
        writer.append(np.ones((2048, 64), np.uint8))
    assert "\n" not in str(caught.value)


_MEMORY = """
import sys
from pathlib import Path
import numpy as np
from fseg_jax.outputs.colours import make_palette
from fseg_jax.outputs.labels import LabelWriter
height = int(sys.argv[2])
writer = LabelWriter(sys.argv[1], (height, 8192), 1.0, 9, names=None, colours=make_palette(9), provenance={})
rows = np.random.default_rng(0).integers(0, 10, (512, 1024), np.uint8).repeat(8, 1)
for _ in range(height // 512):
    writer.append(rows)
writer.close()
status = Path("/proc/self/status").read_text()
print(status.split("VmHWM:")[1].split()[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_height(tmp_path):
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", _MEMORY, str(tmp_path / f"{height}.ome.zarr"), str(height)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for height in (2048, 20480)
    ]
    assert peaks[1] - peaks[0] < 40_000  # kB; the taller one's labels alone are 168 MB
