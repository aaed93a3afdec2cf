"""Write safetensors files: the library's writer is called here alone."""

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from safetensors.numpy import save

from fseg_jax.files.atomic import replace_atomically


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, ArrayLike], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays and metadata to a safetensors file, which appears whole or not at all.

    Args:
        path: The file.
        tensors: The arrays, by name. They may have any memory layout.
        metadata: Texts, by key, that the header also holds.

    Raises:
        OutputError: The file cannot be written.
    """
    # The library copies memory as it lies, whatever the array's strides: each array is made row-major first.
    row_major = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    data = _sort_metadata(save(row_major, dict(metadata) if metadata else None))
    with replace_atomically(path) as part:
        Path(part).write_bytes(data)


def _sort_metadata(data: bytes) -> bytes:
    """Sort the metadata in the header of a safetensors file by key.

    The library writes them in another order in every process, and equal contents must give equal files.
    """
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    if "__metadata__" not in header:
        return data
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # arrays begin at a multiple of 8 bytes
    return struct.pack("<Q", len(text)) + text + data[8 + length :]
