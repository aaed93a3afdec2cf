"""The embeddings' group and its AnnData, read with readers that are not ours."""

import json
import shutil
import sys

import numpy as np
import pytest
import zarr
from no_locks import needs_compiler, run_without_locks

from fseg_jax.errors import InputError
from fseg_jax.outputs import rows
from fseg_jax.outputs.anndata_export import make_anndata_keys, write_anndata
from fseg_jax.outputs.embeddings import EmbeddingsWriter, open_embeddings

N, C = 1500, 900  # more than one chunk
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, C)).astype(np.float32)
GRID = np.argwhere(np.ones((30, 50), bool)).astype(np.int32)
PROVENANCE = {
    "slide": {"path": "slide.svs", "width": 8000, "height": 5000, "mpp": 0.25},
    "encoder": {"name": "none"},
    "parameters": {"side_level0": 256.0, "patch": 256, "step": 128, "mpp": 0.25},
    **{"width": 8000, "height": 5000, "tissue_mpp": 32.0, "patches": N, "µ": 1},
}


def write(path, dtype="float32", parts=(7, 993, 500), n=N):
    writer = EmbeddingsWriter(
        path,
        C,
        centers=GRID * 128.0 + 128,
        grid=GRID,
        tissue=np.eye(40, 30, dtype=bool),
        thumbnail=np.full((50, 80, 3), 9, np.uint8),
        provenance=PROVENANCE,
        dtype=dtype,
    )
    done = 0
    for part in parts:
        writer.append(X[done : done + part])
        done += part
    return writer


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_written_is_read_by_zarr(tmp_path, dtype):
    write(tmp_path / "a.embeddings.zarr", dtype).close()
    group = zarr.open_group(tmp_path / "a.embeddings.zarr", mode="r")
    assert group["embeddings"].dtype == dtype and group["embeddings"].chunks[1] == C
    assert group["embeddings"].chunks[0] == min(N, (4 << 20) // (C * np.dtype(dtype).itemsize))
    assert (group["embeddings"][:] == X.astype(dtype)).all()
    assert (group["centers"][:] == GRID * 128.0 + 128).all() and (group["grid"][:] == GRID).all()
    assert group.attrs["fseg"] == PROVENANCE
    ours = open_embeddings(tmp_path / "a.embeddings.zarr")
    assert (ours.read() == X.astype(dtype)).all() and ours.tissue.dtype == bool
    assert (ours.tissue == np.eye(40, 30, dtype=bool)).all() and ours.thumbnail.shape == (50, 80, 3)


def test_parts_do_not_matter(tmp_path):
    write(tmp_path / "a", parts=(1500,)).close()
    write(tmp_path / "b", parts=(1,) * 3 + (1497,)).close()
    for path in (p for p in (tmp_path / "a").rglob("*") if p.is_file()):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_interrupted_embeddings_are_none(tmp_path):
    writer = write(tmp_path / "a", parts=(1000,))
    with pytest.raises(InputError, match="not finished embeddings"):
        open_embeddings(tmp_path / "a")
    with pytest.raises(ValueError, match="1000 of 1500 rows"):
        writer.close()
    with pytest.raises(InputError, match="exists already"):
        write(tmp_path / "a")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "a.embeddings.zarr"
    write(path).close()
    return path


def change_json(path, file, change):
    """A JSON file of a group with a change made to it, in place."""
    content = json.loads((path / file).read_text())
    change(content)
    (path / file).write_text(json.dumps(content))


@pytest.mark.parametrize("shape", [10**6, 10**9, 10**17])
@pytest.mark.parametrize("key", ["embeddings", "centers", "grid", "tissue", "thumbnail"])
def test_sizes_that_a_file_states_are_bounded_by_what_it_holds(whole, tmp_path, key, shape):
    shutil.copytree(whole, tmp_path / "a")

    def grow(content):
        content["shape"] = [shape, *content["shape"][1:]]
        content["shape"][-1 if key == "tissue" else 0] = shape

    change_json(tmp_path / "a", f"{key}/zarr.json", grow)
    with pytest.raises(InputError, match="are not finished embeddings") as caught:
        open_embeddings(tmp_path / "a")
    if shape > 10**6:
        assert f"{key} states a shape of" in str(caught.value) and "and holds little" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["embeddings", "thumbnail"])
