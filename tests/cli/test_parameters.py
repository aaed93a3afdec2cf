"""Options that take lists, in every spelling and at every place."""

import ast
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fseg_jax import cli
from fseg_jax.cli.parameters import ListCommand, Number, WholeNumber

pytestmark = pytest.mark.smoke


@click.command(cls=ListCommand)
@click.argument("source")
@click.option("-o", "--output")
@click.option("--k", type=WholeNumber(1), multiple=True, default=[16, 32])
@click.option("--share", type=Number(0, 1), multiple=True)
@click.option("--mode", type=click.Choice(["fixed", "assign"]), multiple=True)
@click.option("--encoder", multiple=True)
@click.option("--range", "range_", type=float, nargs=2)
@click.option("--overwrite", is_flag=True)
@click.option("-v", count=True)
def command(**options: object) -> None:
    """Print what was understood."""
    click.echo(repr({name: value for name, value in options.items() if value}))


def understood(*arguments: str) -> dict[str, object]:
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    return ast.literal_eval(result.output)


def mistake(*arguments: str) -> str:
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 2, result.output
    return result.output


def test_without_the_option_the_default_is_taken():
    assert understood("a.csv") == {"source": "a.csv", "k": (16, 32)}


@pytest.mark.parametrize(
    "values",
    [
        ["--k", "16,32,64"],
        ["--k=16,32,64"],
        ["--k", "16", "32", "64"],
        ["--k=16", "32", "64"],
        ["--k", "16", "--k", "32", "--k", "64"],
        ["--k", "16,32", "64"],
        ["--k", "16,", "32,", "64"],
        ["--k", "16, 32, 64"],
        ["--k", "16,32", "--k", "64"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize(
    "others", [[], ["-o", "x"], ["--overwrite"], ["--range", "1", "-2"], ["-v"]], ids=" ".join
)
def test_every_spelling_in_every_order_is_the_same(values, others):
    expected = understood("a.csv", *others) | {"k": (16, 32, 64)}
    for order in (
        ["a.csv", *values, *others],
        ["a.csv", *others, *values],
        [*values, "a.csv", *others],
        [*values, *others, "a.csv"],
        [*others, *values, "a.csv"],
        [*others, "a.csv", *values],
        [*others, *values, "--", "a.csv"],
    ):
        assert understood(*order) == expected, order


def test_lists_of_several_options_beside_each_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    expected = {
        "source": "data",
        "output": "x",
        "k": (2, 3),
        "share": (0.5, 0.9),
        "mode": ("fixed", "assign"),
        "encoder": ("uni", "resnet50"),
    }
    lists = (["--k", "2", "3"], ["--share", "0.5", "0.9"], ["--mode", "fixed", "assign"])
    lists = (*lists, ["--encoder", "uni", "resnet50"])
    for i in range(len(lists)):
        turned = [*lists[i:], *lists[:i]]
        words = [word for values in turned for word in values]
        for order in ([*words, "-o", "x", "data"], ["data", *words, "-o", "x"], [*words, "data", "-o", "x"]):
            assert understood(*order) == expected, order
        first = [*turned[0], "data", *(word for values in turned[1:] for word in values), "-o", "x"]
        assert understood(*first) == expected


def test_a_word_that_is_no_value_is_the_argument_only_where_that_is_missing():
    assert understood("--k", "16", "many")["source"] == "many"
    assert "'many': give a whole number" in mistake("a.csv", "--k", "16", "many")
    assert "'many': give a whole number" in mistake("--k", "16", "many", "-o", "x", "a.csv")
    assert "'many': give a whole number" in mistake("--k", "many", "a.csv")
    assert "unexpected extra argument" in mistake("--k", "16", "a.csv", "32")
    assert "Missing argument 'SOURCE'" in mistake("--k", "16", "32")
    assert "requires an argument" in mistake("a.csv", "--k")


def test_a_file_is_not_cut_at_its_commas(tmp_path):
    path = tmp_path / "my, own.safetensors"
    path.touch()
    assert understood("a", "--encoder", str(path), "uni")["encoder"] == (str(path), "uni")
    assert understood("a", "--encoder", f"uni={path}")["encoder"] == (f"uni={path}",)
    assert understood("a", "--encoder", "uni=a,he=b")["encoder"] == ("uni=a", "he=b")
    assert understood("a", "--encoder", ",".join(["n" * 300] * 2))["encoder"] == ("n" * 300,) * 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fit", "--k", "16", "none.csv", "-o", "x.safetensors"], "none.csv: no such file"),
        (["fit", "--k", "16", "32", "-o", "x.safetensors", "none.csv"], "none.csv: no such file"),
        (["fit", "none.csv", "-o", "x.safetensors", "--k", "16", "32"], "none.csv: no such file"),
        (["fit", "none.csv", "--k", "16,32", "-o", "x.safetensors"], "none.csv: no such file"),
        (["evaluate", "none", "--k", "16", "32", "--encoder", "classical", "-o", "x"], "no such folder"),
        (["evaluate", "--k", "16", "32", "none", "-o", "x"], "none: no such folder"),
        (["evaluate", "none", "--k", "16", "many", "-o", "x"], "'many'"),
        (["evaluate", "none", "--encoder", "classical,uno", "-o", "x"], "no such folder"),
        (["evaluate", "sic", "--clicks", "1", "3", "none", "-o", "x"], "none: no such folder"),
    ],
)
def test_commands_take_lists_before_and_after_what_they_work_on(
    arguments, says, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    message = capsys.readouterr().err
    assert exit_.value.code == 2 and says in message and message.count("\n") == 1
