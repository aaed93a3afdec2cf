"""Checkpoints, whole and broken, and the files made of them."""

import errno
import json
import os
import pickle
import struct
import subprocess
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from fixtures import fixture, relative_error
from safetensors import safe_open
from safetensors.numpy import save_file

from fseg_jax.encoders.architectures import build_abstract, fill_network, list_tensors
from fseg_jax.encoders.catalog import published as catalog
from fseg_jax.encoders.resnet.network import ResNetConfig
from fseg_jax.encoders.vit.network import ViTConfig
from fseg_jax.encoders.weights import rules, weights_file
from fseg_jax.encoders.weights.checkpoint import open_checkpoint
from fseg_jax.encoders.weights.convert import convert_file, convert_to_network, list_layouts
from fseg_jax.errors import InputError
from weights_convert.__main__ import convert, main

VIT, RESNET = "vit_layer_scale_patch16_resampled", "resnet_bottleneck"


def published(folder: Path, name: str = VIT, **changes) -> Path:
    """A fixture's network as its publisher's file, with some tensors changed (None takes one away)."""
    tensors = {key: value for key, value in (fixture(name).weights | changes).items() if value is not None}
    path = folder / "published.safetensors"
    save_file(tensors, path)
    return path


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", [VIT, RESNET, "efficientnet_same", "swin_ctranspath_padded"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_checkpoint_becomes_a_file_that_loads_as_the_network(tmp_path, name, dtype):
    theirs = fixture(name)
    out = tmp_path / "deep" / "ours.safetensors"
    convert_file(published(tmp_path, name), out, theirs.config, name="some", dtype=dtype)
    loaded = weights_file.load(out, dtype=dtype)
    assert loaded.metadata["name"] == "some"
    assert json.loads(loaded.metadata["architecture"])["family"] == name.partition("_")[0]
    x = jnp.asarray(theirs.x)
    np.testing.assert_array_equal(loaded.network(x), theirs.network(dtype)(x))
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_the_file_is_safetensors_under_dotted_paths(tmp_path):
    out = tmp_path / "ours.safetensors"
    convert_file(published(tmp_path), out, fixture(VIT).config, name="some", dtype=jnp.bfloat16)
    with safe_open(out, framework="np") as file:
        assert file.metadata()["format"] == "fseg-jax-encoder"
        assert file.get_tensor("blocks.0.attn.qkv.kernel").dtype == jnp.bfloat16
        assert file.get_tensor("blocks.0.norm1.scale").dtype == np.float32


def test_float32_files_load_as_bfloat16_and_back(tmp_path):
    theirs = fixture(VIT)
    out = tmp_path / "ours.safetensors"
    convert_file(published(tmp_path), out, theirs.config, name="some")
    network = weights_file.load(out, dtype=jnp.bfloat16).network
    assert network.blocks[0].attn.qkv.kernel.dtype == jnp.bfloat16
    assert relative_error(network(jnp.asarray(theirs.x)), theirs.stages["head"]) <= 2e-2


def test_the_position_grid_is_the_checkpoints_own(tmp_path):
    theirs = fixture(VIT)
    elsewhere = type(theirs.config)(**{**vars(theirs.config), "image_size": 224})
    network = convert_to_network(theirs.weights, elsewhere, what="a checkpoint")
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
        convert_file(published(tmp_path, **changes), out, fixture(VIT).config, name="some")
    assert "published.safetensors for some" in one_line(error)
    assert [path.name for path in tmp_path.iterdir()] == ["published.safetensors"]


def test_another_familys_checkpoint_is_said_in_one_line(tmp_path, capsys):
    with pytest.raises(InputError, match="none of the layouts") as error:
        convert_file(published(tmp_path, RESNET), tmp_path / "o", fixture(VIT).config, name="some")
    one_line(error)


def test_another_networks_checkpoint_lists_no_more_than_a_few_keys(tmp_path):
    larger = ResNetConfig("bottleneck", (3, 4, 6, 3))
    with pytest.raises(InputError, match=r"lacks .* and \d+ more") as error:
        convert_file(published(tmp_path, RESNET), tmp_path / "o", larger, name="some")
    assert len(one_line(error)) < 500


