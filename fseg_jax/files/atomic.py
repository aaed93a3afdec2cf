"""Files that appear whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fseg_jax.errors import OutputError


@contextmanager
def replace_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, and move its file to ``path`` when the block ends well.

    Readers see the old file or the new one, whole; so does the disk after a crash of the machine. A block
    that fails leaves no temporary file. Where two writers work at once, the last one's file stays.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with replace_atomically(path) as part:
    ...     _ = part.write_text("whole")
    >>> path.read_text()
    'whole'

    Raises:
        OutputError: The disk is full, read-only or not there.
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
