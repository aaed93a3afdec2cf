"""Open TIFF files with tifffile, on a disk or at an address, and read their bytes."""

import os
from pathlib import Path
from typing import Any

import tifffile

from fseg_jax.files.addresses import RemotePath
from fseg_jax.files.remote import RemoteFile


def open_tiff(path: Path, **options: Any) -> Any:
    """Open a TIFF as a ``tifffile.TiffFile``.

    Args:
        path: Its path or address.
        **options: Of ``tifffile.TiffFile``.

    Raises:
        InputError: Nothing can be read from the address.
        OSError: The file cannot be read.
        tifffile.TiffFileError: It is no TIFF, or damaged.
    """
    if not isinstance(path, RemotePath):
        return tifffile.TiffFile(path, **options)
    remote: Any = RemoteFile(path)
    tiff: Any = tifffile.TiffFile(remote, **options)
    tiff.remote = remote
    return tiff


def read_at(tiff: Any, offset: int, count: int) -> bytes:
    """Read ``count`` bytes of an open TIFF from a place of it; several threads may at once.

    Raises:
        InputError: The store at its address does not answer.
        OSError: The file cannot be read there, or ends before.
    """
    remote: RemoteFile | None = getattr(tiff, "remote", None)
    data = remote.read_at(offset, count) if remote else os.pread(tiff.filehandle.fileno(), count, offset)
    if len(data) < count:
        raise OSError("the file ends before its pixels do")
    return data
