"""Locks that end with their process, however it ends.

The operating system keeps such a lock on an open file, and ``filelock`` knows how each system is asked for
one. Only its ``lock_descriptor`` is used. Its class ``FileLock`` leaves the file behind, and on a file system
without locks it takes a file that is there for a lock, which outlives a program that is killed.
"""

import errno
import logging
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

from filelock import lock_descriptor

_POLL_INTERVAL = 0.02  # seconds between two attempts, where the lock is waited for
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

_log = logging.getLogger(__name__)


class Lock:
    """A file that this process has locked.

    Attributes:
        path: The lock's file.
    """

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self._file = file

    def release(self) -> None:
        """Remove the file and end the lock."""
        # In this order: whoever waits for the lock sees that its file is gone, and begins again.
        with suppress(OSError):
            self.path.unlink()
        self._file.close()


def acquire_lock(path: Path, *, wait: bool = False) -> Lock | None:
    """Lock a file, which is made where there is none.

    Args:
        path: The lock's file, in a folder that is there.
        wait: Whether to wait until no other program holds the lock.

    Returns:
        The lock, or None on a file system without locks, for which a warning is logged once.

    Raises:
        BlockingIOError: Another program holds the lock, and ``wait`` is False.
        OSError: The file cannot be made.
    """
    while True:
        file = path.open("ab")
        try:
            locked = lock_descriptor(file.fileno(), blocking=wait, poll_interval=_POLL_INTERVAL)
        except OSError as error:
            file.close()
            path.unlink(missing_ok=True)
            if error.errno not in _NO_LOCKS:
                raise
            _warn_of_no_locks(path.parent)
            return None
        if not locked:
            file.close()
            raise BlockingIOError(errno.EWOULDBLOCK, "another program holds the lock", str(path))
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return Lock(path, file)
        file.close()  # the holder has just removed this file and ended its lock


@cache
def _warn_of_no_locks(folder: Path) -> None:
    """Warn that a folder's file system has no locks: once, though a lock is asked for with every file."""
    _log.warning("%s: its file system has no locks: keep to one run a slide at a time", folder)
