"""Exchange outputs for those that were there: wherever a kill falls, the old or the new ones are whole.

Finished outputs lie in a folder of their own, ``.NAME.xxxxxxxx.partial``, beside the places they are to have.
Its new name, ``.NAME.whole``, decides. Before that, all old outputs are in their places. After it, all new
ones exist, in their places or still in that folder, whose file ``.names`` says what goes where. So whoever
finds such a folder can finish the exchange, any number of times. A reader who waits for the record, the first
of the outputs, sees the old ones, then no record, then the new ones.
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
    names: list[str]  # all outputs that are exchanged, the record first
    made: list[str]  # those of which there is a new one


def exchange_outputs(folder: Path, names: Sequence[str]) -> None:
    """Move what a partial folder holds of ``names`` beside it, in place of all that was there.

    A name may lie in a subfolder, as ``masks/a.png``. The first, the record, goes before all others and comes
    after them. What the folder held is then gone from it.
    """
    made = [name for name in names if (folder / name).exists()]
    for name in made:
        for path in _files_to_sync(folder / name):
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    write_synced(folder / _NAMES, json.dumps({"names": list(names), "made": made}).encode())
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
    """Finish an exchange that was decided on; a folder that lists none is removed."""
    out = whole.parent
    exchange = _read_names(whole)
    waiting = {n for n in exchange.names if n not in exchange.made or os.path.lexists(whole / n)}
    for name in exchange.names:
        if name in waiting:
            _set_aside(out / name, whole / _REPLACED / name)
    for name in reversed(exchange.names):
        if name in waiting and name in exchange.made:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (whole / name).replace(out / name)
    sync_folder(out)
    done = whole.with_name(f"{whole.name[: -len(WHOLE)]}.{secrets.token_hex(TOKEN // 2)}{PARTIAL}")
    whole.rename(done)
    shutil.rmtree(done, ignore_errors=True)


def _set_aside(path: Path, place: Path) -> None:
    if not os.path.lexists(path):
        return
    if place.is_dir() and not place.is_symlink():  # ``path`` was set aside before, and was made again since
        shutil.rmtree(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    path.replace(place)


def _read_names(whole: Path) -> _Exchange:
    """Read what an exchange lists: nothing where the list is missing, damaged, or names files elsewhere."""
    try:
        content = json.loads((whole / _NAMES).read_bytes())
        names, made = content["names"], content["made"]
        if all(".." not in PurePosixPath(n).parts and not n.startswith("/") for n in (*names, *made)):
            return _Exchange(names, made)
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
    """Have the names in a folder on the disk, where the system can do that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
