"""What a safetensors file says of itself, held against what it is before anything is allocated; the one door
by which such files are read.
"""

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open

MAX_HEADER_BYTES = 16 << 20  # bytes of a header: some hundred thousand tensors
_DIMENSIONS = 32
_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


class BrokenFileError(ValueError):
    """A file is no safetensors file, or is damaged or cut short; the message says how."""


class TensorEntry(NamedTuple):
    """A tensor as the header has it: its bytes are ``begin`` to ``end`` of the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorHeader(NamedTuple):
    """What a file holds, in the order of the file, and where its data begin."""

    metadata: dict[str, str]
    entries: dict[str, TensorEntry]
    start: int


@dataclass(frozen=True)
class Tensors:
    """An open file: what its header says, and its tensors one at a time."""

    header: TensorHeader
    _file: Any

    def get(self, name: str) -> np.ndarray:
        """Read a tensor; raise ``KeyError`` where there is none of the name."""
        if name not in self.header.entries:
            raise KeyError(name)
        return _library(lambda: self._file.get_tensor(name))


def read_header(path: str | Path) -> TensorHeader:
    """Read what a safetensors file says of itself, and hold every size it states against the file's own.

    Raises ``BrokenFileError`` for one that is damaged or no such file, ``OSError`` for one that cannot be
    read.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise BrokenFileError("its header is as long as that of no safetensors file")
        try:
            said = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise BrokenFileError("its header is no JSON") from error
    if not isinstance(said, dict):
        raise BrokenFileError("its header is no table")
    metadata = said.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BrokenFileError("its metadata are no text")
    start = 8 + length
    entries = {name: _entry(name, given, size - start) for name, given in said.items()}
    return TensorHeader(metadata, entries, start)


@contextmanager
def open_tensors(path: str | Path) -> Iterator[Tensors]:
    """Open a safetensors file to read arrays of it, once its header is held against it.

    Raises ``BrokenFileError`` or ``OSError``, as ``read_header`` does.
    """
    header = read_header(path)
    file = _library(lambda: safe_open(str(path), framework="numpy"))
    with file:
        yield Tensors(header, file)


def _entry(name: str, given: Any, size: int) -> TensorEntry:
    """A tensor's place, of ``size`` bytes that there are."""
    try:
        dtype, shape, (begin, end) = given["dtype"], tuple(given["shape"]), given["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenFileError(f"its header does not say where {name[:80]!r} is") from error
    whole = all(type(number) is int and number >= 0 for number in (begin, end, *shape))
    if not (whole and isinstance(dtype, str) and len(shape) <= _DIMENSIONS and begin <= end <= size):
        raise BrokenFileError(f"{name[:80]!r} does not fit into it")
    if dtype in _BYTES and prod(shape) * _BYTES[dtype] != end - begin:
        raise BrokenFileError(f"{name[:80]!r} is not as large as its shape says")
    return TensorEntry(dtype, shape, begin, end)


def _library(call: Any) -> Any:
    """The result of a call of the library, which fails in several ways."""
    try:
        return call()
    except (KeyboardInterrupt, OSError):
        raise
    except BaseException as error:  # Rust's panics are no Exception
        text = " ".join(str(error).split())[:200]
        raise BrokenFileError(text or type(error).__name__) from error
