"""Embedding a slide and segmenting it from a file of seeds: what is written, and what is refused."""

import csv
import json
import shutil
import time
import warnings
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data as pictures

from fseg_jax import open_slide
from fseg_jax.encoders.classical import classical
from fseg_jax.errors import InputError
from fseg_jax.outputs.embeddings import Embeddings, open_embeddings
from fseg_jax.outputs.labels import open_labels
from fseg_jax.pipeline.clicks import SeedSettings, read_seeds, seed_slide, seeds_on_patches, vote
from fseg_jax.pipeline.embed import PatchSettings, embed_slide, embedding_paths, tissue_share
from fseg_jax.pipeline.segment import output_paths
from fseg_jax.slides.identity import identify
from fseg_jax.slides.tissue import Tissue

ENCODER = classical()
SETTINGS = PatchSettings(patch=64, mpp=1.0, batch=4)
SEED = {"x": 300, "y": 60, "class": "c0"}
SEEDS = {
    "classes": ["stroma", "crypt"],
    "seeds": [{"x": 300, "y": 60, "class": "stroma"}, {"x": 100, "y": 150, "class": "Crypt"}],
}


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    """Tissue of 512 × 384 pixels at 1 µm, with a band of glass."""
    image = pictures.immunohistochemistry()[:384].copy()
    image[230:340] = 244
    path = tmp_path_factory.mktemp("picture") / "tissue.png"
    Image.fromarray(image).save(path)
    return path


def embed(picture: Path, out: Path, chosen: PatchSettings = SETTINGS, **options):
    with open_slide(picture, 1.0) as slide:
        return embed_slide(slide, out, ENCODER, chosen, **options)


