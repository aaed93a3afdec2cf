"""Write safetensors files: the library's writer is called here alone."""

import os
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
    data = save(row_major, dict(metadata) if metadata else None)
    with replace_atomically(path) as part:
        Path(part).write_bytes(data)
