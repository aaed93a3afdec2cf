"""The exceptions that mean the user has to change something, and any other as one line."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

_SAVING = ("batch", "training-batch", "chunk", "pairs", "tile", "patch", "size")  # options that save memory


class InputError(Exception):
    """Bad input: the message is one line that names the thing and says what to do.

    The command line prints it after ``fseg: error:`` and exits with code 2; nothing is left half-written.
    """


class OutputError(InputError):
    """Results cannot be written where they should go: whatever else goes there would fail as well."""


def first_line(error: BaseException) -> str:
    """Return an exception's first line, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def note_work(what: str) -> Iterator[None]:
    """Let whatever fails in the block, and is nobody's ``InputError``, say in which work it did."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, InputError):
            error.add_note(what)
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of this machine or of its accelerator, did not suffice."""
    of_jax = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    return isinstance(error, MemoryError) or (of_jax and "RESOURCE_EXHAUSTED" in str(error))


def explain(error: BaseException, options: Iterable[str] = ("batch", "tile")) -> str:
    """Say in one line what is wrong: an ``InputError``'s own message, what to do where memory did not
    suffice, and of anything else what was being done and that the program is at fault.

    ``options`` are those of the command, of which the ones that save memory are advised.
    """
    if isinstance(error, InputError):
        return str(error)
    text = " ".join(str(error).split())
    where = "".join(f"{note}: " for note in reversed(getattr(error, "__notes__", [])))
    if is_out_of_memory(error):
        return f"{where}{_of_memory(error, [name for name in _SAVING if name in options])}"
    if isinstance(error, OSError) and isinstance(error.filename, str) and error.strerror:
        named = " ".join(error.filename.split())[:300]
        return f"{where}{named}: {error.strerror}"  # of the machine, not of the program
    what = f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
    return f"{where}{what}; this is a fault of the program: run again with -v for the traceback"


def _of_memory(error: BaseException, options: list[str]) -> str:
    wanted, held = getattr(error, "_total_size", None), _memory()  # numpy's error knows how much it was
    if wanted and held and wanted > 4 * held:
        return (
            f"{wanted / 2**30:,.0f} GiB of memory are asked for, and this machine has {held / 2**30:,.0f}: "
            "a file or an option states a size that cannot be meant"
        )
    advice = " or ".join(f"--{name}" for name in options[:2])
    return (
        f"out of memory: {f'choose a smaller {advice}' if advice else 'free some, or use a larger machine'}"
    )


def _memory() -> int:
    """How many bytes of memory this machine has; 0 where it does not say."""
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0
