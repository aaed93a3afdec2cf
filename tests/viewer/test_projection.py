"""The projection of patches: colours, the file, and UMAP itself."""

import subprocess
import sys
import zipfile
from io import BytesIO

import numpy as np
import pytest

from fseg_jax.outputs.embeddings import open_embeddings
from fseg_jax.viewer import projection
from fseg_jax.viewer.projection import (
    colour_points,
    locate_projection,
    project,
    read_projection,
    write_projection,
)


def test_colours_span_each_axis():
    Y = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    rgb = colour_points(Y)
    assert rgb.dtype == np.uint8 and (rgb.min(0) == 0).all() and (rgb.max(0) == 255).all()
    order = np.argsort(Y[:, 1])
    assert (np.diff(rgb[order, 1].astype(int)) >= 0).all()
    assert (colour_points(np.zeros((5, 3), np.float32)) == 0).all()


def test_few_patches_are_laid_out_by_their_coordinates():
    X = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
    Y = project(X)
    assert Y.shape == (7, 3) and np.allclose(Y[:, 2], 0, atol=1e-6)
    between = np.linalg.norm(X[:, None] - X[None], axis=-1)
    np.testing.assert_allclose(np.linalg.norm(Y[:, None] - Y[None], axis=-1), between, rtol=1e-4, atol=1e-5)
    assert (np.diff(Y.var(0)) <= 0).all()


def test_a_map_is_kept_beside_its_embeddings_and_no_others(out):
    embedded = open_embeddings(out / "tissue.embeddings.zarr")
    Y = np.random.default_rng(1).normal(size=(len(embedded.centers), 3)).astype(np.float32)
    write_projection(out, "tissue", embedded, Y)
    assert (read_projection(out, "tissue", embedded) == Y).all()
    other = embedded._replace(provenance=embedded.provenance | {"height": 1})
    assert read_projection(out, "tissue", other) is None
    locate_projection(out, "tissue").write_bytes(b"PK no more")
    assert read_projection(out, "tissue", embedded) is None
    locate_projection(out, "tissue").unlink()
    assert read_projection(out, "tissue", embedded) is None


@pytest.mark.parametrize(
    "change",
    [
        {"coordinates": np.zeros((10**5, 3), np.float32)},
        {"coordinates": np.zeros((3, 3), np.float32)},
        {"coordinates": np.array([{}], object)},
        {"coordinates": "nan"},
        {"coordinates": "header"},
        {"made_with": np.array("x" * 10**6)},
        {"made_with": np.array(3)},
        {"made_with": None},
    ],
    ids=str,
)
def test_a_map_that_is_damaged_is_none(out, change):
    """One of the headers states a hundred terabytes."""
    embedded = open_embeddings(out / "tissue.embeddings.zarr")
    path = locate_projection(out, "tissue")
    with np.load(path) as file:
        arrays = {**file} | change
    if isinstance(change.get("coordinates"), str) and change["coordinates"] == "nan":
        arrays["coordinates"] = np.full((len(embedded.centers), 3), np.nan, np.float32)
    arrays = {name: array for name, array in arrays.items() if array is not None}
    with zipfile.ZipFile(path, "w") as file:
        for name, array in arrays.items():
            data = BytesIO()
            np.save(data, np.zeros((1, 3), np.float32) if isinstance(array, str) else array)
            member = data.getvalue()
            if isinstance(array, str):
                member = member.replace(b"(1, 3)", b"(99999999999999, 3)").replace(b" " * 14 + b"\n", b" \n")
            file.writestr(f"{name}.npy", member)
    assert read_projection(out, "tissue", embedded) is None


@pytest.mark.long
def test_umap_keeps_neighbours_repeats_and_places_the_rest():
    pytest.importorskip("umap")
    from sklearn.manifold import trustworthiness

    rng = np.random.default_rng(0)
    centres = 8 * rng.normal(size=(6, 20))
    kind = rng.integers(0, 6, 1500)
    X = (centres[kind] + rng.normal(size=(1500, 20))).astype(np.float32)
    Y = project(X, sample=600)
    assert (project(X, sample=600) == Y).all()
    assert trustworthiness(X, Y, n_neighbors=10) > 0.8
    means = np.stack([Y[kind == j].mean(0) for j in range(6)])
    nearest = np.linalg.norm(Y[:, None] - means[None], axis=-1).argmin(1)
    assert (nearest == kind).mean() > 0.97  # those fitted and those placed


@pytest.mark.long
def test_the_program_computes_it_and_says_what_it_does(out):
    pytest.importorskip("umap")
    locate_projection(out, "tissue").unlink()
    program = [sys.executable, "-m", "fseg_jax.viewer.projection", str(out), "tissue"]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert "fitting UMAP on" in done.stdout
    embedded = open_embeddings(out / "tissue.embeddings.zarr")
    assert read_projection(out, "tissue", embedded) is not None
    with np.load(locate_projection(out, "tissue")) as file:
        assert "umap-learn" in str(file["versions"]) and file["colours"].shape == (len(embedded.centers), 3)
    failed = subprocess.run([*program[:-1], "none"], capture_output=True, text=True)
    assert failed.returncode == 2 and failed.stderr.count("\n") == 1


def test_a_missing_package_is_named(monkeypatch):
    from fseg_jax.errors import InputError

    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(InputError, match=r"pip install 'fseg-jax\[view\]'"):
        projection.load_umap()
