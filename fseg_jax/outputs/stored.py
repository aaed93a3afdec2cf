"""Waiting for what tensorstore writes."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from fseg_jax.errors import OutputError


def stored(path: Path, *futures: Any) -> list[Any]:
    """What tensorstore's futures come to; ``OutputError`` for ``path`` where a disk is full or read-only.

    None is at work any more when it returns or raises, an interruption included: a folder to which threads
    still write cannot be removed.
    """
    try:
        return [future.result() for future in futures]
    except (OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise OutputError(f"{path}: cannot be written ({said[:300]})") from error
    finally:
        for future in futures:
            with suppress(OSError, ValueError, RuntimeError):
                future.result()
