"""Published files: safetensors, torch's, and damaged or malicious ones."""

import os
import pickle
import sys
import types
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import FOLDER, read_fixture

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


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_before_1_6.pth"])
def test_both_formats_of_torch_are_read_without_it(name):
    """Views of one storage, a parameter, other types; beside them what a trainer saves, and its classes."""
    state = open_checkpoint(FOLDER / name)
    base = np.arange(24.0, dtype=np.float32).reshape(4, 6)
    expected = {
        "transposed": base.T[1:3],
        "columns": base[:, 2:4],
        "parameter": base,
        "bfloat16": base.astype(jnp.bfloat16)[1:],
        "half": base.astype(np.float16),
        "mask": base > 3,
        "count": np.asarray(3),
        "empty": np.zeros((0, 3), np.float32),
    }
    assert list(state) == list(expected)
    for key, value in expected.items():
        assert state[key].dtype == value.dtype
        np.testing.assert_array_equal(state[key], value)


def test_a_tensor_beyond_its_storage_is_not_read(tmp_path):
    """A stride of 6 (in the pickle: K\\x06) of the columns becomes 200: their last number is elsewhere."""
    data = (FOLDER / "torch_before_1_6.pth").read_bytes()
    shape, strides = b"K\x04K\x02\x86", b"K\x06K\x01\x86"
    assert data.count(shape) == 1
    at = data.index(strides, data.index(shape))
    path = tmp_path / "published.pth"
    path.write_bytes(data[:at] + b"K\xc8" + data[at + 2 :])
    with pytest.raises(InputError, match="beyond its storage") as error:
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


def write_harm(path, kind):
    """A pickle that makes a folder when it is loaded, alone or as torch would save it."""
    harm = {"state_dict": Harmful()}
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(harm, protocol=2))
        return
    head = [] if kind == "bare" else [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in (*head, harm)))


@pytest.mark.parametrize("kind", ["zip", "before 1.6", "bare"])
def test_a_malicious_pickle_runs_nothing(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "published.pth"
    write_harm(path, kind)
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


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_before_1_6.pth"])
@pytest.mark.parametrize("keep", [0, 10, 1000, 2500])
def test_a_truncated_torch_file_is_said_in_one_line(tmp_path, name, keep):
    path = tmp_path / "published.pth"
    path.write_bytes((FOLDER / name).read_bytes()[:keep])
    with pytest.raises(InputError, match="published") as error:
        open_checkpoint(path)
    one_line(error)
