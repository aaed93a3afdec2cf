"""Outputs while they are made: in a folder of their own, which only one process at a time has for a name.

Whoever makes outputs called NAME in a folder holds a lock on ``.NAME.claim`` there, which ends with its
process, however that ends. So two runs on one folder never make the same outputs at once, and what a killed
run left behind is told from what a living one is about to finish. What it left half-done is removed; what it
had whole and was about to put in place (``exchange.py``) is put there.
"""

import errno
import glob
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from fseg_jax.errors import InputError, OutputError
from fseg_jax.files.exchange import PARTIAL, TOKEN, WHOLE, complete
from fseg_jax.files.paths import is_there

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)

_ABANDONED = 24 * 3600  # seconds after which, without locks, half-done outputs are taken for a dead run's
_EXCHANGED = 60  # seconds after which, without locks, an exchange is taken for a dead run's
_LAST_WRITES = 5  # seconds that what was being written at an interruption may take
_LEFT = re.compile(rf"\.(.+?)(\.[a-z0-9_]{{{TOKEN}}}{re.escape(PARTIAL)}|{re.escape(WHOLE)}|\.claim)")
_MAKING: list[tuple[str, Path, bool]] = []  # what this process has in hand, and whether the folder is new


class BusyError(InputError):
    """Somebody else is making these outputs just now."""


@contextmanager
def partial_folder(name: str, out: Path, *, wait: bool = False) -> Iterator[Path]:
    """A folder in ``out`` for outputs that are not finished; gone when the block is left, however.

    So is ``out``, if it is new and nothing came to be in it, and what a run that was killed left of the same
    outputs. Raises ``BusyError`` while another run makes them, or with ``wait`` waits for its end;
    ``OutputError`` where the disk is full, read-only or not there.
    """
    new = not out.exists()
    making = name, out, new
    _MAKING.append(making)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _claim(name, out, wait):
            folder = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=PARTIAL, dir=out))
            try:
                yield folder
            finally:
                if (whole := _whole(name, out)).exists():  # it was interrupted as it was put in place
                    with suppress(OSError):
                        complete(whole)
                _remove(folder)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        if new:
            with suppress(OSError):  # where it holds something
                out.rmdir()
        if not isinstance(sys.exception(), KeyboardInterrupt):  # it may have fallen into what is above
            _MAKING.remove(making)


def clear_away() -> None:
    """Remove what an interruption left where it fell into the removal itself; for a process at its end."""
    while _MAKING:
        name, out, new = _MAKING.pop()
        with suppress(BusyError, OSError):
            with _claim(name, out, wait=False):
                pass
            if new:
                out.rmdir()


def _remove(folder: Path) -> None:
    """Remove a folder, though a thread that an interruption left behind may yet write a last file to it."""
    end = time.monotonic() + _LAST_WRITES
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists() or time.monotonic() > end:
            return
        time.sleep(0.01)


def sweep(out: Path) -> None:
    """Remove what killed runs left half-done in a folder, put in place what they had whole, and touch nothing
    of a run that is alive.
    """
    left = [_LEFT.fullmatch(path.name) for path in out.glob(".*")]
    for name in {match[1] for match in left if match}:
        _settle(name, out)


def settle(name: str, out: Path) -> None:
    """Put the outputs of a name in place, if a killed run had them whole."""
    if is_there(_whole(name, out)):
        _settle(name, out)


def _settle(name: str, out: Path) -> None:
    with suppress(BusyError, OSError), _claim(name, out, wait=False):
        pass


def _whole(name: str, out: Path) -> Path:
    return out / f".{name}{WHOLE}"


@contextmanager
def _claim(name: str, out: Path, wait: bool) -> Iterator[None]:
    """Hold the lock on a name's outputs; what a dead holder left of them is put in place or cleared away."""
    path = out / f".{name}.claim"
    file = _locked(path, name, out, wait)
    try:
        # Where a file system has no locks, only age tells the dead from the living.
        locked, now = file is not None, time.time()
        whole = _whole(name, out)
        if whole.exists() and (locked or whole.stat().st_mtime < now - _EXCHANGED):
            complete(whole)
        for left in out.glob(f".{glob.escape(name)}.*{PARTIAL}"):
            middle = left.name[len(name) + 2 : -len(PARTIAL)]
            if "." not in middle and (locked or left.stat().st_mtime < now - _ABANDONED):
                shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        if file is not None:
            with suppress(OSError):  # while it is still locked: whoever waits for it looks again
                path.unlink()
            file.close()


def _locked(path: Path, name: str, out: Path, wait: bool) -> IO[bytes] | None:
    """The file of a claim, open and locked; None where files cannot be locked."""
    if fcntl is None:
        return None
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
        except BlockingIOError:
            file.close()
            raise BusyError(f"{out / name}: another run is making it just now") from None
        except OSError as error:
            file.close()
            path.unlink(missing_ok=True)
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            _log.warning("%s: its file system has no locks: keep to one run a slide at a time", out)
            return None
        file.close()  # its holder has just finished and removed it