@pytest.mark.parametrize("keep", [0, 5, 100, 10_000])
def test_a_truncated_checkpoint_is_said_in_one_line(tmp_path, keep):
    path = published(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="damaged or cut short") as error:
        convert_file(path, tmp_path / "o", fixture(VIT).config, name="some")
    one_line(error)
    assert not (tmp_path / "o").exists()


def test_no_checkpoint_is_said_in_one_line(tmp_path, capsys):
    with pytest.raises(InputError, match="no such file"):
        open_checkpoint(tmp_path / "none.safetensors")


def test_a_key_that_appears_twice_under_its_prefixes_is_refused(tmp_path):
    path = published(tmp_path, RESNET, **{"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)})
    with pytest.raises(InputError, match="keep one of them"):
        convert_file(path, tmp_path / "o", fixture(RESNET).config, name="some")


def test_keys_are_checked_before_a_tensor_is_read_and_each_is_read_when_its_turn_comes():
    theirs, read = fixture(VIT), []

    class Lazy(dict):
        def __getitem__(self, key):
            read.append(key)
            return super().__getitem__(key)

    places = list_tensors(build_abstract(theirs.config))
    tensors = rules.convert_tensors(
        Lazy(theirs.weights), list_layouts(theirs.config), places, what="a checkpoint"
    )
    assert read == []
    next(tensors)
    assert len(read) == 1
    assert sorted([next(iter(places)), *(name for name, _ in tensors)]) == sorted(places)


# torch's files


@pytest.mark.parametrize("beginning", [b"PK\x03\x04", b"\x80\x02"], ids=["zip", "pickle"])
def test_without_torch_a_pth_file_says_what_to_install(tmp_path, monkeypatch, beginning):
    path = tmp_path / "published.pth"
    path.write_bytes(beginning + bytes(100))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"pip install 'fseg-jax\[convert\]'") as error:
        open_checkpoint(path)
    one_line(error)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "teacher"])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_are_read_however_they_were_saved(tmp_path, wrapper, zipped):
    torch = pytest.importorskip("torch")
    theirs = fixture(VIT)
    tensors = {key: torch.from_numpy(value).to(torch.bfloat16) for key, value in theirs.weights.items()}
    path = tmp_path / "published.pth"
    saved = {wrapper: tensors, "epoch": 3} if wrapper else tensors
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    state = open_checkpoint(path)
    assert set(state) == set(theirs.weights)
    assert state["cls_token"].dtype == jnp.bfloat16
    convert_file(path, tmp_path / "ours.safetensors", theirs.config, name="some")


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_malicious_pickle_runs_nothing(tmp_path, monkeypatch, protocol):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "published.pth"
    path.write_bytes(pickle.dumps({"state_dict": Harmful()}, protocol=protocol))
    with pytest.raises(InputError, match="published") as error:
        open_checkpoint(path)
    one_line(error)
    assert not (tmp_path / "harm").exists()


