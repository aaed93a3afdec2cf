"""Open TIFF files with tifffile, on a disk or at an address, and read their bytes."""

import os
from pathlib import Path
from typing import Any

import tifffile

from fseg_jax.files.addresses import RemotePath
from fseg_jax.files.remote import RemoteFile


def open_tiff(file: Path | RemoteFile, **options: Any) -> Any:
    """Open a TIFF as a ``tifffile.TiffFile``.

    Args:
        file: Its path or address, or the file at an address.
        **options: Of ``tifffile.TiffFile``.

    Raises:
        InputError: Nothing can be read from the address.
        OSError: The file cannot be read.
        tifffile.TiffFileError: It is no TIFF, or damaged.
    """
    if isinstance(file, RemotePath):
        file = RemoteFile(file)
    if not isinstance(file, RemoteFile):
        return tifffile.TiffFile(file, **options)
    remote: Any = file
    tiff: Any = tifffile.TiffFile(remote, **options)
    tiff.remote = remote
    return tiff


def open_slide_tiff(file: Path | RemoteFile) -> Any:
    """Open a TIFF that may be a slide, as a ``tifffile.TiffFile``.

    Raises:
        InputError: Nothing can be read from the address.
        Exception: The file cannot be read, is no TIFF, or damaged.
    """
    tiff = open_tiff(file)
    first: Any = tiff.pages[0]
    if tiff.is_imagej and (first.is_tiled or first.compression != 1):
        # Not ImageJ's own: Bio-Formats writes its description, whose counts mislead, over any TIFF.
        tiff.is_imagej = False
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