@pytest.fixture(scope="module")
def folder(picture, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("embedded")
    embed(picture, out)
    return out


@pytest.fixture
def seeds(tmp_path) -> Path:
    path = tmp_path / "seeds.json"
    path.write_text(json.dumps(SEEDS))
    return path


def test_an_embedding_is_the_mean_over_its_patch(picture, folder):
    record = json.loads((folder / "tissue.embeddings.json").read_text())
    embedded = open_embeddings(folder / "tissue.embeddings.zarr")
    X = embedded.read()
    assert X.shape == (record["patches"], 20) and X.dtype == np.float32
    assert record["parameters"] | {"step": 32, "patch": 64, "mpp": 1.0} == record["parameters"]
    assert {k: record[k] for k in embedded.provenance} == embedded.provenance
    image = np.asarray(Image.open(picture))
    for i in (0, 40, len(X) - 1):
        row, column = embedded.grid[i]
        assert tuple(embedded.centers[i]) == (row * 32 + 32, column * 32 + 32)
        patch = image[row * 32 : row * 32 + 64, column * 32 : column * 32 + 64]
        features = np.asarray(ENCODER(jnp.asarray(patch)[None]))[0]
        np.testing.assert_allclose(X[i], features.mean((0, 1)), rtol=1e-4, atol=1e-6)
    # The glass has no patch: row 8 lies inside it, rows 7 and 9 nearly.
    assert not np.isin(embedded.grid[:, 0], [7, 8, 9]).any() and (embedded.grid[:, 0] == 2).sum() == 15
    assert embedded.thumbnail.shape == (384, 512, 3)


def test_embeddings_do_not_depend_on_batch_and_threads(picture, folder, tmp_path):
    expected = open_embeddings(folder / "tissue.embeddings.zarr").read()
    for i, changes in enumerate(({"threads": 5}, {"batch": 7})):
        embed(picture, tmp_path / str(i), replace(SETTINGS, **changes))
        here = open_embeddings(tmp_path / str(i) / "tissue.embeddings.zarr").read()
        np.testing.assert_allclose(here, expected, rtol=1e-5, atol=1e-6)


def test_centres_are_in_level_0_pixels(picture, tmp_path):
    chosen = PatchSettings(patch=64, mpp=2.0, overlap=0.25, tissue="all", min_tissue=0.5, dtype="float16")
    embed(picture, tmp_path, chosen)
    embedded = open_embeddings(tmp_path / "tissue.embeddings.zarr")
    assert embedded.read().dtype == np.float16
    assert embedded.provenance["parameters"]["side_level0"] == 128
    assert (embedded.centers == embedded.grid * 96 + 64).all() and embedded.centers.max(0)[1] <= 512


def test_tissue_share_is_an_area():
    mask = np.zeros((10, 20), bool)
    mask[:, :10] = True
    share = tissue_share(Tissue(mask, 8.0), 2, 3, 40.0, 60.0)
    np.testing.assert_allclose(share, [[1, 40 / 60, 0], [40 / 60, 40 / 60 * 40 / 60, 0]])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"patch": 100}, "multiple of classical's stride, 16: try 96"),
        ({"overlap": 1.0}, "--overlap"),
        ({"min_tissue": -0.1}, "--min-tissue"),
        ({"dtype": "float64"}, "float32 or float16"),
        ({"tissue": "nowhere.png"}, "no such file"),
    ],
)
def test_what_embedding_refuses_leaves_nothing(picture, tmp_path, changes, says):
    with pytest.raises(InputError, match=says) as caught:
        embed(picture, tmp_path / "out", replace(SETTINGS, **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_results_are_replaced_only_when_asked(picture, folder, seeds):
    with pytest.raises(InputError, match=r"embeddings\.zarr exists.*--overwrite"):
        embed(picture, folder)
    seed_slide(folder, seeds, overwrite=True)
    with pytest.raises(InputError, match="--overwrite"):
        seed_slide(folder, seeds)


@pytest.mark.parametrize("suffix", [".embeddings.zarr", ".embeddings.h5ad"])
def test_nothing_that_embedding_would_replace_is_lost(picture, tmp_path, suffix):
    """Also where the record is gone: what somebody computed for hours is not ours to delete."""
    kept = tmp_path / f"tissue{suffix}"
    kept.mkdir() if suffix.endswith(".zarr") else kept.write_text("mine")
    with pytest.raises(InputError, match=rf"tissue\{suffix} exists.*--overwrite"):
        embed(picture, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [kept.name]


# ------------------------------------------------------------------------------------------------ seeds


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
        assert [int(row["pixels"]) for row in csv.DictReader(file)] == counts.tolist()
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
    embed(picture, tmp_path / "out", anndata=True)
    assert all(path.exists() for path in embedding_paths("tissue", tmp_path / "out"))
    record = seed_slide(tmp_path / "out", seeds, anndata=True)
    table = anndata.read_h5ad(tmp_path / "out" / "tissue.sic.h5ad")
    assert table.obs["sic"].value_counts().to_dict() == record["patches"]
    assert ((table.obs["sic_crypt"] > 0.5) == (table.obs["sic"] == "crypt")).all()


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
    from fseg_jax.outputs import embeddings

    def fail(path, *_):
        path.write_text("half")
        raise failure

    monkeypatch.setattr(embeddings, "write_anndata", fail)
    with pytest.raises(InputError, match=r"out/tissue\.embeddings\.h5ad: cannot be written \(.*all other"):
        embed(picture, tmp_path / "out", anndata=True)
    with pytest.raises(InputError, match=r"out/tissue\.sic\.h5ad: cannot be written") as caught:
        seed_slide(tmp_path / "out", seeds, anndata=True)
    assert "\n" not in str(caught.value)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    sic = {path.name for path in output_paths("tissue.sic", tmp_path / "out")}
    assert left == {"tissue.embeddings.json", "tissue.embeddings.zarr", *sic}


def feature(geometry, coordinates, classification):
    return {
        "type": "Feature",
        "geometry": {"type": geometry, "coordinates": coordinates},
        "properties": {"objectType": "annotation", "classification": classification},
    }


QUPATH = [
    feature("MultiPoint", [[1.5, 2], [3, 4]], {"name": "Positive", "color": [250, 62, 62]}),
    feature("Point", [5, 6], {"name": "Negative", "color": [112, 112, 225]}),
]


@pytest.mark.parametrize("content", [QUPATH, {"type": "FeatureCollection", "features": QUPATH}])
def test_qupath_points_are_seeds(tmp_path, content):
    (tmp_path / "a.geojson").write_text(json.dumps(content), encoding="utf-8-sig")
    points, classes, names = read_seeds(tmp_path / "a.geojson")
    assert points.tolist() == [[1.5, 2], [3, 4], [5, 6]] and classes.tolist() == [1, 1, 0]
    assert names == ("negative", "positive")
    assert read_seeds(tmp_path / "a.geojson", ("Positive", "Negative"))[1].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON"),
        ("[]", "holds no seeds"),
        ("3", "not a file of seeds"),
        ('{"seeds": [{"x": 1, "class": "positive"}]}', "each needs x, y and class"),
        ('{"seeds": [{"x": "a", "y": 1, "class": "positive"}]}', "not a file of seeds"),
        (
            '{"classes": ["a", "b"], "seeds": [{"x": 1, "y": 2, "class": "Tumor"}]}',
            "x = 1, y = 2 is of class 'Tumor'; there are a, b",
        ),
        ('{"classes": ["a", "A"], "seeds": [{"x": 1, "y": 2, "class": "a"}]}', "two classes are called 'A'"),
        ('{"classes": ["a", ""], "seeds": [{"x": 1, "y": 2, "class": "a"}]}', "'' is no class's name"),
        ('{"classes": ["a", {}], "seeds": [{"x": 1, "y": 2, "class": "a"}]}', "{} is no class's name"),
        ('{"seeds": [{"x": 1, "y": 2, "class": "a\\u0000b"}]}', "no class's name"),
        ('{"seeds": [{"x": 1, "y": 2, "class": "\\ud800"}]}', r"'\\ud800' is no class's name"),
        ('{"seeds": [{"x": 1, "y": 2, "class": true}]}', "True is no class's name"),
        (json.dumps({"classes": [f"c{i}" for i in range(256)], "seeds": [SEED]}), "256 classes"),
        ('{"classes": ["a"], "seeds": [{"x": 1, "y": 2, "class": "a"}]}', "at least two"),
        ('{"fseg": 3, "features": [], "type": "FeatureCollection"}', "not a file of seeds"),
        ('{"fseg": {"classes": 3}, "features": [], "type": "FeatureCollection"}', "classes are no list"),
        (
            json.dumps(feature("Polygon", [[[0, 0], [1, 0], [1, 1], [0, 0]]], {"name": "Positive"})),
            "a Polygon",
        ),
        (json.dumps(feature("Point", [1, 2], None)), "y = 2 has no class"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[" * 900 + "]" * 900, "not a file of seeds"),
        ('{"type": "FeatureCollection", "features": [' * 400 + "]}" * 400, "not a file of seeds"),
        ('{"seeds": [{"x": 1' + "0" * 5000 + ', "y": 2, "class": "a"}]}', "not valid JSON"),
        ('{"seeds": [{"x": 1' + "0" * 400 + ', "y": 2, "class": "a"}]}', "a coordinate is too large"),
        ('{"seeds": [{"x": "12", "y": 2, "class": "a"}]}', "'12' is no coordinate"),
        ('{"seeds": [{"x": true, "y": 2, "class": "a"}]}', "True is no coordinate"),
        ('{"seeds": {"x": 1, "y": 2, "class": "a"}}', "not a file of seeds"),
        ('{"type": "FeatureCollection", "features": 3}', "not a file of seeds"),
        ('{"type": "Feature", "geometry": null}', "not a file of seeds"),
        (json.dumps(feature("Point", ["1", "2"], {"name": "a"})), "'1' is no coordinate"),
        (json.dumps(feature("Point", [1], {"name": "a"})), "not a file of seeds"),
        (json.dumps(feature("Point", {"x": 1}, {"name": "a"})), "not a file of seeds"),
        (json.dumps(feature("Point", [1, 2], ["a"])), "is no class's name"),
        (json.dumps(feature("Point", [1, 2], {"name": None})), "y = 2 has no class"),
        ('{"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}}', "has no class"),
        ('{"seeds": [{"x": 1e308, "y": -1e308, "class": "positive"}]}', "outside the slide"),
        ('{"seeds": [{"x": Infinity, "y": 1, "class": "positive"}]}', "outside the slide"),
        ('{"seeds": [{"x": 512, "y": 2, "class": "positive"}]}', "outside the slide, 512 × 384 pixels"),
        ('{"seeds": [{"x": NaN, "y": 2, "class": "positive"}]}', "outside the slide"),
        ('{"seeds": [{"x": 100, "y": 290, "class": "positive"}]}', "on no embedded patch"),
    ],
)
def test_bad_seeds_are_refused_in_one_line(folder, tmp_path, text, says):
    path = tmp_path / "seeds.json"
    path.write_text(text)
    before = sorted(folder.iterdir())
    with pytest.raises(InputError, match=says) as caught:
        seed_slide(folder, path, overwrite=True)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert str(path) in str(caught.value) and sorted(folder.iterdir()) == before


def test_files_that_are_no_text_are_refused_in_one_line(folder, tmp_path):
    path = tmp_path / "seeds.json"
    path.write_bytes(b'{"seeds": [{"x": 1, "y": 2, "class": "\xe4"}]}')
    with pytest.raises(InputError, match="not UTF-8"):
        seed_slide(folder, path, overwrite=True)
    with path.open("wb") as file:
        file.truncate(80 << 20)
    with pytest.raises(InputError, match="80 MB, and a file of seeds has 64 at most"):
        seed_slide(folder, path, overwrite=True)
    with pytest.raises(InputError, match="cannot be read"):
        seed_slide(folder, tmp_path, overwrite=True)
    with pytest.raises(InputError, match="cannot be read"):
        seed_slide(folder, Path("a\0b"), overwrite=True)


@pytest.mark.parametrize(
    ("given", "classes"),
    [
        (["Tumour", "stroma", "tumour"], ["Tumour", "stroma"]),
        (["tumour", "Background", "glass  slide"], ["Background", "tumour", "glass slide"]),
        (["tumour", "negative"], ["negative", "tumour"]),
        (["tumour"], ["negative", "tumour"]),
        (["background"], ["background", "positive"]),
        (["Positive"], ["negative", "positive"]),
        (["POSITIVE", "Negative"], ["negative", "positive"]),
        ([1, 2], ["1", "2"]),
    ],
)
def test_a_file_that_does_not_say_its_classes_has_those_of_its_seeds(tmp_path, given, classes):
    """As they first appear, the background's first."""
    path = tmp_path / "seeds.json"
    path.write_text(json.dumps({"seeds": [{"x": 1, "y": 2, "class": c} for c in given]}))
    points, numbers, names = read_seeds(path)
    squeezed = [" ".join(str(c).split()).lower() for c in given]
    assert list(names) == classes and [names[j].lower() for j in numbers] == squeezed
    assert len(points) == len(given)
    with pytest.raises(InputError, match=r"of class .*; there are a, b: name others with --classes"):
        read_seeds(path, ("a", "b"))


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
        classes, lost = seeds_on_patches(
            points[: len(clicked)], np.array(clicked), embedded, (384, 512), Path("s")
        )
        assert classes[7] == winner and (classes >= 0).sum() == 1 and lost == overruled


def test_many_seeds_on_many_patches_go_to_the_nearest_in_seconds():
    rng = np.random.default_rng(0)
    grid = np.argwhere(np.ones((300, 300))).astype(np.int32)
    made = {"parameters": {"side_level0": 256.0}}
    embedded = Embeddings(None, grid * 128.0 + 128, grid, np.ones((1, 1), bool), np.zeros((1, 1, 3)), made)
    points = rng.uniform(200, 38000, (20_000, 2))
    given_ = np.zeros(len(points), np.int64)
    begun = time.perf_counter()
    classes, lost = seeds_on_patches(points, given_, embedded, (38528, 38528), Path("s"))
    assert time.perf_counter() - begun < 20 and lost == 0
    for x, y in points[:200]:
        away = np.abs(embedded.centers - (y, x))
        inside = away.max(1) <= 128
        assert classes[np.argmin(np.where(inside, (away**2).sum(1), np.inf))] == 0
    assert (classes == 0).sum() < len(grid)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(4, 12), st.integers(2, 3))
def test_each_pixel_goes_to_the_class_of_most_patches(seed, step, side, k):
    rng = np.random.default_rng(seed)
    step = min(step, side)
    height, width = rng.integers(side, 5 * side, 2)
    rows, columns = (1 + -(-(size - side) // step) for size in (height, width))
    grid = np.argwhere(rng.random((rows, columns)) < 0.8).astype(np.int32)
    labels = rng.integers(0, k, len(grid))
    soft = rng.dirichlet(np.ones(k), len(grid))
    made = {
        "parameters": {"step": step, "patch": side, "mpp": 1.0},
        "height": int(height),
        "width": int(width),
        "tissue_mpp": 1.0,
    }
    tissue = np.ones((height, width), bool)
    tissue[height // 2 :, : width // 3] = False
    embedded = Embeddings(None, grid * 1.0, grid, tissue, np.zeros((1, 1, 3), np.uint8), made)
    votes, support = np.zeros((2, height, width, k))
    for (row, column), label, share in zip(grid, labels, soft, strict=True):
        box = (slice(row * step, row * step + side), slice(column * step, column * step + side))
        votes[(*box, label)] += 1
        support[box] += share
    best = votes.max(-1, keepdims=True)
    expected = np.where(votes == best, support, -1).argmax(-1) + 1
    expected[(best[..., 0] == 0) | ~tissue] = 0
    assert (np.concatenate(list(vote(embedded, labels, soft))) == expected).all()


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
