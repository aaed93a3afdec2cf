"""Published checkpoint files: read one tensor at a time, and never as an unrestricted pickle."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from fseg_jax.encoders.weights.torch_file import StoredTensor, read_torch_file
from fseg_jax.errors import InputError
from fseg_jax.files.kinds import describe_kind
from fseg_jax.files.tensor_reader import BrokenFileError, read_header

# The keys under which trainers save the network.
_WRAPPERS = ("state_dict", "model", "teacher", "model_state_dict", "module")


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
    """Open a published file, of safetensors or of torch.

    Raises:
        InputError: There is no such file; it is cut short or damaged; or it holds anything but tensors and
            plain containers (nothing of it is run).
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
        raise _damaged(path, error) from error

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
        file = read_torch_file(path)
    except InputError as error:
        raise InputError(
            f"{path}: not a file of tensors alone ({error}), and nothing else is loaded: "
            "save its state_dict, or get it as safetensors"
        ) from error
    except Exception as error:  # a damaged pickle can raise almost anything
        raise _damaged(path, error) from error
    tensors = _find_state_dict(path, file.content)
    try:
        places = {key: file.locate(tensor) for key, tensor in tensors.items()}
    except (ValueError, LookupError) as error:
        raise _damaged(path, error) from error

    def read(key: str) -> np.ndarray:
        try:
            return places[key].read(path)
        except (OSError, EOFError) as error:
            raise _damaged(path, error) from error

    return Checkpoint(path, tuple(places), read)


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: damaged or cut short ({_shorten(error)}): fetch it again")


def _find_state_dict(path: Path, loaded: Any) -> dict[str, StoredTensor]:
    while isinstance(loaded, Mapping):
        inner = next((loaded[name] for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, Mapping):
        raise InputError(
            f"{path}: a {type(loaded).__name__}, not a state_dict: save the network's state_dict"
        )
    tensors = {
        key: value
        for key, value in loaded.items()
        if isinstance(key, str) and isinstance(value, StoredTensor)
    }
    if not tensors:
        raise InputError(f"{path}: no tensors in it: give the network's checkpoint")
    return tensors


def _shorten(error: BaseException) -> str:
    """Shorten another library's error to its first sentence, to be part of a line."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text.split(". ", 1)[0][:160].rstrip(".")
