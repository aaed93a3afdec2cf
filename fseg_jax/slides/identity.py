"""The identity of a slide, whatever its path: a hash of its content, of which a part is read."""

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from xml.sax.saxutils import unescape

import numpy as np
import tifffile

from fseg_jax.errors import InputError, first_line
from fseg_jax.files.addresses import RemotePath, locate
from fseg_jax.files.paths import format_path
from fseg_jax.files.remote import RemoteFile
from fseg_jax.slides.dicom_series import find_series
from fseg_jax.slides.ome_zarr import ZarrPixels

PIECES, PIECE_BYTES = 16, 16 << 10  # what is hashed of a file; a smaller file is hashed whole
SAMPLED_ENTRIES = 4  # files, and folders, of each folder that are hashed
MAX_DEPTH = 8  # folders in folders
_INDEX_BYTES = 1 << 20  # read of a .vms or .vmu file, which lists the slide's other files
_ZARR_SIDE = 64  # pixels of a piece of a level
_TIFF_SUFFIXES = (".tif", ".tiff", ".tf2", ".tf8", ".btf")
_OME_FILE = re.compile(r'\b(?:FileName|MetadataFile)="([^"]+)"')
_LABELS = "labels"  # the folder of an OME-Zarr image for labels, which are not part of the slide

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class SlideFile:
    """Which slide a path and a content are of.

    Attributes:
        path: The slide's file, or folder.
        identity: Hash of its content (``identify``); None in records of earlier versions.
    """

    path: str
    identity: str | None


def identify(path: str | Path) -> str:
    """Hash a slide: SHA-256 of the size of its file and of sixteen pieces of 16 KiB, spread evenly over it.

    All files of a slide are hashed: an ``.mrxs`` and its folder, a ``.vms`` or ``.vmu`` and the files that it
    lists, a DICOM series, whatever its files are called, an OME-TIFF and four others of its set. In a folder,
    an OME-Zarr's too, all names are hashed, but only four files and four folders, evenly chosen; labels are
    left out.

    A file at an address has the hash that it has on a disk. Of an OME-Zarr there, whose files cannot be
    listed, the sizes of its levels and sixteen pieces of its coarsest one are hashed.

    Raises:
        InputError: The slide cannot be read.
    """
    path = locate(path)
    digest = hashlib.sha256()
    try:
        if isinstance(path, RemotePath):
            _add_remote(digest, path)
        elif series := find_series(path):
            for instance in series.instances:
                _add_file(digest, instance.file)
        elif path.is_dir():
            _add_folder(digest, path, MAX_DEPTH)
        else:
            _add_file(digest, path)
            for companion in _list_companions(path):
                if companion.is_dir():
                    _add_folder(digest, companion, MAX_DEPTH)
                else:
                    _add_file(digest, companion)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{format_path(path)}: cannot be read ({reason})") from None
    return digest.hexdigest()


def _add_remote(digest: Any, path: RemotePath) -> None:
    """Add what lies at an address to a hash: a file as ``_add_file`` does, or an OME-Zarr."""
    if path.suffix.lower() == ".zarr":
        _add_remote_zarr(digest, path)
        return
    file = RemoteFile(path)
    digest.update(b"%d:" % file.size)
    if file.size <= PIECES * PIECE_BYTES:
        digest.update(file.fetch(0, file.size))
        return
    with ThreadPoolExecutor(PIECES) as pool:
        for piece in pool.map(lambda start: file.fetch(start, PIECE_BYTES), _place_pieces(file.size)):
            digest.update(piece)


def _add_remote_zarr(digest: Any, path: RemotePath) -> None:
    pixels = ZarrPixels(path)
    level = len(pixels.shapes) - 1
    height, width = pixels.shapes[level]
    side_y, side_x = min(height, _ZARR_SIDE), min(width, _ZARR_SIDE)
    digest.update(repr(pixels.shapes).encode())
    for i, j in np.ndindex(4, 4):
        y, x = i * (height - side_y) // 3, j * (width - side_x) // 3
        digest.update(pixels.read(level, y, x, side_y, side_x).tobytes())


def _place_pieces(size: int) -> Iterator[int]:
    """Yield where the pieces of a file begin."""
    return (i * (size - PIECE_BYTES) // (PIECES - 1) for i in range(PIECES))


def is_same_slide(slide: SlideFile, other: SlideFile) -> bool:
    """Return whether two slides are the same by their identity, or by file name where one has no identity."""
    if slide.identity and other.identity:
        return slide.identity == other.identity
    return Path(slide.path).name == Path(other.path).name


def _list_companions(path: Path) -> Iterator[Path]:
    """List the other files and folders of a slide whose format has several."""
    suffix = path.suffix.lower()
    if suffix == ".mrxs" and path.with_suffix("").is_dir():
        yield path.with_suffix("")
    elif suffix in (".vms", ".vmu"):
        with path.open("rb") as file:
            names = re.findall(rb"=([^\r\n/\\\0]+)", file.read(_INDEX_BYTES))
        for name in sorted(set(names)):
            companion = path.parent / os.fsdecode(name.strip())
            if companion.is_file():
                yield companion
    elif suffix in _TIFF_SUFFIXES:
        yield from _list_ome_files(path)


def _list_ome_files(path: Path) -> Iterator[Path]:
    """List other files of an OME-TIFF's set: four at most, evenly chosen, of those that its header names."""
    try:
        with tifffile.TiffFile(path) as tiff:
            header = tiff.ome_metadata or ""
    except Exception as error:  # damage is found where the slide is opened
        _log.debug("%s: is not searched for other files of a set: %s", path, error)
        return
    names = {Path(unescape(name)).name for name in _OME_FILE.findall(header)} - {path.name}
    for name in _sample_evenly(sorted(names)):
        if (path.parent / name).is_file():
            yield path.parent / name


def _add_folder(digest: Any, folder: Path, depth: int) -> None:
    """Add the names in a folder to a hash, and some of its files and folders."""
    with os.scandir(folder) as scan:
        entries = sorted((entry for entry in scan if _is_hashed(entry.name)), key=lambda entry: entry.name)
    folders = [entry for entry in entries if entry.is_dir()]
    files = [entry for entry in entries if entry.is_file()]
    for kind in (folders, files):
        digest.update(b"\0".join([b"%d" % len(kind), *(os.fsencode(entry.name) for entry in kind)]))
    for entry in _sample_evenly(files):
        _add_file(digest, Path(entry.path))
    if depth:
        for entry in _sample_evenly(folders):
            _add_folder(digest, Path(entry.path), depth - 1)


def _is_hashed(name: str) -> bool:
    """Return whether an entry of a folder is part of the slide: not its labels, nor files like .DS_Store."""
    return name != _LABELS and (not name.startswith(".") or name.startswith(".z"))


def _sample_evenly(items: Sequence[T]) -> list[T]:
    if len(items) <= SAMPLED_ENTRIES:
        return list(items)
    return [items[i * (len(items) - 1) // (SAMPLED_ENTRIES - 1)] for i in range(SAMPLED_ENTRIES)]


def _add_file(digest: Any, path: Path) -> None:
    """Add a file's size and pieces of it to a hash."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(b"%d:" % size)
        if size <= PIECES * PIECE_BYTES:
            digest.update(file.read())
            return
        for start in _place_pieces(size):
            file.seek(start)
            digest.update(file.read(PIECE_BYTES))
