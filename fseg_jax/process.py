"""Signals, logs, progress and memory of this process."""

import ctypes
import gc
import logging
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache

Progress = Callable[[str, int, int], None]  # a callback: (phase, done, total); total 0: not counted

STOPPED = threading.Event()  # set once a signal asked the program to stop

_log = logging.getLogger(__name__)
_LEVELS = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO, 2: logging.DEBUG}  # by verbosity
QUIET = -1


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
    _set_allocator({"M_ARENA_MAX": 2})


def keep_freed_memory() -> None:
    """Keep freed memory for the next allocation, with all threads in one heap.

    Most of a training step's memory is one block, the same at each step. Given back to the system, it is
    mapped and cleared anew, page by page, which takes a tenth of the step. Where sizes change, as they do
    from batch to batch of other work, the heap grows instead.
    """
    _set_allocator({"M_ARENA_MAX": 1, "M_MMAP_MAX": 0, "M_TRIM_THRESHOLD": 2**31 - 1})


def _set_allocator(settings: dict[str, int]) -> None:
    """Set options of glibc's allocator, by their names in ``malloc.h``."""
    numbers = {"M_ARENA_MAX": -8, "M_MMAP_MAX": -4, "M_TRIM_THRESHOLD": -1}
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # musl has no mallopt
            mallopt = ctypes.CDLL(None).mallopt
            for name, value in settings.items():
                mallopt(numbers[name], value)


def collect_less_often() -> None:
    """Let Python look for objects that only hold each other less often than its default.

    While a program starts, it makes hundreds of thousands of objects that live to its end, and each look
    through all of them takes a tenth of a second.
    """
    gc.set_threshold(20_000, 10, 10)


def set_verbosity(verbose: int) -> None:
    """Log to stderr: warnings at 0, also what the program does at 1, everything at 2; at ``QUIET`` errors."""
    level = logging.ERROR if verbose == QUIET else logging.WARNING  # of other packages
    logging.basicConfig(format="fseg: %(message)s", level=level, force=True)
    logging.getLogger("fseg_jax").setLevel(_LEVELS[min(verbose, 2)])


def get_verbosity() -> int:
    """Return the verbosity that was set last, for processes that this one starts."""
    level = logging.getLogger("fseg_jax").level
    return next((verbosity for verbosity, its in _LEVELS.items() if its == level), 0)


def is_quiet() -> bool:
    """Return whether only results and errors are to be printed."""
    return get_verbosity() == QUIET


def format_seconds(seconds: float) -> str:
    """Return a duration to the digits that matter: 40 s, 12 min, 3.5 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


@lru_cache(maxsize=4096)
def warn_once(text: str) -> None:
    """Log a warning, and nothing where it was logged before: a run opens the same slide several times."""
    _log.warning("%s", text)
