"""Read the tensors of a file that ``torch.save`` wrote, without torch.

There are two formats: since torch 1.6 a zip archive with a pickle, ``data.pkl``, and an uncompressed entry
for each storage; before, a row of pickles with the storages behind them. The pickle names torch's classes.
Those of tensors and containers have a stand-in each; what trainers save beside the weights (settings,
callbacks, optimizers) becomes an object that holds and does nothing; any other name is refused. Nothing is
looked up or run.
"""

import struct
import zipfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import ml_dtypes
import numpy as np

from fseg_jax.errors import InputError
from fseg_jax.files.restricted_pickle import BoundedStream, RestrictedUnpickler

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older format
_VERSION = 1001
_LOCAL_HEADER = 30  # bytes of a zip entry's header, without its name and extra field

_DTYPES: dict[str, Any] = {
    "Double": np.float64,
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
}
# Of these packages a checkpoint may hold anything, and no more than the tensors is taken.
_BESIDE = (
    "torch",
    "numpy",
    "collections",
    "argparse",
    "pathlib",
    "pytorch_lightning",
    "lightning",
    "lightning_fabric",
    "omegaconf",
    "_codecs",
)
_BESIDE_BUILTINS = ("set", "frozenset", "slice", "complex", "bytearray", "object")


class _Storage(NamedTuple):
    """A row of numbers in the file, of which tensors are views."""

    key: str
    dtype: np.dtype[Any]
    length: int


class StoredTensor:
    """A tensor of the pickle: a view of a storage."""

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any) -> None:
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides


class Place(NamedTuple):
    """The place of a tensor in the file, which holds it entirely."""

    start: int  # bytes
    span: int  # numbers from its first to its last
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # numbers

    def read(self, path: Path) -> np.ndarray:
        """Read the tensor from its file."""
        flat = np.fromfile(path, self.dtype, self.span, offset=self.start)
        if len(flat) < self.span:
            raise EOFError("the file is truncated")
        steps = [stride * self.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False)


class TorchFile(NamedTuple):
    """What a file holds: plain containers, and tensors that are read later."""

    content: Any  # a StoredTensor in the place of each tensor
    storages: dict[str, tuple[int, int]]  # first byte and number of bytes of each, by key

    def locate(self, tensor: StoredTensor) -> Place:
        """Find the place of a tensor; ValueError where the file does not hold all of it."""
        storage, offset, shape, strides = tensor.storage, tensor.offset, tensor.shape, tensor.strides
        if not (isinstance(storage, _Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)):
            raise ValueError("a tensor that is none")
        numbers = (offset, *shape, *strides)
        if len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError("a tensor of no shape")
        steps = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        count = 1 + steps if all(shape) else 0
        start, size = self.storages[storage.key]
        itemsize = storage.dtype.itemsize
        # A view that repeats its numbers could be of any size.
        if prod(shape) > storage.length or (offset + count) * itemsize > min(size, storage.length * itemsize):
            raise ValueError("a tensor beyond its storage")
        return Place(start + offset * itemsize, count, storage.dtype, shape, strides)


def read_torch_file(path: Path) -> TorchFile:
    """Read what a file of torch holds, without the numbers of its tensors.

    Raises:
        InputError: it names what a checkpoint has no need of; nothing was run. A damaged file can raise
            almost anything.
    """
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        return _read_archive(file) if is_archive else _read_pickles(file)


class _Record(dict[Any, Any]):
    """A stand-in for ``collections.OrderedDict``, which Python 2 fills by its argument."""

    def __init__(self, pairs: Any = ()) -> None:
        super().__init__()
        for key, value in pairs:
            if not isinstance(key, str | int):
                raise ValueError("a key that is no name")
            self[key] = value


class _Beside:
    """A stand-in for all that is not the weights: it takes anything, and keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Beside":
        return super().__new__(cls)

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Take an item."""

    def extend(self, values: Any) -> None:
        """Take items."""


