"""What a command shows while it works: bars on a terminal, in a log a line every half minute.

Results go to standard output, all else to standard error.
"""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from fseg_jax.process import Progress, format_seconds, is_quiet, raise_if_stopped

if TYPE_CHECKING:
    import rich.progress

LOG_EVERY = 30.0  # seconds between the lines of a log


@contextmanager
def show_progress(items: int = 1) -> "Iterator[Display]":
    """Show how far a command is, until the block ends.

    Args:
        items: Number of slides, or of what else the command works through.
    """
    if is_quiet():
        yield Display(items)
    elif sys.stderr.isatty():
        with _open_bars(items) as bars:
            yield bars
    else:
        yield LogLines(items)


class Display:
    """Show nothing but results; the others draw what they are told besides."""

    def __init__(self, items: int) -> None:
        """Begin with nothing done of so many items."""
        self.items, self.begun, self.name = items, 0, ""

    def begin(self, name: str) -> Progress:
        """Begin the next item, and return the function that is told how far it is."""
        raise_if_stopped()
        self.begun, self.name = self.begun + 1, name
        return lambda phase, done, total: self.update(phase, done, total)

    def update(self, phase: str, done: int, total: int | None, detail: str = "") -> None:
        """Say how far a phase of the item is; raises what stops the program."""
        raise_if_stopped()

    def note(self, text: str) -> None:
        """Say what is done where nothing is counted; a log does not show it."""

    def log(self, line: str) -> None:
        """Say what a log is to keep; bars do not show it."""

    def expect(self, items: int) -> None:
        """Correct the number of items."""
        self.items = items

    def print(self, line: object) -> None:
        """Print a line of result."""
        click.echo(line)


@dataclass
class _Clock:
    """When a phase began, and how far it was then."""

    phase: str
    began: float
    done: int

    def describe_speed(self, done: int, total: int | None) -> str:
        """Return the speed since then and the time left, if anything was done."""
        seconds = time.monotonic() - self.began
        if done <= self.done or seconds <= 0:
            return ""
        speed = (done - self.done) / seconds
        left = "" if not total else f" · {format_seconds((total - done) / speed)} left"
        return f" · {speed:.3g}/s{left}"


class LogLines(Display):
    """Say in a line, now and then, how far the command is."""

    def __init__(self, items: int) -> None:
        """Say nothing for a while."""
        super().__init__(items)
        self._began = self._item_began = self._said = time.monotonic()
        self._clock = _Clock("", self._began, 0)

    def begin(self, name: str) -> Progress:
        """Begin the next item."""
        self._item_began = time.monotonic()
        self._clock = _Clock("", self._item_began, 0)
        return super().begin(name)

    def update(self, phase: str, done: int, total: int | None, detail: str = "") -> None:
        """Say how far a phase is, if nothing was said for a while."""
        super().update(phase, done, total, detail)
        now = time.monotonic()
        if phase != self._clock.phase:
            self._clock = _Clock(phase, now, done)
        if now - self._said < LOG_EVERY:
            return
        self._said = now
        name = f"{self.name}: " if self.name else ""
        count = f" {done}/{total}" if total else f" {done}" if done else ""
        speed = self._clock.describe_speed(done, total)
        click.echo(
            f"fseg: {self._describe_items()}{name}{phase}{count}{speed}{detail and f' · {detail}'}", err=True
        )

    def log(self, line: str) -> None:
        """Say it at once."""
        self._said = time.monotonic()
        click.echo(f"fseg: {line}", err=True)

    def _describe_items(self) -> str:
        if self.items < 2:
            return ""
        finished = self.begun - 1
        left = ""
        if finished > 0:
            mean = (self._item_began - self._began) / finished
            seconds = mean * (self.items - finished) - (time.monotonic() - self._item_began)
            left = f", {format_seconds(max(0.0, seconds))} left"
        return f"[{self.begun}/{self.items}{left}] "


@contextmanager
def _open_bars(items: int) -> "Iterator[_Bars]":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichBars

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    # Results are printed by _Bars; rich would send what a file is to hold to the terminal.
    bars = RichBars(*columns, console=console, transient=True, redirect_stdout=False)
    with bars, _log_above():
        yield _Bars(items, bars)


@contextmanager
def _log_above() -> Iterator[None]:
    """Print the log's lines above the bars, in place of into them."""
    moved = [h for h in logging.getLogger().handlers if isinstance(h, logging.StreamHandler)]
    streams = [handler.setStream(sys.stderr) for handler in moved]  # rich has put its own there
    try:
        yield
    finally:
        for handler, stream in zip(moved, streams, strict=True):
            if stream is not None:
                handler.setStream(stream)


class _Bars(Display):
    """Draw a bar over the items, one over the phases of the item in hand, and what is done between them."""

    def __init__(self, items: int, bars: "rich.progress.Progress") -> None:
        super().__init__(items)
        self._bars = bars
        self._all = bars.add_task("all", total=items, detail="", visible=items > 1)
        self._now = bars.add_task("starting", total=None, detail="")
        self._phase = ""

    def begin(self, name: str) -> Progress:
        progress = super().begin(name)
        self._bars.update(self._all, completed=self.begun - 1)
        self.note("reading")
        return progress

    def note(self, text: str) -> None:
        self._phase = ""
        self._replace(f"{self.name}: {text}" if self.name else text, None)

    def update(self, phase: str, done: int, total: int | None, detail: str = "") -> None:
        super().update(phase, done, total, detail)
        if phase != self._phase:
            self._phase = phase
            self._replace(f"{self.name}: {phase}" if self.name else phase, total or None)
        if not detail:
            speed = self._bars.tasks[self._bars.task_ids.index(self._now)].speed
            detail = f"{speed:.3g}/s" if speed else ""
        self._bars.update(self._now, completed=done, total=total or None, detail=detail)

    def expect(self, items: int) -> None:
        super().expect(items)
        self._bars.update(self._all, total=items, visible=items > 1)

    def print(self, line: object) -> None:
        """Print a line above the bars, where standard output is the same terminal."""
        if sys.stdout.isatty():
            self._bars.console.print(str(line), markup=False, highlight=False, soft_wrap=True)
        else:
            super().print(line)

    def _replace(self, description: str, total: int | None) -> None:
        self._bars.remove_task(self._now)
        self._now = self._bars.add_task(description, total=total, detail="")
