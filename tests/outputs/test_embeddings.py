"""The embeddings' group and its AnnData, read with readers that are not ours."""

import sys

import numpy as np
import pytest
import zarr

from fseg_jax.errors import InputError
from fseg_jax.outputs.embeddings import EmbeddingsWriter, anndata_keys, open_embeddings, write_anndata

N, C = 1500, 900  # more than one chunk
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, C)).astype(np.float32)
GRID = np.argwhere(np.ones((30, 50), bool)).astype(np.int32)
PROVENANCE = {"slide": {"width": 8000, "height": 5000}, "parameters": {"side_level0": 256.0}, "µ": 1}


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


def test_names_become_keys_that_hdf5_can_hold():
    names = ["a/b", "a_b", ".", "", "_", "/", "..", "a b", "a_b_", "x" * 5000]
    assert anndata_keys(names) == ["a_b__", "a_b", "__", "___", "_", "____", "..", "a b", "a_b_", "x" * 5000]
    assert anndata_keys(["a", "b"]) == ["a", "b"]


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
