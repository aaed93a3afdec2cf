"""Text towers and tokenizers against transformers and CONCH's code, and a model made of a checkpoint."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import FOLDER, list_fixtures, relative_error
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file
from stand_in_hub import StandInHub, serve
from tiny import get_error_line, list_cache_files, make_resnet_tensors, make_vit_tensors

from fseg_jax.encoders.architectures import (
    build_abstract,
    config_from_json,
    config_to_json,
    count_parameters,
)
from fseg_jax.encoders.catalog import published as catalog
from fseg_jax.encoders.catalog.published import CATALOG
from fseg_jax.encoders.catalog.row import IMAGENET, TextRow, vit_row
from fseg_jax.encoders.image_text import load_image_text
from fseg_jax.encoders.load import load_encoder
from fseg_jax.encoders.resnet.network import ResNetConfig
from fseg_jax.encoders.text.network import TextConfig
from fseg_jax.encoders.text.tokenizer import Tokenizer
from fseg_jax.encoders.vit.network import ViTConfig
from fseg_jax.encoders.weights.convert import convert_to_network
from fseg_jax.files.downloads import find_cache_folder

KINDS = list_fixtures("text")


class Texts(NamedTuple):
    """A published text tower, and what it makes of prompts and of an image's embedding."""

    config: TextConfig
    prompts: list[str]
    tensors: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    tokenizer: Path


def read_texts(name: str) -> Texts:
    with safe_open(FOLDER / f"{name}.safetensors", framework="np") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    weights = {key.removeprefix("weights/"): value for key, value in tensors.items() if "/" in key}
    config = config_from_json(metadata["config"])
    assert isinstance(config, TextConfig)
    return Texts(config, json.loads(metadata["prompts"]), tensors, weights, FOLDER / f"{name}.tokenizer.json")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_embeddings_are_the_publishers(name, dtype, bound):
    theirs = read_texts(name)
    tower = convert_to_network(theirs.weights, theirs.config, label=name, dtype=dtype)
    graph, state = nnx.split(tower)

    @jax.jit
    def run(state, tokens, embedding):
        net = nnx.merge(graph, state)
        return net(tokens), net.embed_image(embedding)

    texts, images = run(state, theirs.tensors["tokens"], theirs.tensors["embedding"])
    assert relative_error(texts, theirs.tensors["texts"]) <= bound
    assert relative_error(images, theirs.tensors["images"]) <= bound
    assert tower.logit_scale[0] == theirs.weights["logit_scale"]


@pytest.mark.parametrize("name", KINDS)
def test_tokens_are_those_of_transformers(name):
    theirs = read_texts(name)
    tokens = Tokenizer(theirs.tokenizer, theirs.config, 79, name).encode(theirs.prompts)
    n = tokens.shape[1]
    assert (tokens == theirs.tensors["tokens"][:, :n]).all() and not theirs.tensors["tokens"][:, n:].any()
    assert n == 79 or theirs.config.kind == "bert"  # CONCH's class token stands at a fixed place


def test_a_vocabulary_is_a_tokenizer_too(tmp_path):
    theirs = read_texts("text_bert")
    vocabulary = json.loads(theirs.tokenizer.read_text())["model"]["vocab"]
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)) + "\n")
    ours, other = (Tokenizer(p, theirs.config, 79, "tiny") for p in (path, theirs.tokenizer))
    assert (ours.encode(theirs.prompts) == other.encode(theirs.prompts)).all()


@pytest.mark.parametrize("name", ["keep", "conch-v1"])
def test_a_row_describes_its_text_tower(name):
    text = CATALOG[name].text
    folded = 2 * text.config.dim if text.config.kind == "bert" else 0  # the embeddings of the two texts
    assert count_parameters(build_abstract(text.config)) + folded == text.parameters
    assert config_from_json(config_to_json(text.config)) == text.config


# ------------------------------------------------------------------------- from a checkpoint to words

VIT = ViTConfig(patch=8, dim=10, depth=1, heads=2, mlp_width=16, image_size=16, layer_scale=True)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, no_hub: None) -> Texts:
    """Put a tiny model in the catalog, published as KEEP is."""
    theirs = read_texts("text_bert")
    row = vit_row(
        "tiny-words",
        "A tiny model",
        VIT,
        "lab/tiny-words",
        licence="CC-BY-4.0",
        citation="Nobody, 2026",
        parameters=10_000,
        input_size=16,
        normalisation=IMAGENET,
        text=TextRow(theirs.config, 10_000, 40, ("vocab.txt", "tokenizer.json")),
    )
    monkeypatch.setitem(catalog.CATALOG, row.name, row)
    return theirs


@pytest.fixture
def checkpoint(model: Texts, tmp_path: Path) -> Path:
    vision = {f"visual.{name}": value for name, value in make_vit_tensors(VIT).items()}
    save_file(vision | model.weights, path := tmp_path / "published.safetensors")
    return path


