"""Checkpoints to files of ours and to networks, and checkpoints that do not fit."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import read_fixture, relative_error, write_published
from flax import nnx
from safetensors import safe_open

from fseg_jax.encoders import weight_rules as rules
from fseg_jax.encoders.architectures import build_abstract, list_tensors
from fseg_jax.encoders.resnet.network import ResNetConfig
from fseg_jax.encoders.weights import weights_file
from fseg_jax.encoders.weights.convert import convert_file, convert_to_network, list_layouts
from fseg_jax.errors import InputError

VIT, RESNET = "vit_layer_scale_patch16_resampled", "resnet_bottleneck"


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", [VIT, RESNET, "efficientnet_same", "swin_ctranspath_padded"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_checkpoint_becomes_a_file_that_loads_as_the_network(tmp_path, name, dtype):
    theirs = read_fixture(name)
    out = tmp_path / "deep" / "ours.safetensors"
    convert_file(write_published(tmp_path, name), out, theirs.config, name="some", dtype=dtype)
    loaded = weights_file.load(out, dtype=dtype)
    assert loaded.metadata["name"] == "some"
    assert json.loads(loaded.metadata["architecture"])["family"] == name.partition("_")[0]
    expected = theirs.network(dtype)
    assert loaded.network.config == expected.config
    ours, wanted = (nnx.to_flat_state(nnx.state(network)) for network in (loaded.network, expected))
    assert [path for path, _ in ours] == [path for path, _ in wanted]
    for (path, value), (_, other) in zip(ours, wanted, strict=True):
        assert value.get_value().dtype == other.get_value().dtype, path
        np.testing.assert_array_equal(value.get_value(), other.get_value(), err_msg=str(path))
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_the_file_is_safetensors_under_dotted_paths(tmp_path):
    out = tmp_path / "ours.safetensors"
    convert_file(
        write_published(tmp_path, VIT), out, read_fixture(VIT).config, name="some", dtype=jnp.bfloat16
    )
    with safe_open(out, framework="np") as file:
        assert file.metadata()["format"] == "fseg-jax-encoder"
        assert file.get_tensor("blocks.0.attn.qkv.kernel").dtype == jnp.bfloat16
        assert file.get_tensor("blocks.0.norm1.scale").dtype == np.float32


def test_float32_files_load_as_bfloat16_and_back(tmp_path):
    theirs = read_fixture(VIT)
    out = tmp_path / "ours.safetensors"
    convert_file(write_published(tmp_path, VIT), out, theirs.config, name="some")
    network = weights_file.load(out, dtype=jnp.bfloat16).network
    assert network.blocks[0].attn.qkv.kernel.dtype == jnp.bfloat16
    assert relative_error(network(jnp.asarray(theirs.x)), theirs.stages["head"]) <= 2e-2


def test_the_position_grid_is_the_checkpoints_own(tmp_path):
    theirs = read_fixture(VIT)
    elsewhere = type(theirs.config)(**{**vars(theirs.config), "image_size": 224})
    network = convert_to_network(theirs.weights, elsewhere, label="a checkpoint")
    assert network.config == theirs.config


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"blocks.1.ls2.gamma": None}, "lacks blocks.1.ls2.gamma"),
        ({"blocks.7.norm1.weight": np.zeros(3, np.float32)}, "holds blocks.7.norm1.weight"),
        ({"blocks.0.mlp.fc1.weight": np.zeros((5, 12), np.float32)}, r"fc1.weight \(5, 12\) does not fit"),
        ({"blocks.0.mlp.fc1.weight": np.zeros(5, np.float32)}, r"fc1.weight \(5,\) does not fit"),
        ({"patch_embed.proj.weight": np.zeros((12, 3, 8, 8), np.float32)}, "does not fit"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_said_in_one_line(tmp_path, changes, says):
    out = tmp_path / "ours.safetensors"
    with pytest.raises(InputError, match=says) as error:
        convert_file(write_published(tmp_path, VIT, **changes), out, read_fixture(VIT).config, name="some")
    assert "published.safetensors for some" in one_line(error)
    assert [path.name for path in tmp_path.iterdir()] == ["published.safetensors"]


def test_another_familys_checkpoint_is_said_in_one_line(tmp_path, capsys):
    with pytest.raises(InputError, match="none of the layouts") as error:
        convert_file(write_published(tmp_path, RESNET), tmp_path / "o", read_fixture(VIT).config, name="some")
    one_line(error)


def test_another_networks_checkpoint_lists_no_more_than_a_few_keys(tmp_path):
    larger = ResNetConfig("bottleneck", (3, 4, 6, 3))
    with pytest.raises(InputError, match=r"lacks .* and \d+ more") as error:
        convert_file(write_published(tmp_path, RESNET), tmp_path / "o", larger, name="some")
    assert len(one_line(error)) < 500


@pytest.mark.parametrize("keep", [0, 5, 100, 10_000])
def test_a_truncated_checkpoint_is_said_in_one_line(tmp_path, keep):
    path = write_published(tmp_path, VIT)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="damaged or cut short") as error:
        convert_file(path, tmp_path / "o", read_fixture(VIT).config, name="some")
    one_line(error)
    assert not (tmp_path / "o").exists()


def test_a_key_that_appears_twice_under_its_prefixes_is_refused(tmp_path):
    path = write_published(tmp_path, RESNET, **{"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)})
    with pytest.raises(InputError, match="keep one of them"):
        convert_file(path, tmp_path / "o", read_fixture(RESNET).config, name="some")


def _name_as_keep(weights):
    named = {re.sub("(ls[12]).gamma", r"\1.weight", name): value for name, value in weights.items()}
    others = {name: np.zeros(1) for name in ("visual_head.0.weight", "text.pooler", "logit_scale")}
    return {**{f"visual.{name}": value for name, value in named.items()}, **others}


@pytest.mark.parametrize(
    ("fixture", "rename"),
    [
        (VIT, _name_as_keep),
        ("vit_plain_patch8", lambda weights: {f"encoder.{name}": value for name, value in weights.items()}),
        (
            "vit_plain_patch8",
            lambda weights: {
                **{f"module.backbone.{name}": value for name, value in weights.items()},
                "module.head.mlp.0.weight": np.zeros(1),
            },
        ),
        (
            "vit_swiglu_registers_patch14",
            lambda weights: {
                **{f"backbone.{name}": value for name, value in weights.items()},
                "head.P": np.zeros(1),
            },
        ),
        (
            "vit_transformers_dinov2",
            lambda weights: {f"model.encoder_inside.{name}": value for name, value in weights.items()},
        ),
    ],
    ids=["keep", "sp22m", "hipt", "mettle", "phaet"],
)
def test_a_network_under_the_names_of_one_that_holds_it_is_that_network(fixture, rename):
    theirs = read_fixture(fixture)
    found = convert_to_network(rename(theirs.weights), theirs.config, label="another's")
    for ours, wanted in zip(
        jax.tree.leaves(nnx.state(found)), jax.tree.leaves(nnx.state(theirs.network())), strict=True
    ):
        np.testing.assert_array_equal(ours, wanted)


def test_keys_are_checked_before_a_tensor_is_read_and_each_is_read_when_its_turn_comes():
    theirs, read = read_fixture(VIT), []

    class Lazy(dict):
        def __getitem__(self, key):
            read.append(key)
            return super().__getitem__(key)

    places = list_tensors(build_abstract(theirs.config))
    tensors = rules.convert_tensors(
        Lazy(theirs.weights), list_layouts(theirs.config), places, label="a checkpoint"
    )
    assert read == []
    next(tensors)
    assert len(read) == 1
    assert sorted([next(iter(places)), *(name for name, _ in tensors)]) == sorted(places)
