"""Arrays written as a safetensors file: the one door to that library's writer."""

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
    """Write named arrays and what is said of them to a safetensors file, which appears whole or not at all.

    Arrays may lie in memory in any order: the library writes memory as it lies, whatever the shape says, so
    each is laid out row by row first. Raises ``OutputError`` where the file cannot be written.
    """
    laid_out = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    data = save(laid_out, dict(metadata) if metadata else None)
    with replace_atomically(path) as part:
        Path(part).write_bytes(data)
