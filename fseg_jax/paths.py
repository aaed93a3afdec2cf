"""What lies at paths that users give: nothing, a file, a folder, or what cannot be looked at."""

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


def shown(path: str | Path) -> str:
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
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{shown(path)}: cannot be looked at ({reason})") from None