def test_one_checkpoint_gives_both_towers(model, checkpoint):
    words = load_image_text("tiny-words", weights=checkpoint, tokenizer=model.tokenizer)
    texts = words.embed_texts(model.prompts)
    np.testing.assert_allclose(texts, model.tensors["texts"], atol=1e-5)
    # More than are embedded at once, in another order, one by one: the same.
    np.testing.assert_allclose(words.embed_texts([*model.prompts[::-1]] * 9)[-3:], texts[::-1], atol=1e-6)
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    embedded = words.embed_images(images)
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, atol=1e-6)
    assert words.scale == pytest.approx(np.exp(model.weights["logit_scale"]))
    # The class token behind the last norm, through KEEP's head.
    network = convert_to_network(make_vit_tensors(VIT), VIT, label="tiny")
    mean, std = (np.asarray(values, np.float32) for values in IMAGENET)
    pooled = np.asarray(network.features(jnp.asarray((images / np.float32(255) - mean) / std)))[:, 0]
    w = model.weights
    hidden = pooled @ w["visual_head.0.weight"].T + w["visual_head.0.bias"]
    hidden = np.asarray(jax.nn.gelu(hidden, approximate=False))
    expected = hidden @ w["visual_head.2.weight"].T + w["visual_head.2.bias"]
    np.testing.assert_allclose(embedded, expected / np.linalg.norm(expected, axis=1)[:, None], atol=1e-5)
    assert [name.partition("-")[0] == "text" for name in list_cache_files()] == [False, True]


def test_checkpoint_and_tokenizer_are_fetched_once(model, checkpoint, monkeypatch):
    """The file that the repository lacks is not missed, and without a network it is said what to bring."""
    told = get_error_line(lambda: load_image_text("tiny-words"))
    assert "its tokenizer is not here" in told and "give the file with --tokenizer FILE here" in told
    told = get_error_line(lambda: load_image_text("tiny-words", tokenizer=model.tokenizer))
    assert "its weights are not here" in told and "give the file with --weights FILE here" in told
    published = {"model.safetensors": checkpoint.read_bytes(), "tokenizer.json": model.tokenizer.read_bytes()}
    with serve(hub := StandInHub(files={"lab/tiny-words": published})):
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        first = load_image_text("tiny-words").embed_texts(model.prompts)
        assert len(hub.list_downloads()) == 2
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert (load_image_text("tiny-words").embed_texts(model.prompts) == first).all()


def test_what_is_no_model_of_words_is_one_line(model, checkpoint, tmp_path):
    def says(name="tiny-words", weights=checkpoint, tokenizer=model.tokenizer):
        return get_error_line(lambda: load_image_text(name, weights=weights, tokenizer=tokenizer))

    assert "he-small has no text tower" in says("he-small") and "keep or conch-v1" in says("uni")
    save_file(make_vit_tensors(VIT), plain := tmp_path / "plain.safetensors")
    assert f"{plain} for the text tower of tiny-words: the keys" in says(weights=plain)
    save_file(make_resnet_tensors(ResNetConfig("basic", (1,) * 4)), other := tmp_path / "r.safetensors")
    assert "none of the layouts" in says(weights=other)
    assert "no such file: give a published checkpoint" in says(weights=tmp_path / "none")
    load_image_text("tiny-words", weights=checkpoint, tokenizer=model.tokenizer)
    cached = sorted(find_cache_folder().rglob("*-float32.safetensors"))
    assert "holds the vision tower alone: give the published checkpoint" in says(weights=cached[0])
    told = get_error_line(lambda: load_encoder("tiny-words", weights=cached[1]))
    assert "holds a text tower, not an encoder" in told


def test_a_wrong_tokenizer_is_one_line(model, checkpoint, tmp_path):
    def says(content):
        path = tmp_path / "tokenizer.json"
        path.write_text(content)
        return get_error_line(lambda: Tokenizer(path, model.config, 40, "tiny"))

    whole = model.tokenizer.read_text()
    assert (
        "not a tokenizer" in says("")
        and "not a tokenizer" in says("[]")
        and "not a tokenizer" in says(whole[:99])
    )
    content = json.loads(whole)
    vocabulary = content["model"]["vocab"]
    renamed = {name if name != "lymphoma" else "lymphomas": i for name, i in vocabulary.items()}
    content["model"]["vocab"] = renamed
    assert "cuts words of pathology in pieces" in says(json.dumps(content))
    content["model"]["vocab"] = dict(list(vocabulary.items())[:-1])
    assert f"a tokenizer of {len(vocabulary) - 1} tokens, and tiny's has" in says(json.dumps(content))
    missing = get_error_line(lambda: Tokenizer(tmp_path / "none.json", model.config, 40, "tiny"))
    assert "no such file: give tiny's tokenizer.json" in missing


def test_prompts_that_the_tower_would_not_read_whole_are_refused(model):
    tokenizer = Tokenizer(model.tokenizer, model.config, 10, "tiny")
    assert "has 26 tokens, and tiny reads 10" in get_error_line(lambda: tokenizer.encode(model.prompts))
    assert "has a letter that tiny does not know" in get_error_line(lambda: tokenizer.encode(["間質"]))
