"""Signals, logs and memory of this process."""

import ctypes
import logging
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache

Progress = Callable[[str, int, int], None]  # a callback: (phase, done, total)

STOPPED = threading.Event()  # set once a signal asked the program to stop

_log = logging.getLogger(__name__)
_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


def stop(*_: object) -> None:
    """Handle a signal: raise ``KeyboardInterrupt``, and set ``STOPPED``, as JAX may swallow the exception."""
    STOPPED.set()
    raise KeyboardInterrupt


def silence_swallowed_interrupts() -> None:
    """Do not print interruptions that JAX's callbacks swallow; ``raise_if_stopped`` raises them again."""
    report = sys.unraisablehook

    def hook(raised: "sys.UnraisableHookArgs") -> None:
        if not (STOPPED.is_set() and issubclass(raised.exc_type, KeyboardInterrupt)):
            report(raised)

    sys.unraisablehook = hook


def stop_once(*_: object) -> None:
    """Handle a signal as ``stop`` does, but once: later signals do not interrupt the removal of files."""
    if not STOPPED.is_set():
        stop()


def raise_if_stopped() -> None:
    """Raise ``KeyboardInterrupt`` if a signal asked the program to stop, even if a callback swallowed it."""
    if STOPPED.is_set():
        raise KeyboardInterrupt


def limit_heaps() -> None:
    """Let all threads share two heaps: with a heap each, every thread keeps the memory that it freed."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # musl has no mallopt, and does not need it
            ctypes.CDLL(None).mallopt(-8, 2)  # M_ARENA_MAX


def set_verbosity(verbose: int) -> None:
    """Log to stderr: warnings at 0, also what the program does at 1, everything at 2."""
    logging.basicConfig(format="fseg: %(message)s", level=logging.WARNING, force=True)
    logging.getLogger("fseg_jax").setLevel(_LEVELS[min(verbose, 2)])


def get_verbosity() -> int:
    """Return the verbosity that was set last, for processes that this one starts."""
    level = logging.getLogger("fseg_jax").level
    return _LEVELS.index(level) if level in _LEVELS else 0


@lru_cache(maxsize=4096)
def warn_once(text: str) -> None:
    """Log a warning, and nothing where it was logged before: a run opens the same slide several times."""
    _log.warning("%s", text)
