"""Published checkpoint files: read one tensor at a time, and never as an unrestricted pickle."""

import argparse
import hashlib
import importlib
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from fseg_jax.errors import InputError
from fseg_jax.files.kinds import describe_kind
from fseg_jax.files.tensor_reader import BrokenFileError, read_header

# The keys under which trainers save the network.
_WRAPPERS = ("state_dict", "model", "teacher", "model_state_dict", "module")
# Trainers save settings and callbacks beside the network, objects of their own classes. Those classes are
# neither looked up nor run.
_TRAINERS = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.")

# Beginnings of the lines of torch's messages that do not say the reason.
_ADVICE = (
    "Weights only load failed",
    "Please file an issue",
    "WeightsUnpickler error:",
    "Check the doc",
    "(",
)


class Checkpoint(Mapping[str, np.ndarray]):
    """A file's tensors by the publisher's key; a tensor is read when it is asked for."""

    def __init__(self, path: Path, names: tuple[str, ...], read: Callable[[str], np.ndarray]):
        self.path = path
        self._names = dict.fromkeys(names)
        self._read = read

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self._names:
            raise KeyError(key)
        return self._read(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a published file: safetensors directly, any other through torch's restricted loader.

    Raises:
        InputError: There is no such file; it is cut short or damaged; it holds anything but tensors and plain
            containers (nothing of it is run); or it needs torch, and torch is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file: give the checkpoint's path")
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_torch(path)


def hash_file(path: Path) -> str:
    """Compute the SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_safetensors(path: Path) -> Checkpoint:
    try:
        read_header(path)
        file: Any = safe_open(str(path), framework="np")
        names = tuple(file.keys())
    except (BrokenFileError, SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged or cut short ({_shorten(error)}): fetch it again") from error

    def read(key: str) -> np.ndarray:
        try:
            return np.asarray(file.get_tensor(key))
        except (SafetensorError, TypeError, ValueError) as error:  # a dtype that numpy lacks
            raise InputError(f"{path}: {key} cannot be read ({_shorten(error)}): fetch it again") from error

    return Checkpoint(path, names, read)


def _open_torch(path: Path) -> Checkpoint:
    kind = describe_kind(path)
    if not ("pickle" in kind or "PyTorch" in kind or "another kind" in kind):
        raise InputError(f"{path}: {kind}, not a checkpoint: give the published file")
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise InputError(
            f"{path}: a PyTorch file, and torch is not installed: pip install 'fseg-jax[convert]'"
        ) from error
    tensors = _find_state_dict(path, _load(path, torch), torch)

    def read(key: str) -> np.ndarray:
        tensor = tensors[key].detach()
        if tensor.dtype == torch.bfloat16:
            return np.asarray(tensor.contiguous().view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
        return np.asarray(tensor.contiguous().numpy())

    return Checkpoint(path, tuple(tensors), read)


def _load(path: Path, torch: Any) -> Any:
    with torch.serialization.safe_globals(_list_stand_ins(path, torch)):
        try:
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:
                # Files of the format before torch 1.6 cannot be mapped.
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise InputError(
                f"{path}: not a file of tensors alone ({_shorten(error)}), and nothing else is loaded: "
                "save its state_dict, or get it as safetensors"
            ) from error
        except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            raise InputError(f"{path}: damaged or cut short ({_shorten(error)}): fetch it again") from error


def _list_stand_ins(path: Path, torch: Any) -> list[Any]:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # no zip archive, or a damaged one: loading says which
        names = []
    # A plain dictionary takes the place of each class: it holds what it is given, and does nothing.
    stand_ins = [(OrderedDict, name) for name in names if name.startswith(_TRAINERS)]
    return [argparse.Namespace, *stand_ins]


def _find_state_dict(path: Path, loaded: Any, torch: Any) -> dict[str, Any]:
    while isinstance(loaded, Mapping):
        inner = next((loaded[name] for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, Mapping):
        raise InputError(
            f"{path}: a {type(loaded).__name__}, not a state_dict: save the network's state_dict"
        )
    tensors = {key: value for key, value in loaded.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise InputError(f"{path}: no tensors in it: give the network's checkpoint")
    return tensors


def _shorten(error: BaseException) -> str:
    """Shorten another library's error to its first sentence, to be part of a line."""
    lines = [line.strip() for line in str(error).splitlines()]
    # torch puts its advice, to load the file all the same, around the reason.
    reasons = [line for line in lines if line and not line.startswith(_ADVICE)]
    text = reasons[0] if reasons else type(error).__name__
    return text.split(". ", 1)[0][:160].rstrip(".")
