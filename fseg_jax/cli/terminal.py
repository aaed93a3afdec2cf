"""What the commands share with the terminal: error messages, exit codes and logs."""

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from fseg_jax.errors import explain, note_work
from fseg_jax.files.kinds import suggest_names
from fseg_jax.process import QUIET, is_quiet, set_verbosity

_log = logging.getLogger(__name__)

_OTHER_NAMES = {  # what other programs call options
    **dict.fromkeys(("clusters", "n-clusters", "num-clusters", "nclusters", "num-classes"), "--k"),
    **dict.fromkeys(("out", "outdir", "out-dir", "output-dir", "job-dir", "save-dir"), "--output"),
    **dict.fromkeys(("model", "backbone", "patch-encoder", "feature-extractor"), "--encoder"),
    **dict.fromkeys(("batch-size", "feat-batch-size"), "--batch"),
    **dict.fromkeys(("num-workers", "num-threads", "max-workers"), "--threads"),
    **dict.fromkeys(("resolution", "spacing", "target-mpp"), "--mpp"),
    **dict.fromkeys(("patch-size", "tile-size"), "--tile"),
    **dict.fromkeys(("precision",), "--dtype"),
    **dict.fromkeys(("checkpoint", "ckpt"), "--weights"),
    **dict.fromkeys(("force",), "--overwrite"),
}


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
        click.echo(f"{name}: error: {_explain_usage(error)}", err=True)
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


def say(line: object, *, err: bool = False) -> None:
    """Print a line that is no result of its own, unless only results and errors are wanted."""
    if not is_quiet():
        click.echo(line, err=err)
        (sys.stderr if err else sys.stdout).flush()


def _explain_usage(error: click.ClickException) -> str:
    """Explain a mistake in a command line; an option of other programs' is answered with ours."""
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        ours = _OTHER_NAMES.get(error.option_name.lstrip("-").replace("_", "-"))
        if any(ours in parameter.opts for parameter in error.ctx.command.params):
            return f"no option is called {error.option_name}: it is {ours} here"
    return error.format_message()


def accept_verbosity(command: click.Command) -> None:
    """Give a command, or every command of a group, the options ``-v`` and ``-q``."""
    if isinstance(command, click.Group):
        for subcommand in command.commands.values():
            accept_verbosity(subcommand)
    else:
        command.params += [
            click.Option(
                ["-v", "--verbose"],
                count=True,
                expose_value=False,
                is_eager=True,
                callback=_set_verbose,
                help="Log each step, and tracebacks of errors; twice for more.",
            ),
            click.Option(
                ["-q", "--quiet"],
                is_flag=True,
                expose_value=False,
                is_eager=True,
                callback=_set_quiet,
                help="Print results and errors only: no progress, no warnings.",
            ),
        ]


def _set_verbose(context: click.Context, _: click.Parameter, verbose: int) -> None:
    if verbose:
        set_verbosity(verbose)
    if isinstance(context.obj, list):
        context.obj.append(context)


def _set_quiet(_context: click.Context, _: click.Parameter, quiet: bool) -> None:
    if quiet:
        set_verbosity(QUIET)


@contextmanager
def tolerate_failure(
    slides: Sequence[Path], action: str, report: Callable[[str], None] = lambda reason: None
) -> Iterator[None]:
    """Print what goes wrong with one slide of several, and go on; with a single slide, raise it.

    ``report`` is called with the reason in both cases.
    """
    try:
        with note_work(action):
            yield
    except Exception as error:
        report(explain(error))
        if len(slides) == 1:
            raise
        _log.error("error: %s", explain(error))  # the log keeps clear of progress bars
        _log.info("the traceback:", exc_info=error)


def encode_result(name: str, record: Mapping[str, Any] | None, paths: Sequence[str], reason: str = "") -> str:
    """Encode what came of a slide as a line of JSON.

    Args:
        name: The slide's name.
        record: Its record; None: it failed.
        paths: Its outputs.
        reason: Why it failed.
    """
    line: dict[str, Any] = {"slide": name, "status": "failed" if record is None else "done"}
    if record is None:
        line["error"] = reason
    else:
        line["outputs"] = [*paths]
        line |= {key: record[key] for key in ("areas_mm2", "tissue_mm2", "seconds") if key in record}
    return json.dumps(line, ensure_ascii=False)


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
