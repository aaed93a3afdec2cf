"""The net under every command, and the options that are numbers."""

import logging
from collections.abc import Iterator

import click
import numpy as np
import pytest

from fseg_jax import cli
from fseg_jax.cli import machine
from fseg_jax.cli.parameters import Number, WholeNumber
from fseg_jax.cohort import engines
from fseg_jax.errors import InputError, explain, note_work
from fseg_jax.process import get_verbosity, set_verbosity


def fseg(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(a) for a in arguments])
    return exit_.value.code


def commands(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands(cli.cli))
NUMBERS = [
    (path, option)
    for path, command in COMMANDS.items()
    for option in command.params
    if isinstance(option.type, Number | WholeNumber)
]


def fail(*_: object) -> None:
    with note_work("looking at the machine"):
        raise ZeroDivisionError("two\nlines")


def test_a_fault_is_one_line_that_says_what_was_done(monkeypatch, capsys):
    monkeypatch.setattr(machine, "check_machine", fail)
    assert fseg("doctor") == 2
    assert capsys.readouterr().err == (
        "fseg: error: looking at the machine: ZeroDivisionError: two lines; "
        "this is a fault of the program: run again with -v for the traceback\n"
    )


def test_v_shows_the_traceback_of_a_fault(monkeypatch, capsys):
    monkeypatch.setattr(machine, "check_machine", fail)
    assert fseg("doctor", "-v") == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err and "raise ZeroDivisionError" in err


def test_what_compiled_code_raises_is_one_line_too(monkeypatch, capsys):
    class PanicError(BaseException):
        """Rust's panics come to Python as one of these."""

    def panic():
        raise PanicError("index out of bounds")

    monkeypatch.setattr(machine, "check_machine", panic)
    assert fseg("doctor") == 2
    assert capsys.readouterr().err.startswith("fseg: error: PanicError: index out of bounds; ")


def test_the_converter_has_the_same_net(monkeypatch, capsys):
    from weights_convert import __main__ as program

    monkeypatch.setattr(program, "find_row", fail)
    for arguments, traceback in ((["uni"], False), (["uni", "-v"], True)):
        with pytest.raises(SystemExit) as exit_:
            program.main(arguments)
        err = capsys.readouterr().err
        assert exit_.value.code == 2 and ("Traceback" in err) == traceback
        assert err.startswith("weights_convert: error: looking at the machine: ZeroDivisionError")


def test_a_worker_that_cannot_start_says_why_in_one_line(monkeypatch):
    monkeypatch.setattr(engines, "load_card", fail)
    assert engines._describe(None).startswith("looking at the machine: ZeroDivisionError: two lines; ")


def test_workers_say_as_much_as_was_asked_for():
    for level in (0, 1, 2):
        set_verbosity(level)
        assert get_verbosity() == level
    set_verbosity(0)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_takes_v(path):
    assert sum("--verbose" in parameter.opts for parameter in COMMANDS[path].params) == 1


@pytest.mark.parametrize(("path", "option"), NUMBERS, ids=[f"{' '.join(p)} {o.opts[-1]}" for p, o in NUMBERS])
def test_a_number_out_of_range_is_one_line_that_names_the_option(path, option, capsys):
    for value in ("nan", "inf", "-inf", "1e300", "9" * 5000, "-1", "many"):
        assert fseg(*path, option.opts[-1], *[value] * option.nargs) == 2
        err = capsys.readouterr().err
        assert err.startswith("fseg: error: Invalid value for ") and option.opts[-1] in err
        assert err.count("\n") == 1 and len(err) < 300


def test_every_number_is_in_a_range():
    plain = (click.types.FloatParamType, click.types.IntParamType)
    found = [(p, o.opts) for p, c in COMMANDS.items() for o in c.params if isinstance(o.type, plain)]
    assert [opts for _, opts in found if "--verbose" not in opts] == [] and len(NUMBERS) > 50


def test_advice_on_memory_names_options_that_there_are():
    assert explain(MemoryError()) == "out of memory: choose a smaller --batch or --tile"
    assert explain(MemoryError(), ["output", "training-batch"]).endswith("choose a smaller --training-batch")
    assert "--" not in explain(MemoryError(), ["output"])


def test_jax_has_no_memory_either():
    import jax

    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 80 bytes.\nmore")
    assert explain(error) == "out of memory: choose a smaller --batch or --tile"
    assert "fault" in explain(jax.errors.JaxRuntimeError("INTERNAL: something"))


def test_a_size_that_no_machine_has_is_not_for_want_of_memory():
    with pytest.raises(MemoryError) as caught:
        np.empty(2**60, np.uint8)
    said = explain(caught.value)
    assert "1,073,741,824 GiB of memory are asked for" in said and "--batch" not in said


def test_a_command_that_is_nearly_right_is_answered_with_the_nearest(capsys):
    assert fseg("segmnt", "a.svs") == 2
    assert "did you mean segment?" in capsys.readouterr().err
    assert fseg("codebook", "shw") == 2
    assert "did you mean show?" in capsys.readouterr().err


def test_the_default_encoder_has_as_many_channels_in_the_list_as_in_its_card(capsys):
    assert fseg("encoders") == 0
    assert "he-small: the default. 276 channels" in capsys.readouterr().out
    assert fseg("encoders", "he-small") == 0
    assert "276" in capsys.readouterr().out


def test_an_input_error_is_said_as_it_is():
    with pytest.raises(InputError) as caught, note_work("nothing of note"):
        raise InputError("a  file.svs: gone")
    assert explain(caught.value) == "a  file.svs: gone"


@pytest.fixture(autouse=True)
def quiet_again() -> Iterator[None]:
    yield
    logging.getLogger("fseg_jax").setLevel(logging.NOTSET)
