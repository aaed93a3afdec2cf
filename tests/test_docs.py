"""What README and the site say can be typed is what the command line takes."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

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
    pytest.param(line, id=f"{page.relative_to(ROOT)}: {line}")
    for page in PAGES
    for line in read_commands(page)
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


@pytest.mark.parametrize("page", [page for page in PAGES if "results" not in page.parts])
def test_every_option_in_the_text_is_one(page):
    known = {name for command in walk(cli) for p in command.params for name in (*p.opts, *p.secondary_opts)}
    said = set(re.findall(r"`(--[a-z][a-z0-9-]+)", page.read_text(encoding="utf-8")))
    assert said <= known


def walk(command: click.Command) -> Iterator[click.Command]:
    """Yield a command and all below it."""
    yield command
    if isinstance(command, click.Group):
        for subcommand in command.commands.values():
            yield from walk(subcommand)


def test_every_extra_is_in_the_table():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    assert [extra for extra in extras if f"`{extra}`" not in table] == []


def test_the_hooks_are_the_linters_of_ci():
    if not (ROOT / ".ci" / "run").exists():
        pytest.skip("this is no checkout")
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {hook["entry"] for hook in hooks} <= set((ROOT / ".ci" / "run").read_text().splitlines())


def test_every_finding_is_in_the_index():
    index = (ROOT / "findings" / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in (ROOT / "findings").glob("*.sh") if f"]({path.name})" not in index] == []
