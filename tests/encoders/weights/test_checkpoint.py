"""Published files: safetensors, torch's, and damaged or malicious ones."""

import os
import pickle
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import read_fixture

from fseg_jax.encoders.weights.checkpoint import open_checkpoint
from fseg_jax.encoders.weights.convert import convert_file
from fseg_jax.errors import InputError

VIT = "vit_layer_scale_patch16_resampled"


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_checkpoint_is_said_in_one_line(tmp_path, capsys):
    with pytest.raises(InputError, match="no such file"):
        open_checkpoint(tmp_path / "none.safetensors")


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
    theirs = read_fixture(VIT)
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