def test_a_malicious_torch_file_runs_nothing(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "published.pth"
    torch.save({"state_dict": Harmful(), "w": torch.zeros(2)}, path)
    with pytest.raises(InputError, match=r"mkdir.*nothing else is loaded") as error:
        open_checkpoint(path)
    one_line(error)
    assert not (tmp_path / "harm").exists()


def test_what_a_trainer_saved_beside_the_weights_is_not_run(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    trainer = types.ModuleType("pytorch_lightning")
    trainer.Settings = type("Settings", (dict,), {"__module__": "pytorch_lightning"})
    trainer.Callback = type("Callback", (), {"__module__": "pytorch_lightning"})
    monkeypatch.setitem(sys.modules, "pytorch_lightning", trainer)
    path = tmp_path / "published.ckpt"
    settings = trainer.Settings(rate=0.1)
    saved = {
        "state_dict": {"w": torch.ones(2)},
        "hyper": settings,
        "callbacks": {trainer.Callback: {"best": 1}},
    }
    torch.save(saved, path)
    monkeypatch.delitem(sys.modules, "pytorch_lightning")
    np.testing.assert_array_equal(open_checkpoint(path)["w"], np.ones(2))


@pytest.mark.parametrize("keep", [0, 10, 2000])
def test_a_truncated_torch_file_is_said_in_one_line(tmp_path, keep):
    torch = pytest.importorskip("torch")
    path = tmp_path / "published.pth"
    torch.save({"w": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="published") as error:
        open_checkpoint(path)
    one_line(error)


# Our own files


_LOADS = """
import resource, sys
from pathlib import Path
import jax, jax.numpy as jnp
from fseg_jax.encoders.weights.weights_file import load
peak = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
jnp.zeros(1).block_until_ready()
before = peak()
network = load(Path(sys.argv[1]), dtype=jnp.bfloat16).network
jax.block_until_ready(jax.tree.leaves(network))
print((peak() - before) / Path(sys.argv[1]).stat().st_size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
def test_loading_takes_little_more_memory_than_the_weights(tmp_path):
    config = ViTConfig(patch=16, dim=1024, depth=12, heads=16, mlp_width=4096)
    places = list_tensors(build_abstract(config, dtype=jnp.bfloat16))
    tensors = ((name, np.zeros(place.shape, place.dtype)) for name, place in places.items())
    path = tmp_path / "large.safetensors"
    weights_file.write(path, config, places, tensors, name="large", source_sha256="0" * 64)
    assert path.stat().st_size > 3e8
    done = subprocess.run(
        [sys.executable, "-c", _LOADS, str(path)], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) <= 1.3


@pytest.fixture
def ours(tmp_path) -> Path:
    out = tmp_path / "ours.safetensors"
    convert_file(published(tmp_path), out, fixture(VIT).config, name="some")
    return out


@pytest.mark.parametrize("place", [-1, -5000])
def test_a_flipped_bit_is_found(ours, place):
    data = bytearray(ours.read_bytes())
    data[place] ^= 1
    ours.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        weights_file.load(ours)


@pytest.mark.parametrize("keep", [0, 4, 300, -1, -4000])
def test_a_file_cut_short_is_found(ours, keep):
    ours.write_bytes(ours.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"damaged|not a converted") as error:
        weights_file.load(ours)
    one_line(error)


def test_a_header_that_lies_about_its_length_is_found(ours):
    ours.write_bytes(struct.pack("<Q", 2**62) + ours.read_bytes()[8:])
    with pytest.raises(InputError, match="damaged"):
        weights_file.load(ours)


def test_a_publishers_file_is_not_taken_for_ours(tmp_path):
    with pytest.raises(InputError, match="not a converted encoder"):
        weights_file.load(published(tmp_path))


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    source = published(tmp_path)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "out" / "ours.safetensors"
    with pytest.raises(InputError, match="No space left") as error:
        convert_file(source, out, fixture(VIT).config, name="some")
    one_line(error)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors: tensors.pop("norm.scale"), "lacks norm.scale"),
        (lambda tensors: tensors.update(more=np.zeros(2)), "holds more"),
        (lambda tensors: tensors.update({"norm.scale": np.zeros(3)}), r"norm.scale is \(3,\)"),
    ],
)
def test_filling_is_a_bijection(change, says):
    config = fixture(VIT).config
    empty = build_abstract(config)
    tensors = {name: np.zeros(place.shape, place.dtype) for name, place in list_tensors(empty).items()}
    fill_network(empty, tensors, what="x")
    change(tensors)
    with pytest.raises(InputError, match=says):
        fill_network(build_abstract(config), tensors, what="x")


# The command


def test_the_command_converts_a_file(tmp_path, monkeypatch):
    theirs = fixture(RESNET)
    row = catalog.CATALOG["resnet50"]
    small = type(row)(**{**vars(row), "config": theirs.config})
    monkeypatch.setitem(catalog.CATALOG, "resnet50", small)
    out = tmp_path / "ours.safetensors"
    source = published(tmp_path, RESNET)
    result = CliRunner().invoke(convert, ["resnet50", "--checkpoint", str(source), "-o", str(out)])
    assert (result.exit_code, result.output) == (0, f"{out}\n")
    assert weights_file.load(out).metadata["name"] == "resnet50"


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    source = published(tmp_path, RESNET)
    with pytest.raises(SystemExit) as exit_:
        main(["uni", "--checkpoint", str(source), "-o", str(tmp_path / "o")])
    err = capsys.readouterr().err
    assert exit_.value.code == 2
    assert err.count("\n") == 1
