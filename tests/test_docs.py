"""What README and the site say can be typed is what the command line takes."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from fseg_jax.cli import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def read_commands(page: Path) -> Iterator[str]:
    """Yield the lines of the page's shell blocks that run fseg, continued ones joined."""
    for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|", line):
                if match := re.match(r"\s*(?:srun )?(fseg .*)", part):
                    yield match[1]


COMMANDS = [
    pytest.param(line, id=f"{page.relative_to(ROOT)}: {line}") for page in PAGES for line in read_commands(page)
]


def parse(line: str) -> None:
    """Parse a command line as click does, up to its values."""
    arguments = shlex.split(line, comments=True)[1:]
    command: click.Command = cli
    context = click.Context(cli, info_name="fseg")
    while isinstance(command, click.Group):
        name = arguments.pop(0) if arguments and arguments[0] in command.commands else "fseg"
        command = command.commands[name]
        context = click.Context(command, parent=context, info_name=name)
    parser = command.make_parser(context)
    _, left, _ = parser.parse_args(arguments)
    assert not left or any(isinstance(p, click.Argument) and p.nargs == -1 for p in command.params)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_line_is_understood(line):
    parse(line)


@pytest.mark.parametrize(
    "line", ["fseg segment a.svs -o out --kk 8", "fseg segmented", "fseg cohort a.csv extra -o out"]
)
def test_what_is_not_is_told(line):
    with pytest.raises((click.ClickException, AssertionError, KeyError)):
        parse(line)


def test_every_option_of_a_table_is_one():
    options = {option for command in walk(cli) for p in command.params for option in (*p.opts, *p.secondary_opts)}
    known = options | {"--help", "--version", "--system-site-packages"}
    for page in PAGES:
        if page.name == "README.md" and page.parent == ROOT or "guide" in page.parts or page.parent.name == "docs":
            for said in re.findall(r"`(--[a-z][a-z0-9-]+)", page.read_text(encoding="utf-8")):
                assert said in known, f"{page.name}: {said}"


def walk(command: click.Command) -> Iterator[click.Command]:
    """Yield a command and all below it."""
    yield command
    if isinstance(command, click.Group):
        for subcommand in command.commands.values():
            yield from walk(subcommand)
