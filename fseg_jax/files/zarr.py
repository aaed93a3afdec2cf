"""Zarr 3 arrays and groups on disk, through tensorstore: the one place that says how they are laid out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import DTypeLike

from fseg_jax.files.atomic import replace_atomically
from fseg_jax.files.futures import wait_for_writes

_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_LEVEL = 3  # of Zstandard
_CRC32C = {"name": "crc32c"}


def make_store_path(path: Path) -> str:
    """Make a path absolute and free of ``..``, which tensorstore refuses; links before one are followed."""
    return str(path.resolve() if ".." in path.parts else path.absolute())


def make_folder_spec(path: Path) -> dict[str, Any]:
    """Describe a folder on disk as tensorstore wants it: a ``kvstore`` of the driver ``file``.

    tensorstore locks no file: a folder that is written is one program's alone (``partial_folders``), and on a
    file system without locks, a cluster's often, nothing else could be written.
    """
    return {"driver": "file", "path": f"{make_store_path(path)}/", "file_io_locking": {"mode": "none"}}


def open_array(kvstore: dict[str, Any]) -> Any:
    """Begin to open an array for reading: a future of a tensorstore, whose values are not read yet."""
    return ts.open({"driver": "zarr3", "kvstore": kvstore}, read=True)


def create_array(
    path: Path,
    shape: Sequence[int],
    dtype: DTypeLike,
    chunk: Sequence[int],
    *,
    shard: Sequence[int] | None = None,
    dimension_names: Sequence[str] | None = None,
    compress: bool = True,
    level: int = _LEVEL,
    store_zeros: bool = False,
    error_path: Path | None = None,
) -> Any:
    """Create an array in a folder that is not there yet, and return its tensorstore.

    Args:
        path: The array's folder.
        shape: Its shape.
        dtype: Its type, little-endian on disk.
        chunk: The shape of what is compressed, and read, in one piece.
        shard: The shape of what is one file; a chunk is where there is none.
        dimension_names: A name for each axis.
        compress: Whether chunks are compressed, with Zstandard.
        level: How hard: from 1 to 22.
        store_zeros: Whether chunks of zeros have files too.
        error_path: What is said to be unwritable; the folder that holds the array otherwise.

    Raises:
        OutputError: The disk is full, read-only or not there.
    """
    zstd = {"name": "zstd", "configuration": {"level": level, "checksum": False}}
    codecs: list[dict[str, Any]] = [_BYTES, zstd] if compress else [_BYTES]
    if shard is not None:
        sharding = {"chunk_shape": [*chunk], "codecs": codecs, "index_codecs": [_BYTES, _CRC32C]}
        codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    grid = {"name": "regular", "configuration": {"chunk_shape": [*(shard or chunk)]}}
    metadata = {
        "shape": [*shape],
        "data_type": np.dtype(dtype).name,
        "fill_value": 0,
        "chunk_grid": grid,
        "codecs": codecs,
    }
    if dimension_names is not None:
        metadata["dimension_names"] = [*dimension_names]
    spec = {
        "driver": "zarr3",
        "kvstore": make_folder_spec(path),
        "metadata": metadata,
        "create": True,
        "store_data_equal_to_fill_value": store_zeros,
    }
    (array,) = wait_for_writes(error_path or path.parent, ts.open(spec))
    return array


def write_group(path: Path, attributes: dict[str, Any], *, ascii_only: bool = False) -> None:
    """Write a group's metadata, after everything that it holds: a folder without them is no group.

    Raises ``OutputError`` where they cannot be written, ``ValueError`` for a NaN or an infinity among them.
    """
    with replace_atomically(path / "zarr.json") as part:
        part.write_text(encode_group(attributes, ascii_only=ascii_only), encoding="utf-8")


def encode_group(attributes: dict[str, Any], *, ascii_only: bool = False) -> str:
    """Encode a group's metadata, the content of its ``zarr.json``."""
    content = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return json.dumps(content, indent=1, ensure_ascii=ascii_only, allow_nan=False)


def name_last_file(key: str) -> str:
    """Return the key that is written last: of a Zarr, its ``zarr.json``."""
    return f"{key}/zarr.json" if key.endswith(".zarr") else key
