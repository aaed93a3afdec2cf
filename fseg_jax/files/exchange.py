"""Exchange old outputs for new ones, so that the old or the new ones are whole whenever a run is killed.

New outputs are made in a folder ``.NAME.xxxxxxxx.partial`` beside the old ones. The exchange is decided when
that folder is renamed to ``.NAME.whole``. Before, all old outputs are in their places. After, all new ones
exist: in their places, or still in the folder, whose file ``.names`` lists them. Any run that finds such a
folder can finish the exchange, any number of times. A reader who waits for the record, the first of the
outputs, sees the old outputs, then no record, then the new outputs.
"""

import json
import os
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

_NAMES = ".names"  # the file that lists an exchange
_REPLACED = ".replaced"  # the folder for the old outputs
WHOLE = ".whole"  # suffix of a folder whose exchange is decided
PARTIAL = ".partial"  # suffix of a folder of unfinished outputs
TOKEN = 8  # random characters in the name of a partial folder


class _Exchange(NamedTuple):
    """What an exchange lists.

    Attributes:
        names: All outputs that are exchanged, the record first.
        new: Those of which there is a new one; the others are removed.
    """

    names: list[str]
    new: list[str]


def exchange_outputs(folder: Path, names: Sequence[str]) -> None:
    """Replace old outputs by the new ones in a partial folder; old ones without a new one are removed.

    Args:
        folder: The partial folder, which is removed.
        names: The outputs, as paths such as ``masks/a.png``. The first is the record: its old file is removed
            before all others, and its new one appears after them.
    """
    new = [name for name in names if (folder / name).exists()]
    for name in new:
        for path in _files_to_sync(folder / name):
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    write_synced(folder / _NAMES, json.dumps({"names": list(names), "made": new}).encode())
    sync_folder(folder)
    whole = folder.with_name(folder.name[: -len(PARTIAL) - TOKEN - 1] + WHOLE)
    folder.rename(whole)
    sync_folder(whole.parent)
    finish_exchange(whole)


def _files_to_sync(path: Path) -> list[Path]:
    """List an output's files, but not a Zarr's, which are synced as they are written."""
    if path.is_file():
        return [path]
    return [] if path.suffix == ".zarr" else [inside for inside in path.rglob("*") if inside.is_file()]


def finish_exchange(whole: Path) -> None:
    """Finish an exchange that was decided; a folder that lists no outputs is removed."""
    out = whole.parent
    exchange = _read_names(whole)
    waiting = {n for n in exchange.names if n not in exchange.new or os.path.lexists(whole / n)}
    for name in exchange.names:
        if name in waiting:
            _move_aside(out / name, whole / _REPLACED / name)
    for name in reversed(exchange.names):
        if name in waiting and name in exchange.new:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (whole / name).replace(out / name)
    sync_folder(out)
    done = whole.with_name(f"{whole.name[: -len(WHOLE)]}.{secrets.token_hex(TOKEN // 2)}{PARTIAL}")
    whole.rename(done)
    shutil.rmtree(done, ignore_errors=True)


def _move_aside(path: Path, place: Path) -> None:
    """Move an old output, if there is one, into the folder that is removed at the end."""
    if not os.path.lexists(path):
        return
    if place.is_dir() and not place.is_symlink():  # ``path`` was moved before, and has been made again since
        shutil.rmtree(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    path.replace(place)


def _read_names(whole: Path) -> _Exchange:
    """Read the list of an exchange; it is empty where it is missing, damaged, or names files elsewhere."""
    try:
        content = json.loads((whole / _NAMES).read_bytes())
        names, new = content["names"], content["made"]
        if all(".." not in PurePosixPath(n).parts and not n.startswith("/") for n in (*names, *new)):
            return _Exchange(names, new)
    except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError, AttributeError):
        pass
    return _Exchange([], [])


def write_synced(path: Path, data: bytes) -> None:
    """Write a file, and return once it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk, where the system can do that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
