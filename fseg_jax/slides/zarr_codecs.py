"""Zarr arrays of codecs that tensorstore does not have, read by zarr-python through tensorstore's cache."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from fseg_jax.errors import InputError, first_line
from fseg_jax.files.paths import is_folder

# What tensorstore has, of Zarr v2 and of Zarr v3.
_COMPRESSORS = ("blosc", "bz2", "gzip", "zlib", "zstd")
_CODECS = ("blosc", "bytes", "crc32c", "gzip", "sharding_indexed", "transpose", "zstd")
_INSTALL = "pip install 'fseg-jax[zarr]'"


def is_read_by_tensorstore(header: dict[str, Any]) -> bool:
    """Return whether tensorstore has the codecs of an array, by its ``.zarray`` or ``zarr.json``."""
    if header.get("zarr_format") == 3:
        return all(codec.get("name") in _CODECS for codec in _list_codecs(header.get("codecs") or []))
    compressor = header.get("compressor")
    return not header.get("filters") and (compressor is None or compressor.get("id") in _COMPRESSORS)


def open_with_zarr(path: Path, key: str, context: ts.Context) -> ts.TensorStore:
    """Open an array with zarr-python.

    Args:
        path: The Zarr: a folder or a zip archive.
        key: Where the array is in it.
        context: Of tensorstore; its cache holds decoded chunks.

    Raises:
        InputError: A package is not installed, or does not have the codec either.
    """
    try:
        import imagecodecs.numcodecs
        import zarr
    except ImportError:
        raise InputError(
            f"{path}: its chunks are compressed as only zarr-python reads them, which is missing: {_INSTALL}"
        ) from None
    imagecodecs.numcodecs.register_codecs(verbose=False)
    try:
        store = path if is_folder(path) else zarr.storage.ZipStore(path, mode="r")
        array = zarr.open_array(store, path=key, mode="r")
    except Exception as error:
        raise InputError(
            f"{path}: level {key} is compressed in a way that is not read ({first_line(error)})"
        ) from None
    chunks = [min(chunk, side) for chunk, side in zip(array.chunks, array.shape, strict=True)]
    if math.prod(chunks) == 0:
        raise InputError(f"{path}: level {key} is empty")

    def read(domain: ts.IndexDomain, out: np.ndarray, parameters: Any) -> None:
        out[...] = array[domain.index_exp]

    return ts.virtual_chunked(
        read,
        dtype=array.dtype,
        shape=list(array.shape),
        chunk_layout=ts.ChunkLayout(read_chunk_shape=chunks),
        context=context,
    )


def _list_codecs(codecs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """List codecs, and those within shards."""
    within = [codec["configuration"]["codecs"] for codec in codecs if codec.get("name") == "sharding_indexed"]
    return codecs + [codec for inner in within for codec in _list_codecs(inner)]
