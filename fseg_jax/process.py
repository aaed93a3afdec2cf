"""What a process shares with the system: signals, logs, memory."""

import ctypes
import logging
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

Progress = Callable[[str, int, int], None]  # what is being done, how many of it are done, of how many

STOPPED = threading.Event()

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


def stop(*_: object) -> None:
    """Interrupt, and remember it: an exception raised inside a callback of JAX is swallowed there."""
    STOPPED.set()
    raise KeyboardInterrupt


def silence_swallowed_interrupts() -> None:
    """Have Python not print the interruptions that callbacks swallow: they are remembered, and heeded."""
    tell = sys.unraisablehook

    def hook(raised: "sys.UnraisableHookArgs") -> None:
        if not (STOPPED.is_set() and issubclass(raised.exc_type, KeyboardInterrupt)):
            tell(raised)

    sys.unraisablehook = hook


def stop_once(*_: object) -> None:
    """Interrupt, and let nothing interrupt what is then cleared away."""
    if not STOPPED.is_set():
        stop()


def raise_if_stopped() -> None:
    """Raise ``KeyboardInterrupt`` if a signal to stop came, though a callback swallowed it."""
    if STOPPED.is_set():
        raise KeyboardInterrupt


def limit_heaps() -> None:
    """Let threads share two heaps: with one each, what decoders free is kept as many times over."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # musl has no mallopt, nor the trouble
            ctypes.CDLL(None).mallopt(-8, 2)  # M_ARENA_MAX


def set_verbosity(verbose: int) -> None:
    """Write to stderr what the program says of its work: warnings, with 1 what it does, with 2 all."""
    logging.basicConfig(format="fseg: %(message)s", level=logging.WARNING, force=True)
    logging.getLogger("fseg_jax").setLevel(_LEVELS[min(verbose, 2)])


def get_verbosity() -> int:
    """What ``set_verbosity`` was given last, for processes that are to say as much."""
    level = logging.getLogger("fseg_jax").level
    return _LEVELS.index(level) if level in _LEVELS else 0
