"""Exceptions that tell the user what to change, and any other exception as one line."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

_SAVING = ("batch", "training-batch", "chunk", "pairs", "tile", "patch", "size")  # options that save memory


class InputError(Exception):
    """Bad input: the message is one line that names the thing and says what to do.

    The command line prints it after ``fseg: error:`` and exits with code 2; nothing is left half-written.
    """


class OutputError(InputError):
    """Results cannot be written to their place; writing other results there would fail too."""


def first_line(error: BaseException) -> str:
    """Return an exception's first line, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def note_work(what: str) -> Iterator[None]:
    """Note on exceptions from the block what was being done; an ``InputError`` says so itself."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, InputError):
            error.add_note(what)
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the machine, or its accelerator, has too little memory."""
    is_from_jax = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    return isinstance(error, MemoryError) or (is_from_jax and "RESOURCE_EXHAUSTED" in str(error))


def explain(error: BaseException, options: Iterable[str] = ("batch", "tile")) -> str:
    """Explain an error in one line.

    An ``InputError`` has its own message. Where memory ran out, the line says what to do. For other errors it
    says what was being done, and that the program is at fault.

    Args:
        error: The error.
        options: The options of the command; those that save memory are recommended.
    """
    if isinstance(error, InputError):
        return str(error)
    text = " ".join(str(error).split())
    where = "".join(f"{note}: " for note in reversed(getattr(error, "__notes__", [])))
    if is_out_of_memory(error):
        return f"{where}{_explain_memory(error, [name for name in _SAVING if name in options])}"
    if isinstance(error, OSError) and isinstance(error.filename, str) and error.strerror:
        filename = " ".join(error.filename.split())[:300]
        return f"{where}{filename}: {error.strerror}"  # the machine's fault, not the program's
    what = f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
    return f"{where}{what}; this is a fault of the program: run again with -v for the traceback"


def _explain_memory(error: BaseException, options: list[str]) -> str:
    requested, available = (
        getattr(error, "_total_size", None),
        _read_memory(),
    )  # an attribute of numpy's error
    if requested and available and requested > 4 * available:
        return (
            f"{requested / 2**30:,.0f} GiB of memory are asked for, and this machine has "
            f"{available / 2**30:,.0f}: "
            "a file or an option states a size that cannot be meant"
        )
    advice = " or ".join(f"--{name}" for name in options[:2])
    return (
        f"out of memory: {f'choose a smaller {advice}' if advice else 'free some, or use a larger machine'}"
    )


def _read_memory() -> int:
    """Return the bytes of memory of this machine; 0 where the system does not say."""
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0
