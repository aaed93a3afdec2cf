"""Look at paths that users give: is there a file, a folder, nothing, or is access denied?"""

import os
import stat
from pathlib import Path

from fseg_jax.errors import InputError

_MAX_LENGTH = 200  # characters of a path in a message


def is_there(path: str | Path) -> bool:
    """Return whether anything is at a path; raise ``InputError`` where that cannot be told."""
    return _mode(path) is not None


def is_folder(path: str | Path) -> bool:
    """Return whether a folder is at a path; raise ``InputError`` where that cannot be told."""
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def is_file(path: str | Path) -> bool:
    """Return whether a file is at a path; raise ``InputError`` where that cannot be told."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def check_folder(path: Path, what: str) -> None:
    """Raise ``InputError`` unless a path is a folder; ``what`` tells the user what to do."""
    if not is_folder(path):
        raise InputError(f"{format_path(path)}: no such folder: {what}")


def list_files(folder: Path, *, deep: bool = True) -> list[Path]:
    """List the files of a folder, and of the folders in it if ``deep``, sorted by path.

    Raises:
        InputError: A file or folder cannot be looked at; it is not left out silently.
    """

    def fail(error: OSError) -> None:
        raise report_unreadable(error.filename or folder, error) from None

    files: list[Path] = []
    for parent, subfolders, names in os.walk(folder, onerror=fail):
        files += [path for path in (Path(parent, name) for name in names) if is_file(path)]
        if not deep:
            subfolders.clear()
    return sorted(files)


def report_unreadable(path: str | Path, error: Exception) -> InputError:
    """Make the error for a path that cannot be looked at."""
    return InputError(
        f"{format_path(path)}: cannot be looked at ({getattr(error, 'strerror', None) or error})"
    )


def format_path(path: str | Path) -> str:
    r"""Format a path for a message of one line: escape what is not printable, and cut what is too long.

    >>> format_path("a\nb")
    "'a\\nb'"
    """
    text = str(path)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}…"


def _mode(path: str | Path) -> int | None:
    try:
        return Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # no permission, too long, a circle of links, a NUL
        raise report_unreadable(path, error) from None
