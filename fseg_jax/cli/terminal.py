"""What the commands share with the terminal: error messages, exit codes, logs and progress bars."""

import io
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from fseg_jax.errors import doing, explain
from fseg_jax.files.kinds import did_you_mean
from fseg_jax.process import Progress, log, raise_if_stopped

_log = logging.getLogger(__name__)


def run_command(command: click.Command, arguments: list[str] | None, name: str) -> int:
    """Run a command line to its exit code: 0 done, 1 something found wanting, 2 bad input or a fault,
    130 interrupted. Whatever is raised becomes one line; ``-v`` adds the traceback of a fault.
    """
    log(0)
    for stream in (sys.stdout, sys.stderr):  # a file's name may hold bytes that are no text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    running: list[click.Context] = []  # the command that is run, once its line is parsed
    try:
        code = command.main(arguments, prog_name=name, standalone_mode=False, obj=running)
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "")
    except click.ClickException as error:
        click.echo(f"{name}: error: {error.format_message()}", err=True)
    except (KeyboardInterrupt, click.Abort):
        click.echo(f"{name}: interrupted; nothing half-written is left", err=True)
        return 130
    except SystemExit:
        raise
    except BaseException as error:  # what comes of compiled code need not be an Exception
        options = [option[2:] for p in (running[-1].command.params if running else []) for option in p.opts]
        click.echo(f"{name}: error: {explain(error, options)}", err=True)
        _log.info("the traceback:", exc_info=error)
    return 2


def accept_verbose(command: click.Command) -> None:
    """Give a command, or every command of a group, the option ``-v``."""
    if isinstance(command, click.Group):
        for each in command.commands.values():
            accept_verbose(each)
    else:
        command.params.append(
            click.Option(
                ["-v", "--verbose"],
                count=True,
                expose_value=False,
                is_eager=True,
                callback=_begin,
                help="Say what is done, and tracebacks of faults; twice for more.",
            )
        )


def _begin(context: click.Context, _: click.Parameter, verbose: int) -> None:
    log(verbose)
    if isinstance(context.obj, list):
        context.obj.append(context)


@contextmanager
def one_of(slides: Sequence[Path], what: str) -> Iterator[None]:
    """Say what went wrong with one slide of several, whatever it is, and go on; of a single one, raise it."""
    try:
        with doing(what):
            yield
    except Exception as error:
        if len(slides) == 1:
            raise
        click.echo(f"fseg: error: {explain(error)}", err=True)
        _log.info("the traceback:", exc_info=error)


class Named(click.Group):
    """A group of commands that answers a name that is none of theirs with the nearest."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            near = did_you_mean(args[0], self.commands)
            ctx.fail(f"no command is called {args[0]!r}: {near}{ctx.command_path} -h lists them")
        return super().resolve_command(ctx, args)


@contextmanager
def bars(slides: int) -> Iterator[Callable[[str], Progress]]:
    """A bar over slides and one over a slide's tiles, with speed and time left; none without a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda name: lambda phase, done, total: raise_if_stopped()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, transient=True) as progress:
        over = progress.add_task("slides", total=slides, rate="", visible=slides > 1)
        current: dict[str, TaskID] = {}

        def for_slide(name: str) -> Progress:
            for task in current.values():
                progress.remove_task(task)
            progress.update(over, completed=len(seen))
            seen.append(name)
            current.clear()

            def report(phase: str, done: int, total: int) -> None:
                raise_if_stopped()
                if phase not in current:
                    current[phase] = progress.add_task(f"{name}: {phase}", total=total, rate="")
                speed = progress.tasks[progress.task_ids.index(current[phase])].speed
                rate = f"{speed:.1f} tiles/s" if speed else ""
                progress.update(current[phase], completed=done, rate=rate)

            return report

        seen: list[str] = []
        yield for_slide
