"""Encoders by name, and the errors that users meet on the way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import (
    CNN,
    SPOILED,
    VIT,
    get_error_line,
    list_cache_files,
    make_resnet_tensors,
    make_vit_tensors,
    spoil_checkpoint,
)

from fseg_jax import cli
from fseg_jax.encoders import encoder
from fseg_jax.encoders.catalog.row import IMAGENET
from fseg_jax.encoders.load import load_encoder, load_network
from fseg_jax.encoders.weights.checkpoint import hash_file, open_checkpoint
from fseg_jax.encoders.weights.convert import convert_to_network

pytestmark = pytest.mark.usefixtures("tiny_rows", "no_hub")


def test_the_classical_encoder_needs_nothing():
    assert load_encoder("classical").card.name == "classical"
    assert list_cache_files() == []


def test_a_published_checkpoint_gives_the_network_it_holds(checkpoint_file, images):
    tiny = load_encoder("tiny", weights=checkpoint_file)
    state = open_checkpoint(checkpoint_file)
    expected = convert_to_network(state, VIT, label="the test").grid(
        (images / 255 - jnp.array(IMAGENET.mean)[None, None, None])
        / jnp.array(IMAGENET.std)[None, None, None],
        "blocks.1",
    )
    features = tiny(images)
    assert isinstance(tiny, encoder.Encoder)
    assert features.shape == (2, 4, 6, 32) and features.dtype == jnp.float32
    np.testing.assert_allclose(features, jax.nn.relu(expected), rtol=1e-4, atol=1e-5)
    card = tiny.card
    assert (card.name, card.layer, card.channels, card.stride) == ("tiny", "blocks.1", 32, 8)
    assert (card.tile, card.mpp, card.licence, card.citation) == (32, 1.0, "CC-BY-4.0", "Nobody, 2024")
    assert card.weights_hash == hash_file(checkpoint_file)


def test_bfloat16_halves_the_kernels_and_keeps_the_hash(checkpoint_file, images):
    full = load_encoder("tiny", weights=checkpoint_file)
    half = load_encoder("tiny", weights=checkpoint_file, dtype="bfloat16")
    assert half.card == full.card
    expected, features = full(images), half(images)
    assert features.dtype == jnp.float32
    error = jnp.linalg.norm(features - expected) / jnp.linalg.norm(expected)
    assert 0 < error < 2e-2
    kernels = {array.dtype for array in half.weights if array.ndim == 2 and array.shape[0] == 64}
    assert kernels == {jnp.dtype(jnp.bfloat16)}


def test_a_cnn_is_fed_larger_tiles(tmp_path):
    path = tmp_path / "cnn.safetensors"
    save_file(make_resnet_tensors(CNN.config), path)
    cnn = load_encoder("tiny-cnn", weights=path)
    assert cnn.card.tile == 512
    features = cnn(jnp.zeros((1, 32, 64, 3), jnp.uint8))
    assert features.shape == (1, 2, 4, 16) and bool(jnp.isfinite(features).all())


def test_a_pytorch_file_gives_what_its_safetensors_gives(checkpoint_file, tmp_path, images):
    torch = pytest.importorskip("torch")
    path = tmp_path / "pytorch_model.bin"
    torch.save({name: torch.from_numpy(tensor) for name, tensor in load_file(checkpoint_file).items()}, path)
    features = load_encoder("tiny", weights=path)(images)
    assert bool((features == load_encoder("tiny", weights=checkpoint_file)(images)).all())


def test_calls_compile_once_for_all_loads_of_an_architecture(checkpoint_file, tmp_path, images):
    other = tmp_path / "other.safetensors"
    save_file(make_vit_tensors(VIT, seed=1), other)
    first = load_encoder("tiny", weights=checkpoint_file)
    first(images)
    compiled = encoder._encode._cache_size()
    again, different = load_encoder("tiny", weights=checkpoint_file), load_encoder("tiny", weights=other)
    assert first.apply is again.apply
    assert bool((first(images) == again(images)).all()) and bool((first(images) != different(images)).any())
    assert encoder._encode._cache_size() == compiled


def test_a_network_is_loaded_with_what_its_file_says(checkpoint_file):
    network, metadata = load_network("tiny", weights=checkpoint_file)
    assert network.layers()[-1] == "norm" and metadata["source_sha256"] == hash_file(checkpoint_file)


@pytest.mark.parametrize("kind", SPOILED)
def test_a_checkpoint_that_is_not_the_encoder_s_is_one_line(kind, checkpoint_file, tmp_path, monkeypatch):
    marker = tmp_path / "it ran"
    monkeypatch.setenv("FSEG_TEST_MALICE", str(marker))
    path = spoil_checkpoint(kind, checkpoint_file)
    message = get_error_line(lambda: load_encoder("tiny", weights=path))
    assert str(path) in message
    named = {"missing": "blocks.1.attn.qkv.bias", "extra": "blocks.2.attn.qkv.bias", "shape": "(65, 32)"}
    assert named.get(kind, "") in message
    assert list_cache_files() == [] and not marker.exists()


@pytest.mark.parametrize("kind", ["truncated", "pickle", "other", "no network", "gated"])
def test_the_command_line_says_it_in_one_line_and_exits_with_2(
    kind, checkpoint_file, lab, tmp_path, monkeypatch, capsys, restored_logger
):
    from PIL import Image

    monkeypatch.setenv("FSEG_TEST_MALICE", str(tmp_path / "it ran"))
    image = tmp_path / "image.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(image)
    name, weights = "tiny", []
    if kind == "no network":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    elif kind == "gated":
        name = "locked"
    else:
        weights = ["--weights", str(spoil_checkpoint(kind, checkpoint_file))]
    arguments = ["segment", str(image), "-o", str(tmp_path / "out"), "--mpp-override", "1", "--encoder", name]
    with pytest.raises(SystemExit) as caught:
        cli.main([*arguments, *weights])
    lines = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert len(lines) == 1 and lines[0].startswith("fseg: error: "), lines
    assert list_cache_files() == [] and not (tmp_path / "it ran").exists()


def test_bad_names_are_one_line():
    assert "did you mean" in get_error_line(lambda: load_encoder("unii"))
    assert "float32, bfloat16" in get_error_line(lambda: load_encoder("tiny", dtype="float16"))
    assert "has no weights" in get_error_line(lambda: load_encoder("classical", weights="x"))