def _view_storage(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StoredTensor:
    return StoredTensor(storage, offset, shape, strides)


def _unwrap(tensor: Any, *_: Any) -> Any:
    return tensor


class _TensorUnpickler(RestrictedUnpickler):
    """An unpickler of tensors and containers; ``seen`` are the storages by their keys."""

    key_types: ClassVar[tuple[type, ...]] = (str, int, float, type(None), type, _Beside)

    def __init__(self, stream: BoundedStream) -> None:
        super().__init__(stream)
        self.seen: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Look up a stand-in for a name; InputError where a checkpoint has no need of it."""
        if (module, name) == ("collections", "OrderedDict"):
            return _Record
        if module == "torch" and name.endswith("Storage") and name.removesuffix("Storage") in _DTYPES:
            return np.dtype(_DTYPES[name.removesuffix("Storage")])
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _view_storage
        if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return _unwrap
        if module.partition(".")[0] in _BESIDE:
            return _Beside
        if module in ("builtins", "__builtin__") and name in _BESIDE_BUILTINS:
            return _Beside
        raise InputError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        """Note a storage that the pickle refers to."""
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or not (isinstance(key, str) and isinstance(dtype, np.dtype) and count >= 0):
            raise ValueError("no storage")
        if any(part is not None for part in view):
            raise ValueError("a storage that is a view of another")
        storage = _Storage(key, dtype, count)
        if self.seen.setdefault(key, storage) != storage:
            raise ValueError("a storage of two kinds")
        return storage

    def ignore_state(self) -> None:
        """Run the opcode BUILD: no object here has a state."""
        self.stack.pop()  # type: ignore[attr-defined]

    dispatch: ClassVar[dict[int, Any]] = {**RestrictedUnpickler.dispatch, ord("b"): ignore_state}


def _read_archive(file: BinaryIO) -> TorchFile:
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        pickled = next(name for name in entries if name.rpartition("/")[2] == "data.pkl")
        folder = pickled.removesuffix("data.pkl")
        if archive.read(f"{folder}byteorder") != b"little" if f"{folder}byteorder" in entries else False:
            raise ValueError("numbers of another byte order")
        if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
            raise ValueError("compressed entries")
        with archive.open(pickled) as data:
            unpickler = _TensorUnpickler(BoundedStream(data))  # type: ignore[arg-type]
            content = unpickler.load()
        storages = {key: _find_entry(file, entries[f"{folder}data/{key}"]) for key in unpickler.seen}
    return TorchFile(content, storages)


def _find_entry(file: BinaryIO, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """Find the first byte and the number of bytes of an uncompressed entry."""
    file.seek(entry.header_offset)
    name, extra = struct.unpack("<26x2H", file.read(_LOCAL_HEADER))
    start = entry.header_offset + _LOCAL_HEADER + name + extra
    if start + entry.file_size > file.seek(0, 2):
        raise ValueError("an entry beyond the end of the file")
    return start, entry.file_size


def _read_pickles(file: BinaryIO) -> TorchFile:
    stream = BoundedStream(file)
    magic, version, machine = (RestrictedUnpickler(stream).load() for _ in range(3))
    if (magic, version) != (_MAGIC, _VERSION):
        raise ValueError("no file of torch")
    if not (isinstance(machine, Mapping) and machine.get("little_endian") is True):
        raise ValueError("numbers of another byte order")
    unpickler = _TensorUnpickler(stream)
    content = unpickler.load()
    storages: dict[str, tuple[int, int]] = {}
    for key in RestrictedUnpickler(stream).load():
        (count,) = struct.unpack("<q", stream.read(8))
        size = count * unpickler.seen[key].dtype.itemsize
        if not 0 <= size <= stream.count_left():
            raise ValueError("a storage beyond the end of the file")
        storages[key] = file.tell(), size
        file.seek(size, 1)
    return TorchFile(content, storages)
