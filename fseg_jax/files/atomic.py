"""Files that appear whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fseg_jax.errors import OutputError


@contextmanager
def replace_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name beside ``path`` to write a file under; it is given ``path`` when the block ends well.

    Before that no reader sees anything of it, after a failure nothing of it is left, and a crash of the
    machine leaves the old file or the new one. Two writers at once do not meet: the last one's file stays.
    Raises ``OutputError`` where the disk is full, read-only or not there.
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
