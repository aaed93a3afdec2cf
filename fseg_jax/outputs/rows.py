"""A Zarr 3 group with one large array, written row after row in one pass, and small ones beside it.

What it was made with is in the group's attributes under ``fseg``. They are written last, so that an
interrupted group is none to any reader.
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
_SMALL_BYTES = 64 << 20  # of an array, or a chunk, whatever its files hold
_SQUEEZED = 4096  # times its files' size that an array can have


class RowsWriter:
    """Write an array of any rank as its rows come, one chunk of them in memory.

    ``path`` is a folder that does not exist yet; ``name`` and ``shape`` are the large array's; ``beside`` the
    small ones, written at once. Raises ``OutputError`` where the group cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        name: str,
        shape: tuple[int, ...],
        dtype: Any,
        *,
        beside: Mapping[str, np.ndarray],
        provenance: dict[str, Any],
    ) -> None:
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
        for key, array in beside.items():
            sides = {1: (65536,), 2: (1024, 1024), 3: (1024, 1024, 3)}[array.ndim]
            chunk = tuple(min(s, size) for s, size in zip(sides, array.shape, strict=True))
            if array.ndim == 2 and array.shape[1] <= 4:  # a table, not a picture
                chunk = (min(65536, array.shape[0]), array.shape[1])
            store = create_array(self._path / key, array.shape, array.dtype, chunk)
            wait_for_writes(self._path, store.write(array))

    def append(self, rows: np.ndarray) -> None:
        """Add the next rows: (m, …), any m."""
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
        """Refuse rows that do not survive being stored."""

    def _flush(self) -> None:
        end = self._written + self._filled
        if end > self._store.shape[0]:
            raise ValueError(f"more than the {self._store.shape[0]} rows of {self._path.name}")
        wait_for_writes(self._path, self._store[self._written : end].write(self._chunk[: self._filled]))
        self._written, self._filled = end, 0

    def close(self) -> None:
        """Finish the group. Raises ValueError while rows are missing."""
        if self._filled:
            self._flush()
        if self._written < self._store.shape[0]:
            raise ValueError(
                f"{self._written} of {self._store.shape[0]} rows of {self._path.name} were given"
            )
        write_group(self._path, {"fseg": self._provenance})


class Rows(NamedTuple):
    """A finished group: ``rows`` is a tensorstore of which nothing has been read."""

    rows: Any
    beside: dict[str, np.ndarray]
    provenance: dict[str, Any]


def open_rows(
    kvstore: dict[str, Any], name: str, beside: tuple[str, ...], *, where: str | None = None
) -> Rows:
    """Open a finished group, where ``kvstore`` tells tensorstore it is; its small arrays are read.

    ``where`` is what the place is called where it does not answer.

    Raises OSError, ValueError, LookupError or TypeError where there is none, one that was never finished, or
    one that states sizes which what is stored cannot have.
    """
    try:
        where = where or kvstore["path"]
        (group,) = wait_for_store(where, ts.KvStore.open(kvstore))
        (found,) = wait_for_store(where, group.read("zarr.json"))
        if found.state != "value":
            raise LookupError("zarr.json is not there")
        provenance = json.loads(found.value, parse_constant=_refuse)["attributes"]["fseg"]

        def array(key: str) -> Any:
            place = {**kvstore, "path": f"{kvstore['path']}{key}/"}
            (store,) = wait_for_store(where, open_array(place))
            _check_size(store, place, key, where)
            return store

        def held(key: str) -> np.ndarray:
            store = array(key)
            (values,) = wait_for_store(where, store.read(), size=_bytes(store))
            return values

        return Rows(array(name), {key: held(key) for key in beside}, provenance)
    except RuntimeError as error:  # tensorstore's, and of JSON that nests too deep
        raise ValueError(str(error)) from error


def _refuse(constant: str) -> None:
    raise ValueError(f"zarr.json holds {constant}")


def _bytes(store: Any) -> int:
    return math.prod(store.shape) * store.dtype.numpy_dtype.itemsize


def _check_size(store: Any, kvstore: dict[str, Any], key: str, where: str) -> None:
    """Raise ValueError where an array, or a chunk of it, would be far larger than its files can make it."""
    item = store.dtype.numpy_dtype.itemsize
    stated, chunk = (math.prod(shape) * item for shape in (store.shape, store.chunk_layout.read_chunk.shape))
    held = _SMALL_BYTES
    if stated > held and kvstore["driver"] == "file":
        held += _SQUEEZED * sum(p.stat().st_size for p in Path(kvstore["path"]).rglob("*") if p.is_file())
    elif stated > held:  # a bucket tells no sizes, only how many chunks there are
        (folder,) = wait_for_store(where, ts.KvStore.open(kvstore))
        (chunks,) = wait_for_store(where, folder.list())
        held += _SQUEEZED * len(chunks) * 1024
    if stated > held or chunk > max(stated, _SMALL_BYTES):
        raise ValueError(f"{key} states a shape of {'×'.join(map(str, store.shape))}, and holds little")
