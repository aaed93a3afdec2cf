"""Encoders side by side: each part is its encoder's own, in a frame too; what does not fit is said."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.numpy import save_file
from tiny import CNN, make_resnet_tensors

from fseg_jax.cli.options import choose_encoder
from fseg_jax.codebook import Codebook, Provenance
from fseg_jax.encoders.classical import classical
from fseg_jax.encoders.encoder import JaxEncoder, encode_framed
from fseg_jax.encoders.load import is_known, is_local, load_encoder, split_name
from fseg_jax.encoders.side_by_side import join_encoders
from fseg_jax.errors import InputError

pytestmark = pytest.mark.usefixtures("tiny_rows", "no_hub")


@pytest.fixture
def cnn(tmp_path: Path) -> JaxEncoder:
    path = tmp_path / "cnn.safetensors"
    save_file(make_resnet_tensors(CNN.config), path)
    return load_encoder("tiny-cnn", weights=path)


def make_fine(**facts: object) -> JaxEncoder:
    """An encoder of 8 pixels a token, whose two channels are means of colours above and below grey."""

    def apply(weights: None, x: jax.Array) -> jax.Array:
        b, height, width, _ = x.shape
        tokens = x.reshape(b, height // 8, 8, width // 8, 8, 3).mean((2, 4, 5))
        return jnp.stack([tokens, -tokens], -1)

    card = replace(classical().card, name="fine", channels=2, stride=8, tile=64, licence="MIT", **facts)
    return JaxEncoder(replace(card, mean=(0.5,) * 3, std=(0.2,) * 3), apply, None)


def test_each_part_is_its_encoders_at_one_deviation(cnn: JaxEncoder, images: jax.Array):
    encoders = [cnn, classical(), make_fine()]
    joined = join_encoders(encoders)
    fine = np.asarray(make_fine()(images)).reshape(2, 2, 2, 3, 2, 2).mean((2, 4))
    start, tissue = 0, skimage.data.immunohistochemistry()
    for encoder, own in zip(encoders, (cnn(images), classical()(images), fine), strict=True):
        side = encoder.card.tile // encoder.card.stride * encoder.card.stride
        tiles = sliding_window_view(tissue, (side, side, 3))[::side, ::side, 0].reshape(-1, side, side, 3)
        tokens = np.asarray(encoder(jnp.asarray(tiles)), np.float64).reshape(-1, encoder.card.channels)
        part = joined(images)[..., start : start + encoder.card.channels]
        np.testing.assert_allclose(part, own / np.linalg.norm(tokens.std(0)), rtol=1e-4, atol=1e-5)
        start += encoder.card.channels
    assert start == joined.card.channels
    card = joined.card
    assert (card.name, card.channels, card.stride, card.tile) == ("tiny-cnn+classical+fine", 38, 16, 64)
    assert (card.layer, card.mpp) == ("layer3+features+features", 1.0)
    assert card.licence == "MIT; Apache-2.0" and not card.stain_normalization
    assert join_encoders([classical(), make_fine(stain_normalization=True)]).card.stain_normalization


def test_a_frame_changes_no_feature(cnn: JaxEncoder, images: jax.Array):
    joined = join_encoders([cnn, classical()])
    framed = jnp.pad(images, ((0, 0), (0, 32), (0, 16), (0, 0)), mode="edge")
    features = encode_framed(joined, framed, np.array([images.shape[1:3]] * 2, np.int32))
    np.testing.assert_allclose(features[:, :2, :3], joined(images), rtol=1e-4, atol=1e-5)


def test_what_is_joined_is_in_its_hash(cnn: JaxEncoder):
    hashes = {
        join_encoders(parts).card.weights_hash
        for parts in (
            [cnn, classical()],
            [classical(), cnn],
            [JaxEncoder(replace(cnn.card, weights_hash="0"), cnn.apply, cnn.weights), classical()],
        )
    }
    assert len(hashes) == 3 and {len(hash) for hash in hashes} == {64}
    unknown = JaxEncoder(replace(cnn.card, weights_hash=""), cnn.apply, cnn.weights)
    assert not join_encoders([unknown, classical()]).card.weights_hash


def test_what_does_not_fit_is_said():
    odd = make_fine()
    odd = JaxEncoder(replace(odd.card, stride=14), odd.apply, None)
    coarse = make_fine(mpp=0.5)
    for others, words in {
        (classical(),): "'classical' is in it twice; name it once",
        (odd,): "'fine' has 14 pixels a token, which do not divide 16",
        (coarse,): r"'fine' is used at 0\.5 µm per pixel, 'classical' at 1",
    }.items():
        with pytest.raises(InputError, match=words):
            join_encoders([classical(), *others])
    with pytest.raises(InputError, match=r"classical\+he-small is several: leave --weights out"):
        load_encoder("classical+he-small", weights="x.safetensors")
    with pytest.raises(InputError, match=r"no encoder is called 'he-smal'.*he-small"):
        load_encoder("classical+he-smal")


def test_names_are_split_but_those_of_files(tmp_path: Path):
    file = tmp_path / "a+b.safetensors"
    file.touch()
    assert split_name(str(file)) == [str(file)]
    assert split_name("classical+he-small") == ["classical", "he-small"]
    assert is_local("classical+he-small") and not is_local("classical+tiny")
    assert is_known("Classical+tiny") and not is_known("classical+ours") and not is_known("")


def test_a_codebooks_encoder_is_taken_unless_another_is_given():
    book = Codebook(np.ones((1, 2), np.float32), Provenance(encoder="classical+he-small"))
    assert choose_encoder(None, book) == "classical+he-small"
    assert choose_encoder("he-small", book) == "he-small"
    assert choose_encoder(None, Codebook(book.centers, Provenance(encoder="ours"))) == "he-small"
    assert choose_encoder(None, None) == "he-small"
