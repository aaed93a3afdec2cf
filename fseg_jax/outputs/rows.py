"""A Zarr 3 group of one large array, which is written row by row, and of small arrays.

The group's attributes hold its provenance under ``fseg``. They are written last, so that no reader takes an
interrupted group for a finished one.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from fseg_jax.errors import InputError, OutputError
from fseg_jax.files.futures import wait_for_store, wait_for_writes
from fseg_jax.files.zarr import create_array, open_array, write_group

_CHUNK_BYTES = 4 << 20
_SMALL_BYTES = 64 << 20  # an array or a chunk up to this size is read, however small its files are
_MAX_COMPRESSION = 4096  # how many times larger than its files an array may be


class RowsWriter:
    """A group that is being written, with one chunk of rows in memory."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        name: str,
        shape: tuple[int, ...],
        dtype: Any,
        *,
        small_arrays: Mapping[str, np.ndarray],
        provenance: dict[str, Any],
    ) -> None:
        """Make the group's folder, and write the small arrays.

        Args:
            path: The folder, which must not exist yet.
            name: Name of the large array.
            shape: Shape of the large array, of any rank.
            dtype: Type of the large array.
            small_arrays: The small arrays, by name.
            provenance: What the group was made with, as JSON.

        Raises:
            InputError: The folder exists.
            OutputError: The group cannot be written.
        """
        self._path = Path(path).absolute()
        self._provenance = provenance
        try:
            self._path.mkdir(parents=True)
        except FileExistsError:
            raise InputError(f"{path} exists already; remove it or write somewhere else") from None
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror})") from None
        row = int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
        rows = min(max(1, _CHUNK_BYTES // row), shape[0])
        self._store = create_array(self._path / name, shape, dtype, (rows, *shape[1:]))
        self._chunk = np.empty((rows, *shape[1:]), dtype)
        self._filled = self._written = 0
        for key, array in small_arrays.items():
            sides = {1: (65536,), 2: (1024, 1024), 3: (1024, 1024, 3)}[array.ndim]
            chunk = tuple(min(s, size) for s, size in zip(sides, array.shape, strict=True))
            if array.ndim == 2 and array.shape[1] <= 4:  # a table, not an image
                chunk = (min(65536, array.shape[0]), array.shape[1])
            store = create_array(self._path / key, array.shape, array.dtype, chunk)
            wait_for_writes(self._path, store.write(array))

    def append(self, rows: np.ndarray) -> None:
        """Add the next rows: (m, …), any m.

        Raises:
            InputError: A value does not fit in the array's type.
            OutputError: The rows cannot be written.
        """
        while len(rows):
            n = min(len(rows), len(self._chunk) - self._filled)
            part = self._chunk[self._filled : self._filled + n]
            with np.errstate(over="ignore"):
                part[:] = rows[:n]
            self._check(part)
            self._filled += n
            rows = rows[n:]
            if self._filled == len(self._chunk):
                self._flush()

    def _check(self, part: np.ndarray) -> None:
        """Raise ``InputError`` where rows do not survive the conversion to the array's type."""

    def _flush(self) -> None:
        end = self._written + self._filled
        if end > self._store.shape[0]:
            raise ValueError(f"more than the {self._store.shape[0]} rows of {self._path.name}")
        wait_for_writes(self._path, self._store[self._written : end].write(self._chunk[: self._filled]))
        self._written, self._filled = end, 0

    def close(self) -> None:
        """Finish the group.

        Raises:
            ValueError: Rows are missing.
            OutputError: The group cannot be written.
        """
        if self._filled:
            self._flush()
        if self._written < self._store.shape[0]:
            raise ValueError(
                f"{self._written} of {self._store.shape[0]} rows of {self._path.name} were given"
            )
        write_group(self._path, {"fseg": self._provenance})


class Rows(NamedTuple):
    """A finished group.

    Attributes:
        rows: The large array, a tensorstore whose values have not been read.
        small_arrays: The small arrays, by name.
        provenance: What the group was made with.
    """

    rows: Any
    small_arrays: dict[str, np.ndarray]
    provenance: dict[str, Any]


def open_rows(
    kvstore: dict[str, Any], name: str, small_names: tuple[str, ...], *, where: str | None = None
) -> Rows:
    """Open a finished group, and read its small arrays.

    Args:
        kvstore: tensorstore's ``kvstore`` spec of the group's folder.
        name: Name of the large array.
        small_names: Names of the small arrays.
        where: What the folder is called in messages; its path by default.

    Raises:
        LookupError: There is no group, or it was never finished.
        OSError: It cannot be read.
        TypeError: Its metadata are damaged.
        ValueError: Its metadata are damaged, or state larger arrays than its files can hold.
    """
    try:
        where = where or kvstore["path"]
        (group,) = wait_for_store(where, ts.KvStore.open(kvstore))
        (metadata,) = wait_for_store(where, group.read("zarr.json"))
        if metadata.state != "value":
            raise LookupError("zarr.json is not there")
        provenance = json.loads(metadata.value, parse_constant=_refuse_constant)["attributes"]["fseg"]

        def open_checked(key: str) -> Any:
            array_spec = {**kvstore, "path": f"{kvstore['path']}{key}/"}
            (store,) = wait_for_store(where, open_array(array_spec))
            _check_size(store, array_spec, key, where)
            return store

        def read(key: str) -> np.ndarray:
            store = open_checked(key)
            (values,) = wait_for_store(where, store.read(), size=_count_bytes(store))
            return np.asarray(values)

        return Rows(open_checked(name), {key: read(key) for key in small_names}, provenance)
    except RuntimeError as error:  # tensorstore's errors, and JSON that is nested too deep
        raise ValueError(str(error)) from error


def _refuse_constant(constant: str) -> None:
    """Raise ``ValueError`` for NaN and infinities, which Python's JSON accepts."""
    raise ValueError(f"zarr.json holds {constant}")


def _count_bytes(store: Any) -> int:
    return int(math.prod(store.shape) * store.dtype.numpy_dtype.itemsize)


def _check_size(store: Any, kvstore: dict[str, Any], key: str, where: str) -> None:
    """Raise ``ValueError`` where an array, or a chunk of it, is stated far larger than its files can hold."""
    item = store.dtype.numpy_dtype.itemsize
    stated, chunk = (math.prod(shape) * item for shape in (store.shape, store.chunk_layout.read_chunk.shape))
    limit = _SMALL_BYTES
    if stated > limit and kvstore["driver"] == "file":
        files = (path for path in Path(kvstore["path"]).rglob("*") if path.is_file())
        limit += _MAX_COMPRESSION * sum(path.stat().st_size for path in files)
    elif stated > limit:  # a bucket lists its chunks without their sizes
        (folder,) = wait_for_store(where, ts.KvStore.open(kvstore))
        (chunks,) = wait_for_store(where, folder.list())
        limit += _MAX_COMPRESSION * len(chunks) * 1024
    if stated > limit or chunk > max(stated, _SMALL_BYTES):
        raise ValueError(f"{key} states a shape of {'×'.join(map(str, store.shape))}, and holds little")
