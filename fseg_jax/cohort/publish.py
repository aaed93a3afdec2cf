"""How a slide's outputs come to be: in a folder of their own, moved to their names when all is there, the
record last; and what every record states of its making.

Whoever makes outputs called NAME in a folder holds a lock on ``.NAME.claim`` there, which ends with its
process, however that ends. So two runs on one folder never make the same outputs at once, and what a killed
run left behind is told from what a living one is about to finish.
"""

import errno
import glob
import json
import logging
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import jax

from fseg_jax.encoders import onednn
from fseg_jax.errors import InputError, OutputError
from fseg_jax.slides.reader import Slide

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)

_ABANDONED = 24 * 3600  # seconds after which, without locks, half-done outputs are taken for a dead run's
PACKAGES = ("fseg-jax", "jax", "jaxlib", "numpy", "tensorstore")


def check_outputs(paths: Sequence[Path], out: Path, overwrite: bool) -> None:
    """Raise ``InputError`` if one of the outputs exists and may not be replaced, or none can be written."""
    for path in paths:
        try:
            path.name.encode()
        except UnicodeEncodeError:
            raise InputError(f"{path.name!r}: the slide's name is not UTF-8; rename it") from None
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        raise InputError(f"{existing[-1]} exists: choose another folder, or --overwrite")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; -o names a folder")
    # The nearest folder that exists must let us in; access() alone would say yes to root on a read-only disk.
    parent = next(p for p in (out, *out.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror})") from error


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
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _claim(name, out, wait):
            folder = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".partial", dir=out))
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        if new:
            with suppress(OSError):  # where it holds something
                out.rmdir()


def sweep(out: Path) -> None:
    """Remove what killed runs left half-done in a folder, and nothing of a run that is alive."""
    left = [re.fullmatch(r"\.(.+?)(\.[a-z0-9_]{8}\.partial|\.claim)", path.name) for path in out.glob(".*")]
    for name in {match[1] for match in left if match}:
        with suppress(BusyError, OSError), _claim(name, out, wait=False):
            pass


@contextmanager
def _claim(name: str, out: Path, wait: bool) -> Iterator[None]:
    """Hold the lock on a name's outputs, and clear away what a dead holder left of them."""
    path = out / f".{name}.claim"
    file = _locked(path, name, out, wait)
    try:
        # Where a file system has no locks, only age tells the dead from the living.
        since = math.inf if file is not None else time.time() - _ABANDONED
        for left in out.glob(f".{glob.escape(name)}.*.partial"):
            middle = left.name[len(name) + 2 : -len(".partial")]
            if "." not in middle and left.stat().st_mtime < since:
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


def finish(folder: Path, record: dict[str, Any], paths: Sequence[Path]) -> dict[str, Any]:
    """Write the record, the first of ``paths``, and move what the folder holds of them to their places.

    Returns the record as it is in the file.
    """
    record = {**record, "finished": datetime.now(UTC).isoformat(timespec="seconds")}
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / paths[0].name).write_text(text, encoding="utf-8")
    move(folder, paths)
    return json.loads(text)


def move(folder: Path, paths: Sequence[Path]) -> None:
    """Move what a folder holds of ``paths`` to their places, and remove what was there.

    The first, the record, is removed before all others and comes after them.
    """
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for path in reversed(paths):
        if (folder / path.name).exists():
            (folder / path.name).replace(path)


def made_with() -> dict[str, Any]:
    """The versions of what computes a result, and the device."""
    versions = {name: version(name) for name in PACKAGES}
    convolutions = onednn.library()
    if convolutions is not None:
        versions["onednn"] = convolutions.version
    return {
        "versions": versions,
        "device": jax.devices()[0].device_kind,
    }


def slide_facts(slide: Slide) -> dict[str, Any]:
    """Which slide a result is of, and what it is."""
    return {
        "path": str(slide.path),
        "format": slide.format,
        "height": slide.height,
        "width": slide.width,
        "mpp": slide.mpp,
    }


class Clock:
    """Seconds since the last lap, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 3)
        self._last = now
