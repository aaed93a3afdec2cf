"""What the commands share with the terminal: error messages, exit codes, logs and progress bars."""

import io
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from fseg_jax.errors import explain, note_work
from fseg_jax.files.kinds import suggest_names
from fseg_jax.process import Progress, raise_if_stopped, set_verbosity

_log = logging.getLogger(__name__)


def run_command(command: click.Command, arguments: list[str] | None, name: str) -> int:
    """Run a command line, and return its exit code.

    Whatever is raised becomes one line; ``-v`` adds the traceback of a fault.

    Args:
        command: The command, or the group of commands.
        arguments: Its arguments; None: those of the process.
        name: Name of the program in messages.

    Returns:
        0: done. 1: something failed that the command reports. 2: bad input, or a fault. 130: interrupted.
    """
    set_verbosity(0)
    for stream in (sys.stdout, sys.stderr):  # names of files may hold bytes that are no text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    contexts: list[click.Context] = []  # the command's, once its line is parsed
    try:
        code = command.main(arguments, prog_name=name, standalone_mode=False, obj=contexts)
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
    except BaseException as error:  # compiled code also raises what is no Exception
        options = [option[2:] for p in (contexts[-1].command.params if contexts else []) for option in p.opts]
        click.echo(f"{name}: error: {explain(error, options)}", err=True)
        _log.info("the traceback:", exc_info=error)
    return 2


def accept_verbose(command: click.Command) -> None:
    """Give a command, or every command of a group, the option ``-v``."""
    if isinstance(command, click.Group):
        for subcommand in command.commands.values():
            accept_verbose(subcommand)
    else:
        command.params.append(
            click.Option(
                ["-v", "--verbose"],
                count=True,
                expose_value=False,
                is_eager=True,
                callback=_set_verbosity,
                help="Log each step, and tracebacks of errors; twice for more.",
            )
        )


def _set_verbosity(context: click.Context, _: click.Parameter, verbose: int) -> None:
    set_verbosity(verbose)
    if isinstance(context.obj, list):
        context.obj.append(context)


@contextmanager
def tolerate_failure(slides: Sequence[Path], action: str) -> Iterator[None]:
    """Print what goes wrong with one slide of several, and go on; with a single slide, raise it."""
    try:
        with note_work(action):
            yield
    except Exception as error:
        if len(slides) == 1:
            raise
        click.echo(f"fseg: error: {explain(error)}", err=True)
        _log.info("the traceback:", exc_info=error)


class CommandGroup(click.Group):
    """A group of commands that answers an unknown name with the nearest one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments name."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            hint = suggest_names(args[0], self.commands)
            ctx.fail(f"no command is called {args[0]!r}: {hint}{ctx.command_path} -h lists them")
        return super().resolve_command(ctx, args)


@contextmanager
def show_progress(slides: int) -> Iterator[Callable[[str], Progress]]:
    """Show a bar over slides and one over a slide's tiles, with speed and time left.

    Gives a function that takes a slide's name and returns its progress. Without a terminal there are no bars.
    """
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
    with Bars(*columns, console=console, transient=True) as bars:
        total_task = bars.add_task("slides", total=slides, rate="", visible=slides > 1)
        tasks: dict[str, TaskID] = {}  # by phase

        def for_slide(name: str) -> Progress:
            for task in tasks.values():
                bars.remove_task(task)
            bars.update(total_task, completed=len(names))
            names.append(name)
            tasks.clear()

            def progress(phase: str, done: int, total: int) -> None:
                raise_if_stopped()
                if phase not in tasks:
                    tasks[phase] = bars.add_task(f"{name}: {phase}", total=total, rate="")
                speed = bars.tasks[bars.task_ids.index(tasks[phase])].speed
                rate = f"{speed:.1f} tiles/s" if speed else ""
                bars.update(tasks[phase], completed=done, rate=rate)

            return progress

        names: list[str] = []  # of the slides so far
        yield for_slide