def test_chunks_that_a_file_states_are_bounded(whole, tmp_path, key):
    shutil.copytree(whole, tmp_path / "a")

    def grow(content):
        chunks = content["chunk_grid"]["configuration"]
        chunks["chunk_shape"] = [10**6 for _ in chunks["chunk_shape"]]

    change_json(tmp_path / "a", f"{key}/zarr.json", grow)
    with pytest.raises(InputError, match=f"{key} states a shape of"):
        open_embeddings(tmp_path / "a")


def test_large_arrays_that_are_held_are_opened(whole, monkeypatch):
    """Of which little is left when they are compressed, as of a mask."""
    monkeypatch.setattr(rows, "_SMALL_BYTES", 100)
    assert open_embeddings(whole).read().shape == (N, C)


@pytest.mark.parametrize(
    ("keys", "value", "says"),
    [
        (("slide",), None, "NoneType"),
        (("slide", "height"), 5000.0, "the slide's height is 5000.0"),
        (("slide", "width"), 10**30, "the slide's width is 1000"),
        (("slide", "mpp"), 0, "the slide's mpp is 0"),
        (("slide", "mpp"), 1e308, "the slide's mpp is 1e\\+308"),
        (("slide", "mpp"), float("nan"), "zarr.json holds NaN"),
        (("slide", "path"), 3, "no names"),
        (("encoder",), {}, "name is missing"),
        (("height",), -1, "height is -1"),
        (("height",), 4000, "height is 4000, and 5000 by the slide's size and mpp"),
        (("width",), True, "width is True"),
        (("tissue_mpp",), "8", "tissue_mpp is '8'"),
        (("patches",), 7, "1500 patches are stored, 7 stated"),
        (("parameters",), [], "list indices"),
        (("parameters", "patch"), 10**9, "patch is 1000000000"),
        (("parameters", "step"), 0, "step is 0"),
        (("parameters", "step"), 256, "the grid has patches outside the slide"),
        (("parameters", "step"), 127, "centers and grid contradict each other"),
        (("parameters", "side_level0"), 1e9, "side_level0 is 1000000000.0, and 256 by"),
    ],
)
def test_embeddings_that_contradict_themselves_are_one_line(whole, tmp_path, keys, value, says):
    shutil.copytree(whole, tmp_path / "a")

    def change(content):
        at = content["attributes"]["fseg"]
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value

    change_json(tmp_path / "a", "zarr.json", change)
    with pytest.raises(InputError, match=rf"a are not finished embeddings of fseg \(.*{says}") as caught:
        open_embeddings(tmp_path / "a")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("file", "text"),
    [
        *(
            ("zarr.json", t)
            for t in ("", "{", "3", "[]", "[" * 100_000, '{"attributes": {"fseg": 3}}', "\xff")
        ),
        *(("centers/zarr.json", t) for t in ("", "{}", "[" * 100_000, '{"shape": "x"}')),
        ("embeddings/zarr.json", ""),
    ],
)
def test_metadata_that_are_none_are_one_line(whole, tmp_path, file, text):
    shutil.copytree(whole, tmp_path / "a")
    (tmp_path / "a" / file).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="are not finished embeddings of fseg") as caught:
        open_embeddings(tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_arrays_of_another_kind_are_one_line(whole, tmp_path):
    for key, other, says in (
        ("centers", "grid", "centers is int32 of shape 1500×2"),
        ("thumbnail", "tissue", "thumbnail is uint8 of shape 40×30"),
        ("embeddings", "centers", "embeddings is float64"),
    ):
        shutil.copytree(whole, tmp_path / key)
        shutil.rmtree(tmp_path / key / key)
        shutil.copytree(whole / other, tmp_path / key / key)
        with pytest.raises(InputError, match=says):
            open_embeddings(tmp_path / key)


def test_damaged_chunks_are_one_line(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "a")
    (tmp_path / "a" / "embeddings" / "c" / "0" / "0").write_bytes(b"none" * 30)
    embeddings = open_embeddings(tmp_path / "a")
    with pytest.raises(InputError, match=r"the embeddings of slide\.svs are damaged") as caught:
        embeddings.read()
    assert "\n" not in str(caught.value)


def test_what_float16_cannot_hold(tmp_path):
    writer = write(tmp_path / "a", "float16", parts=())
    with pytest.raises(InputError, match="float16: choose --store float32"):
        writer.append(np.full((1, C), 1e5, np.float32))
    with pytest.raises(InputError, match="choose float32 or float16"):
        write(tmp_path / "b", "int8")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_anndata_is_read_by_anndata(tmp_path, dtype):
    anndata = pytest.importorskip("anndata")
    write(tmp_path / "a", dtype).close()
    labels = np.where(np.arange(N) % 3 == 0, "tumour", "normal")
    embeddings = open_embeddings(tmp_path / "a")
    write_anndata(
        tmp_path / "a.h5ad", embeddings, "slide", {"sic": labels, "score": X[:, 0].astype(np.float32)}
    )
    read = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert read.X.dtype == np.float32 and np.array_equal(read.X, X.astype(dtype))
    assert (read.obsm["spatial"] == (GRID * 128.0 + 128)[:, ::-1]).all()
    assert (read.obs["row"] == GRID[:, 0]).all() and list(read.obs["sic"].cat.categories) == [
        "normal",
        "tumour",
    ]
    assert (read.obs["sic"].to_numpy() == labels).all() and (read.obs["score"] == X[:, 0]).all()
    picture = read.uns["spatial"]["slide"]
    assert picture["images"]["hires"].shape == (50, 80, 3)
    assert picture["scalefactors"]["tissue_hires_scalef"] == 0.01
    assert read[read.obs["sic"] == "tumour"].shape == (500, C)
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    assert backed.shape == (N, C)
    backed.file.close()


WRITE_ANNDATA = """
import sys
from fseg_jax.outputs.anndata_export import write_anndata
from fseg_jax.outputs.embeddings import open_embeddings
write_anndata(sys.argv[2], open_embeddings(sys.argv[1]), "slide")
"""


@needs_compiler
def test_anndata_is_written_on_a_file_system_without_locks(tmp_path):
    anndata = pytest.importorskip("anndata")
    write(tmp_path / "a").close()
    run_without_locks(WRITE_ANNDATA, tmp_path, tmp_path / "a", tmp_path / "a.h5ad")
    assert np.array_equal(anndata.read_h5ad(tmp_path / "a.h5ad").X, X)


def test_names_become_keys_that_hdf5_can_hold():
    names = ["a/b", "a_b", ".", "", "_", "/", "..", "a b", "a_b_", "x" * 5000]
    assert make_anndata_keys(names) == [
        "a_b__",
        "a_b",
        "__",
        "___",
        "_",
        "____",
        "..",
        "a b",
        "a_b_",
        "x" * 5000,
    ]
    assert make_anndata_keys(["a", "b"]) == ["a", "b"]


def test_a_slide_of_any_name_is_exported(tmp_path):
    anndata = pytest.importorskip("anndata")
    write(tmp_path / "a").close()
    write_anndata(tmp_path / "a.h5ad", open_embeddings(tmp_path / "a"), ".")
    assert list(anndata.read_h5ad(tmp_path / "a.h5ad").uns["spatial"]) == ["_"]


def test_without_anndata(tmp_path, monkeypatch):
    write(tmp_path / "a").close()
    monkeypatch.setitem(sys.modules, "anndata", None)
    with pytest.raises(InputError, match=r"pip install 'fseg-jax\[anndata\]'"):
        write_anndata(tmp_path / "a.h5ad", open_embeddings(tmp_path / "a"), "a")
    assert not (tmp_path / "a.h5ad").exists()
