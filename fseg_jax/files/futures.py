"""Wait for tensorstore's futures, and turn its errors into errors of one line."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fseg_jax.errors import OutputError

_PATIENCE = 60.0  # seconds that a store may be silent; its client tries again and again by itself
_WARN_EVERY = 10.0  # seconds of silence between two warnings
_SLOWEST = 250_000  # bytes a second: how much longer large objects may take

_LOG = logging.getLogger(__name__)


def wait_for_store(where: str, *futures: Any, size: int = 0) -> list[Any]:
    """Wait for the answers of a store, and return them; a store that answers with an error raises it.

    While the store is silent, a warning is logged every ten seconds.

    Args:
        where: What the store is called in messages.
        *futures: Requests of tensorstore.
        size: The bytes that they move, for which they may take longer.

    Raises:
        OutputError: The store was silent for a minute.
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
            if silent >= _WARN_EVERY:
                _LOG.warning("%s: no answer for %.0f s", where, silent)
            try:
                answers.append(future.result(timeout=min(_WARN_EVERY, patience - silent)))
                break
            except TimeoutError:
                if future.done():  # the store's own error, not the end of this wait
                    raise
    return answers


def wait_for_writes(path: Path, *futures: Any) -> list[Any]:
    """Wait for tensorstore's writes to a folder, and return their results.

    No write is under way any more when this returns or raises, an interruption included: a folder to which
    threads still write cannot be removed.

    Raises:
        OutputError: The disk is full or read-only; the message names ``path``.
    """
    try:
        return [future.result() for future in futures]
    except (OSError, ValueError, RuntimeError) as error:
        message = " ".join(str(error).split())
        raise OutputError(f"{path}: cannot be written ({message[:300]})") from error
    finally:
        for future in futures:
            with suppress(OSError, ValueError, RuntimeError):
                future.result()


@contextmanager
def convert_errors(place: str, action: str = "written") -> Iterator[None]:
    """Turn errors of tensorstore, which quote requests and answers, into an ``OutputError`` of one line."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        message = " ".join(str(error).split(" [")[0].split())
        raise OutputError(f"{place}: cannot be {action} ({message[:300]})") from error
