"""Read safetensors files: the header is checked against the file before anything is allocated.

The safetensors library is called for reading here alone.
"""

import json
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from safetensors import safe_open

MAX_HEADER_BYTES = 16 << 20  # some hundred thousand tensors
_MAX_DIMENSIONS = 32
_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}

T = TypeVar("T")


class BrokenFileError(ValueError):
    """A file that is no safetensors file, or is damaged or truncated; the message says how."""


class TensorEntry(NamedTuple):
    """A tensor as the header describes it."""

    dtype: str  # in the words of safetensors, such as "F32"
    shape: tuple[int, ...]
    begin: int  # its first byte, counted from the start of the data
    end: int  # the byte after its last


class TensorHeader(NamedTuple):
    """The header of a safetensors file."""

    metadata: dict[str, str]
    entries: dict[str, TensorEntry]  # by name, in the order of the file
    start: int  # the byte of the file where the data begin


@dataclass(frozen=True)
class Tensors:
    """An open safetensors file, whose tensors are read one at a time."""

    header: TensorHeader
    _file: Any  # safetensors gives it no type

    def get(self, name: str) -> np.ndarray:
        """Read one tensor.

        Raises:
            KeyError: The file has no tensor of this name.
            BrokenFileError: The library cannot read it.
        """
        if name not in self.header.entries:
            raise KeyError(name)
        tensor: np.ndarray = _call_library(lambda: self._file.get_tensor(name))
        return tensor


def read_header(path: str | Path) -> TensorHeader:
    """Read the header of a safetensors file, and check each size in it against the size of the file.

    Raises:
        BrokenFileError: The file is damaged, or no safetensors file.
        OSError: The file cannot be read.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise BrokenFileError("its header is as long as that of no safetensors file")
        try:
            content = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise BrokenFileError("its header is no JSON") from error
    if not isinstance(content, dict):
        raise BrokenFileError("its header is no table")
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BrokenFileError("its metadata are no text")
    start = 8 + length
    entries = {name: _parse_entry(name, fields, size - start) for name, fields in content.items()}
    return TensorHeader(metadata, entries, start)


@contextmanager
def open_tensors(path: str | Path) -> Iterator[Tensors]:
    """Open a safetensors file for reading, once its header is checked.

    Raises:
        BrokenFileError: The file is damaged, or no safetensors file.
        OSError: The file cannot be read.
    """
    header = read_header(path)
    file = _call_library(lambda: safe_open(str(path), framework="numpy"))
    with file:
        yield Tensors(header, file)


def _parse_entry(name: str, fields: Any, size: int) -> TensorEntry:
    """Parse and check what a header says of one tensor, in a file with ``size`` bytes of data."""
    try:
        dtype, shape, (begin, end) = fields["dtype"], tuple(fields["shape"]), fields["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenFileError(f"its header does not say where {name[:80]!r} is") from error
    are_counts = all(type(number) is int and number >= 0 for number in (begin, end, *shape))
    if not (are_counts and isinstance(dtype, str) and len(shape) <= _MAX_DIMENSIONS and begin <= end <= size):
        raise BrokenFileError(f"{name[:80]!r} does not fit into it")
    if dtype in _ITEM_BYTES and prod(shape) * _ITEM_BYTES[dtype] != end - begin:
        raise BrokenFileError(f"{name[:80]!r} is not as large as its shape says")
    return TensorEntry(dtype, shape, begin, end)


def _call_library(call: Callable[[], T]) -> T:
    """Call the safetensors library, and raise whatever goes wrong in it as ``BrokenFileError``."""
    try:
        return call()
    except (KeyboardInterrupt, OSError):
        raise
    except BaseException as error:  # Rust's panics are no Exception
        text = " ".join(str(error).split())[:200]
        raise BrokenFileError(text or type(error).__name__) from error
