"""Slides of two laboratories: with their stains normalized, a codebook finds the same tissue in both."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage import data as pictures

from fseg_jax import open_slide
from fseg_jax.codebook import Codebook, Provenance, load_all, save_all
from fseg_jax.encoders.classical import classical
from fseg_jax.errors import InputError
from fseg_jax.numerics import kmeans
from fseg_jax.outputs.labels import open_labels
from fseg_jax.pipeline.image import segment
from fseg_jax.pipeline.plan import Settings
from fseg_jax.pipeline.segment import segment_slide
from fseg_jax.slides.stain_normalization import measure_gains, recolour

ENCODER = classical()
SETTINGS = Settings(tile=256, batch=4, tissue="all")
# Brown tissue made that of haematoxylin and eosin: red, blue and green stand for red, green and blue.
HERE = np.ascontiguousarray(pictures.immunohistochemistry()[:256, :384, [0, 2, 1]])
THERE = recolour(HERE, (0.7, 1.3, 0.85))  # the same slide, stained elsewhere


def fit_book(image, **provenance):
    A = np.asarray(ENCODER(jnp.asarray(image[None])))[0].reshape(-1, 20)
    centers = np.asarray(kmeans.fit(A, 4, key=jax.random.key(0)).centers)
    return Codebook(centers, Provenance(encoder=ENCODER.card.name, **provenance))


@pytest.fixture(scope="module")
def normalized():
    return fit_book(recolour(HERE, measure_gains(HERE.reshape(-1, 3))), stain_normalization=True)


def run(image, folder, codebook, settings=SETTINGS):
    folder.mkdir()
    Image.fromarray(image).save(folder / "tissue.png")
    with open_slide(folder / "tissue.png", 1.0) as slide:
        record = segment_slide(slide, folder / "out", ENCODER, codebook, settings)
    return record, open_labels(folder / "out" / "tissue.ome.zarr").levels[0].read().result()


def test_a_codebook_finds_the_same_tissue_in_both(tmp_path, normalized):
    one, here = run(HERE, tmp_path / "here", normalized)
    other, there = run(THERE, tmp_path / "there", normalized)
    assert (here == there).mean() > 0.95
    assert one["codebook"]["stain_normalization"] is True
    ratio = np.divide(one["parameters"]["stain_gains"], other["parameters"]["stain_gains"])
    np.testing.assert_allclose(ratio, (0.7, 1.3, 0.85), rtol=0.05)
    as_scanned = fit_book(HERE)
    record, here = run(HERE, tmp_path / "here2", as_scanned)
    _, there = run(THERE, tmp_path / "there2", as_scanned)
    assert (here == there).mean() < 0.8
    assert record["parameters"]["stain_gains"] is None


def test_so_does_one_image(normalized):
    assert (segment(HERE, ENCODER, normalized) == segment(THERE, ENCODER, normalized)).mean() > 0.95


def test_without_a_codebook_the_encoder_says_or_the_settings(tmp_path):
    for number, wanted in enumerate((None, True)):
        settings = replace(SETTINGS, k=3, stain_normalization=wanted)
        record, _ = run(HERE, tmp_path / str(number), None, settings)
        assert (record["parameters"]["stain_gains"] is not None) is bool(wanted)
        assert record["codebook"]["stain_normalization"] is bool(wanted)


def test_a_codebook_is_used_as_it_was_fitted(tmp_path, normalized):
    with pytest.raises(InputError, match="--no-stain-normalization: the codebook was fitted with it; leave"):
        run(HERE, tmp_path / "a", normalized, replace(SETTINGS, stain_normalization=False))
    with pytest.raises(InputError, match="--stain-normalization: the codebook was fitted without it; leave"):
        run(HERE, tmp_path / "b", fit_book(HERE), replace(SETTINGS, stain_normalization=True))


def test_its_file_says_so_and_older_programs_do_not_take_it_for_another(tmp_path, normalized):
    save_all(tmp_path / "a.safetensors", {4: normalized})
    save_all(tmp_path / "b.safetensors", {4: fit_book(HERE)})
    assert load_all(tmp_path / "a.safetensors")[4].provenance.stain_normalization
    assert b'"version":"3"' in (tmp_path / "a.safetensors").read_bytes().replace(b" ", b"")
    assert b"stain_normalization" not in (tmp_path / "b.safetensors").read_bytes()
