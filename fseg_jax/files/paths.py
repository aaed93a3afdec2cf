"""What lies at paths that users give: nothing, a file, a folder, or what cannot be looked at."""

import os
import stat
from pathlib import Path

from fseg_jax.errors import InputError

_LONGEST = 200  # characters of a path in a message


def is_there(path: str | Path) -> bool:
    """Whether there is anything. Raises ``InputError`` where a path cannot be looked at."""
    return _mode(path) is not None


def is_folder(path: str | Path) -> bool:
    """Whether there is a folder. Raises ``InputError`` where a path cannot be looked at."""
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def is_file(path: str | Path) -> bool:
    """Whether there is a file. Raises ``InputError`` where a path cannot be looked at."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def check_folder(path: Path, what: str) -> None:
    """Raise ``InputError``, which says ``what`` to do, for what is no folder or cannot be looked at."""
    if not is_folder(path):
        raise InputError(f"{format_path(path)}: no such folder: {what}")


def list_files(folder: Path, *, deep: bool = True) -> list[Path]:
    """List the files of a folder, and of those below it if ``deep``, in the order of their paths.

    Raises ``InputError`` for what cannot be looked at, rather than leave it out without a word.
    """

    def fail(error: OSError) -> None:
        raise report_unreadable(error.filename or folder, error) from None

    found: list[Path] = []
    for place, below, names in os.walk(folder, onerror=fail):
        found += [path for path in (Path(place, name) for name in names) if is_file(path)]
        if not deep:
            below.clear()
    return sorted(found)


def report_unreadable(path: str | Path, error: Exception) -> InputError:
    """What is said of a path that cannot be looked at."""
    return InputError(
        f"{format_path(path)}: cannot be looked at ({getattr(error, 'strerror', None) or error})"
    )


def format_path(path: str | Path) -> str:
    """A path for a message of one line."""
    said = str(path)
    said = said if said.isprintable() else repr(said)
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}…"


def _mode(path: str | Path) -> int | None:
    try:
        return Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # no permission, too long, links in a circle; a NUL
        raise report_unreadable(path, error) from None
