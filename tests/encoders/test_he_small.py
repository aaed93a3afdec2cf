"""The encoder that comes with the program: here, whole, and what its card says."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from skimage import data as pictures

from fseg_jax.codebook import Codebook, load_all
from fseg_jax.encoders.classical import classical
from fseg_jax.encoders.load import load_encoder
from fseg_jax.encoders.trained import find_shipped
from fseg_jax.errors import InputError

pytestmark = pytest.mark.smoke


def test_it_is_here_and_says_what_it_is():
    encoder = load_encoder("he-small")
    card = encoder.card
    assert (card.name, card.stride, card.channels, card.mpp) == ("he-small", 16, 276, 1.0)
    assert card.licence == "CC BY 4.0" and len(card.weights_hash) == 64
    assert find_shipped("he-small").stat().st_size < 12e6
    record = json.loads(find_shipped("he-small").with_suffix(".json").read_text())
    assert len(record["losses"]) == record["settings"]["steps"] and record["losses"][-1] < 3.5


def test_features_of_tissue():
    image = jnp.asarray(pictures.immunohistochemistry()[None])
    features = np.asarray(load_encoder("he-small")(image))
    assert features.shape == (1, 32, 32, 276) and features.min() >= 0
    assert np.isfinite(features).all() and (features.std((0, 1, 2)) > 0).mean() > 0.9
    # Both parts count: neither the trunk's channels nor the stains' hold all of the deviation.
    trunk, stains = (part.var((0, 1, 2)).sum() for part in (features[..., :256], features[..., 256:]))
    assert 0.03 < stains / (trunk + stains) < 0.5
    own = np.asarray(classical()(image))
    gain = features[..., 256:].max() / own.max()
    np.testing.assert_allclose(features[..., 256:], gain * own, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "mpp"), [("he-small", 1.0), ("he-small-fine", 0.67)])
def test_its_codebooks_are_its_own(name: str, mpp: float):
    books = load_all(name)
    assert sorted(books) == [8, 16, 32, 64, 128]
    card = load_encoder("he-small").card
    for book in books.values():
        book.check(card.name, card.channels, card.weights_hash)
        assert book.provenance.mpp == mpp and book.provenance.stain_normalization
        assert book.mixtures is not None and book.mixtures.shape == (4, card.channels)
    with pytest.raises(InputError, match="holds k = 8, 16, 32, 64, 128"):
        Codebook.load(name, k=7)


def test_a_published_encoders_file_is_not_taken_for_one(tmp_path: Path):
    with pytest.raises(InputError, match=r"none\.safetensors: no such file: give one that"):
        load_encoder(str(tmp_path / "none.safetensors"))
