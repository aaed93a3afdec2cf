"""Which slide a file is, wherever it lies and whatever it is called: a hash of its content, read in part."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fseg_jax.errors import InputError, first_line
from fseg_jax.files.paths import format_path

PIECES, PIECE_BYTES = 16, 16 << 10  # of a file; a smaller one is read whole
ENTRIES_READ = 4  # files and folders of each folder that are looked into
MAX_DEPTH = 8  # folders in folders
_INDEX_BYTES = 1 << 20  # of a file that lists others
_LABELS = "labels"  # of an OME-Zarr image: what is made of it

T = TypeVar("T")


def identify(path: str | Path) -> str:
    """Hash a slide: SHA-256 of the size of each of its files and of sixteen pieces of each, from first byte
    to last, 256 KiB in all.

    A slide of several files is all of them: an ``.mrxs`` and its folder, a ``.vms`` or ``.vmu`` and what it
    lists, an OME-Zarr folder (the names in it, and of each folder four files and four folders, evenly
    chosen; not its labels). Raises ``InputError`` where it cannot be read.
    """
    path = Path(path)
    digest = hashlib.sha256()
    try:
        if path.is_dir():
            _add_folder(digest, path, MAX_DEPTH)
        else:
            _add_file(digest, path)
            for companion in _companions(path):
                if companion.is_dir():
                    _add_folder(digest, companion, MAX_DEPTH)
                else:
                    _add_file(digest, companion)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{format_path(path)}: cannot be read ({reason})") from None
    return digest.hexdigest()


def is_same_slide(held: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two slides, as ``publish.slide_facts`` states them, are one; by the names of their files where
    one of them was stated before slides had an identity, or could not be read.
    """
    ours, theirs = held.get("identity"), now.get("identity")
    if ours and theirs:
        return ours == theirs
    return Path(held["path"]).name == Path(now["path"]).name


def _companions(path: Path) -> Iterator[Path]:
    """The other files and folders of a slide whose formats have several."""
    suffix = path.suffix.lower()
    if suffix == ".mrxs" and path.with_suffix("").is_dir():
        yield path.with_suffix("")
    elif suffix in (".vms", ".vmu"):
        with path.open("rb") as file:
            listed = re.findall(rb"=([^\r\n/\\\0]+)", file.read(_INDEX_BYTES))
        for name in sorted(set(listed)):
            beside = path.parent / os.fsdecode(name.strip())
            if beside.is_file():
                yield beside


def _add_folder(digest: Any, folder: Path, depth: int) -> None:
    with os.scandir(folder) as found:
        inside = sorted((entry for entry in found if _counts(entry.name)), key=lambda entry: entry.name)
    folders = [entry for entry in inside if entry.is_dir()]
    files = [entry for entry in inside if entry.is_file()]
    for kind in (folders, files):
        digest.update(b"\0".join([b"%d" % len(kind), *(os.fsencode(entry.name) for entry in kind)]))
    for entry in _evenly(files):
        _add_file(digest, Path(entry.path))
    if depth:
        for entry in _evenly(folders):
            _add_folder(digest, Path(entry.path), depth - 1)


def _counts(name: str) -> bool:
    """Whether something in a folder belongs to the slide, not to whoever looked at it."""
    return name != _LABELS and (not name.startswith(".") or name.startswith(".z"))


def _evenly(items: Sequence[T]) -> list[T]:
    if len(items) <= ENTRIES_READ:
        return list(items)
    return [items[i * (len(items) - 1) // (ENTRIES_READ - 1)] for i in range(ENTRIES_READ)]


def _add_file(digest: Any, path: Path) -> None:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(b"%d:" % size)
        if size <= PIECES * PIECE_BYTES:
            digest.update(file.read())
            return
        for i in range(PIECES):
            file.seek(i * (size - PIECE_BYTES) // (PIECES - 1))
            digest.update(file.read(PIECE_BYTES))
