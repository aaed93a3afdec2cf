"""Waiting for what tensorstore writes, and for what a store answers."""

import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fseg_jax.errors import OutputError

_PATIENCE = 60.0  # seconds that a store may be silent; its client tries again and again by itself
_TOLD_EVERY = 10.0  # seconds after which it is said that it is waited for
_SLOWEST = 250_000  # bytes a second: what large objects may take longer

_LOG = logging.getLogger(__name__)


def answered(where: str, *futures: Any, size: int = 0) -> list[Any]:
    """What tensorstore's futures come to, for requests that move ``size`` bytes; their errors are raised.

    That a store is silent is told every ten seconds; ``OutputError`` where it is for a minute.
    """
    patience = _PATIENCE + size / _SLOWEST
    answers: list[Any] = []
    for future in futures:
        began = time.monotonic()
        while len(answers) < len(futures):
            silent = time.monotonic() - began
            if silent >= patience:
                raise OutputError(
                    f"{where}: no answer in {silent:.0f} s; look at the network and the store's credentials"
                )
            if silent >= _TOLD_EVERY:
                _LOG.warning("%s: no answer for %.0f s", where, silent)
            try:
                answers.append(future.result(timeout=min(_TOLD_EVERY, patience - silent)))
                break
            except TimeoutError:
                if future.done():  # it says itself that its time was up
                    raise
    return answers


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
