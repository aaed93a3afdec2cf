"""Outputs exchanged for those that were there: wherever a kill falls, the old ones or the new ones are whole.

Finished outputs lie in a folder of their own, ``.NAME.xxxxxxxx.partial``, beside the places they are to have.
Its new name, ``.NAME.whole``, decides. Before that, all old outputs are in their places. After it, all new
ones are there, in their places or still in that folder, whose file ``.names`` says what goes where; so
whoever finds such a folder can finish what was begun, any number of times. A reader who waits for the record,
the first of the outputs, sees the old ones, then no record, then the new ones.
"""

import json
import os
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

_NAMES = ".names"  # what is exchanged: all names, the record's first, and those of which there is a new one
_REPLACED = ".replaced"  # a folder for what was there
WHOLE = ".whole"
PARTIAL = ".partial"
TOKEN = 8  # characters of a partial folder's own


def exchange(folder: Path, names: Sequence[str]) -> None:
    """Give what a partial folder holds of ``names`` their places beside it, in place of all that was there.

    A name may lie in a subfolder, as ``masks/a.png``. The first, the record, goes before all others and comes
    after them. What the folder held is gone from there; what it replaced is in it.
    """
    made = [name for name in names if (folder / name).exists()]
    for name in made:
        for path in _files(folder / name):
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    write_synced(folder / _NAMES, json.dumps({"names": list(names), "made": made}).encode())
    sync_folder(folder)
    whole = folder.with_name(folder.name[: -len(PARTIAL) - TOKEN - 1] + WHOLE)
    folder.rename(whole)
    sync_folder(whole.parent)
    complete(whole)


def _files(path: Path) -> list[Path]:
    """The files to sync: not a Zarr's, which are synced as they are written."""
    if path.is_file():
        return [path]
    return [] if path.suffix == ".zarr" else [inside for inside in path.rglob("*") if inside.is_file()]


def complete(whole: Path) -> None:
    """Finish an exchange that was decided on; what nobody decided on is removed."""
    out = whole.parent
    names, made = _decided(whole)
    waiting = {name for name in names if name not in made or os.path.lexists(whole / name)}
    for name in names:
        if name in waiting:
            _set_aside(out / name, whole / _REPLACED / name)
    for name in reversed(names):
        if name in waiting and name in made:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (whole / name).replace(out / name)
    sync_folder(out)
    done = whole.with_name(f"{whole.name[: -len(WHOLE)]}.{secrets.token_hex(TOKEN // 2)}{PARTIAL}")
    whole.rename(done)
    shutil.rmtree(done, ignore_errors=True)


def _set_aside(path: Path, place: Path) -> None:
    if not os.path.lexists(path):
        return
    if place.is_dir() and not place.is_symlink():  # something came to be there since it was last set aside
        shutil.rmtree(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    path.replace(place)


def _decided(whole: Path) -> tuple[list[str], list[str]]:
    """What an exchange is of, and of which of it there is a new one; nothing where that is not said."""
    try:
        said = json.loads((whole / _NAMES).read_bytes())
        names, made = said["names"], said["made"]
        if all(".." not in PurePosixPath(n).parts and not n.startswith("/") for n in (*names, *made)):
            return names, made
    except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError, AttributeError):
        pass
    return [], []


def write_synced(path: Path, data: bytes) -> None:
    """Write a file, and have it on the disk before returning."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the system can do that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
