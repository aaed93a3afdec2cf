"""Blocks of remote files, kept on disk between runs, those used longest ago dropped first."""

import logging
import os
import secrets
import threading
import zlib
from contextlib import suppress
from pathlib import Path

_LOG = logging.getLogger(__name__)

_CHECKSUM = 4  # bytes that follow a block
_SWEPT = 8  # the cache is swept each time that a process has written this part of its limit


class BlockCache:
    """Blocks in a folder that processes share. What cannot be kept is not an error: it is read again.

    The folder holds at most ``limit`` bytes, and what each process writes between two sweeps: an eighth.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        """Use a folder, which need not exist.

        Args:
            folder: Where the blocks are kept.
            limit: Bytes that they may take; 0 keeps nothing.
        """
        self._folder = folder
        self._limit = limit
        self._lock = threading.Lock()
        self._unswept = limit  # bytes written since the last sweep; the first write sweeps

    def read(self, file: str, index: int, size: int) -> bytes | None:
        """Read a block; None where it is not kept whole.

        Args:
            file: What the file is called here.
            index: The number of the block.
            size: Its bytes.
        """
        path = self._folder / file / str(index)
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        block = content[:-_CHECKSUM]
        if len(block) != size or content[-_CHECKSUM:] != zlib.crc32(block).to_bytes(_CHECKSUM, "big"):
            return None
        return block

    def write(self, file: str, index: int, block: bytes) -> None:
        """Keep a block."""
        if not self._limit:
            return
        path = self._folder / file / str(index)
        part = path.with_name(f".{index}.{secrets.token_hex(4)}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(block + zlib.crc32(block).to_bytes(_CHECKSUM, "big"))
            part.replace(path)
        except OSError as error:
            _LOG.debug("%s: is not kept: %s", path, error)
            with suppress(OSError):
                part.unlink(missing_ok=True)
        with self._lock:
            self._unswept += len(block)
            is_due = self._unswept > self._limit // _SWEPT
            if is_due:
                self._unswept = 0
        if is_due:
            self._sweep()

    def _sweep(self) -> None:
        """Drop blocks until three quarters of the limit are left, those used longest ago first."""
        blocks = []
        for parent, _, names in os.walk(self._folder):
            for name in names:
                path = Path(parent, name)
                with suppress(OSError):  # another process has dropped it
                    status = path.stat()
                    blocks.append((status.st_mtime, status.st_size, path))
        left = sum(size for _, size, _ in blocks)
        if left <= self._limit:
            return
        for _, size, path in sorted(blocks):
            if left <= self._limit * 3 // 4:
                break
            with suppress(OSError):
                path.unlink(missing_ok=True)
                path.parent.rmdir()  # where it was the last of its file
            left -= size
