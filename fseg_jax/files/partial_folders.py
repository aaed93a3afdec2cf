"""Folders for outputs that are not finished, and what killed runs leave of them.

Outputs called NAME are made in a folder ``.NAME.xxxxxxxx.partial``, by a process that holds the lock
``.NAME.claim`` beside it. So two runs never make the same outputs at once, and what a killed run left is told
from what a living one is about to finish: half-finished outputs are removed, and an exchange that was decided
on (``exchange.py``) is finished.
"""

import glob
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fseg_jax.errors import InputError, OutputError
from fseg_jax.files.exchange import PARTIAL, TOKEN, WHOLE, finish_exchange
from fseg_jax.files.lock import acquire_lock
from fseg_jax.files.paths import is_there

# Where a file system has no locks, age tells a dead run's files from a living one's.
_PARTIAL_AGE = 24 * 3600  # seconds after which a partial folder is taken for a dead run's
_EXCHANGE_AGE = 60  # seconds after which an exchange is taken for a dead run's
_LAST_WRITES = 5  # seconds that a write may still take when its run is interrupted
_HIDDEN = re.compile(rf"\.(.+?)(\.[a-z0-9_]{{{TOKEN}}}{re.escape(PARTIAL)}|{re.escape(WHOLE)}|\.claim)")

_unfinished: list[tuple[str, Path, bool]] = []  # this process's outputs: name, folder, whether that is new


class BusyError(InputError):
    """Another run is making these outputs."""


@contextmanager
def open_partial_folder(name: str, out: Path, *, wait: bool = False) -> Iterator[Path]:
    """Make a folder inside ``out`` for unfinished outputs; it is removed when the block is left.

    What a killed run left of the same outputs is cleared first. ``out`` is made too, and is removed again if
    it is new and stays empty.

    Args:
        name: What the outputs are called: their lock's name.
        out: The folder where they will be.
        wait: Whether to wait for another run that makes them, rather than fail.

    Raises:
        BusyError: Another run makes these outputs.
        OutputError: The disk is full, read-only or not there.
    """
    is_new = not out.exists()
    unfinished = name, out, is_new
    _unfinished.append(unfinished)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _lock_outputs(name, out, wait):
            folder = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=PARTIAL, dir=out))
            try:
                yield folder
            finally:
                if (whole := _locate_whole(name, out)).exists():  # an interruption fell into the exchange
                    with suppress(OSError):
                        finish_exchange(whole)
                _remove(folder)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        if is_new:
            with suppress(OSError):  # where it is not empty
                out.rmdir()
        if not isinstance(sys.exception(), KeyboardInterrupt):  # which may have cut the clearing above short
            _unfinished.remove(unfinished)


def remove_partial_folders() -> None:
    """Remove what this process left where an interruption fell into the removal; call this at its end."""
    while _unfinished:
        name, out, is_new = _unfinished.pop()
        with suppress(BusyError, OSError):
            with _lock_outputs(name, out, wait=False):
                pass
            if is_new:
                out.rmdir()


def recover_folder(out: Path) -> None:
    """Clear a folder of what killed runs left: remove partial folders, and finish exchanges.

    What a living run has in hand is not touched.
    """
    matches = [_HIDDEN.fullmatch(path.name) for path in out.glob(".*")]
    for name in {match[1] for match in matches if match}:
        _recover(name, out)


def recover_outputs(name: str, out: Path) -> None:
    """Finish the exchange of the outputs called ``name``, if a killed run had decided on one."""
    if is_there(_locate_whole(name, out)):
        _recover(name, out)


def _recover(name: str, out: Path) -> None:
    with suppress(BusyError, OSError), _lock_outputs(name, out, wait=False):
        pass


def _remove(folder: Path) -> None:
    """Remove a folder, though a thread that an interruption left behind may still write a last file to it."""
    end = time.monotonic() + _LAST_WRITES
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists() or time.monotonic() > end:
            return
        time.sleep(0.01)


def _locate_whole(name: str, out: Path) -> Path:
    return out / f".{name}{WHOLE}"


@contextmanager
def _lock_outputs(name: str, out: Path, wait: bool) -> Iterator[None]:
    """Hold the lock on a name's outputs, once what a dead holder left of them is cleared."""
    try:
        lock = acquire_lock(out / f".{name}.claim", wait=wait)
    except BlockingIOError:
        raise BusyError(f"{out / name}: another run is making it just now") from None
    try:
        now = time.time()
        whole = _locate_whole(name, out)
        if whole.exists() and (lock or whole.stat().st_mtime < now - _EXCHANGE_AGE):
            finish_exchange(whole)
        for folder in out.glob(f".{glob.escape(name)}.*{PARTIAL}"):
            token = folder.name[len(name) + 2 : -len(PARTIAL)]
            if "." not in token and (lock or folder.stat().st_mtime < now - _PARTIAL_AGE):
                shutil.rmtree(folder, ignore_errors=True)
        yield
    finally:
        if lock:
            lock.release()
