"""What the commands share with the terminal: progress, logs, messages, signals, options of several values."""

import ctypes
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fseg_jax.errors import InputError

if TYPE_CHECKING:
    from fseg_jax.cohort.worker import Report

STOPPED = threading.Event()


def stop(*_: object) -> None:
    """Interrupt, and remember it: an exception raised inside a callback of JAX is swallowed there."""
    STOPPED.set()
    raise KeyboardInterrupt


def stop_once(*_: object) -> None:
    """Interrupt, and let nothing interrupt what is then cleared away."""
    if not STOPPED.is_set():
        stop()


def heed() -> None:
    if STOPPED.is_set():
        raise KeyboardInterrupt


def tell(error: InputError, slides: list[Path]) -> None:
    """Say what is wrong with one slide of several, and go on; of a single one, raise it."""
    if len(slides) == 1:
        raise error
    click.echo(f"fseg: error: {error}", err=True)


class Several(click.Command):
    """A command whose repeatable options take several values in a row: ``--k 16 32 64``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        names = {name for p in self.params if getattr(p, "multiple", False) for name in p.opts}
        spelt: list[str] = []
        current, first = "", False
        for argument in args:
            if argument.startswith("-"):
                current, first = (argument, True) if argument in names else ("", False)
            elif current and not first:
                spelt.append(current)
            else:
                first = False
            spelt.append(argument)
        return super().parse_args(ctx, spelt)


@contextmanager
def bars(slides: int) -> "Iterator[Callable[[str], Report]]":
    """A bar over slides and one over a slide's tiles, with speed and time left; none without a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda name: lambda phase, done, total: heed()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        over = progress.add_task("slides", total=slides, rate="", visible=slides > 1)
        current: dict[str, TaskID] = {}

        def for_slide(name: str) -> "Report":
            for task in current.values():
                progress.remove_task(task)
            progress.update(over, completed=len(seen))
            seen.append(name)
            current.clear()

            def report(phase: str, done: int, total: int) -> None:
                heed()
                if phase not in current:
                    current[phase] = progress.add_task(f"{name}: {phase}", total=total, rate="")
                speed = progress.tasks[progress.task_ids.index(current[phase])].speed
                rate = f"{speed:.1f} tiles/s" if speed else ""
                progress.update(current[phase], completed=done, rate=rate)

            return report

        seen: list[str] = []
        yield for_slide


def share_the_heap() -> None:
    """Let threads share two heaps: with one each, what decoders free is kept as many times over."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # musl has no mallopt, nor the trouble
            ctypes.CDLL(None).mallopt(-8, 2)  # M_ARENA_MAX


def log(verbose: int) -> None:
    logging.basicConfig(format="fseg: %(message)s", level=logging.WARNING, force=True)
    logging.getLogger("fseg_jax").setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])
