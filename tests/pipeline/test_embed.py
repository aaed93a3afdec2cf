"""Embedding a slide's patches: what is written, and what is refused."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from embedded import ENCODER, SETTINGS, embed
from PIL import Image

from fseg_jax.errors import InputError
from fseg_jax.outputs.embeddings import open_embeddings
from fseg_jax.pipeline.clicks import seed_slide
from fseg_jax.pipeline.embed import PatchSettings, measure_tissue
from fseg_jax.slides.tissue import Tissue


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
    share = measure_tissue(Tissue(mask, 8.0), 2, 3, 40.0, 60.0)
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
