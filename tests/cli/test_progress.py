"""What a command shows while it works: on a terminal, which is pyte's, and in a log."""

import logging
import os
import pty
import subprocess
import sys
import time

import pytest

from fseg_jax import cli
from fseg_jax.cli import progress
from fseg_jax.cli.progress import show_progress
from fseg_jax.process import QUIET, format_seconds, set_verbosity

pyte = pytest.importorskip("pyte")

COMMAND = """
import logging, time
from pathlib import Path
from fseg_jax.cli.terminal import tolerate_failure
from fseg_jax.cli.progress import show_progress
from fseg_jax.errors import InputError
from fseg_jax.process import set_verbosity
set_verbosity(0)
with show_progress(2) as display:
    time.sleep(.2)
    for name in ("one", "two"):
        tell = display.begin(name)
        for done in range(4):
            tell("codebook", done, 3)
            time.sleep(.04)
        logging.getLogger("fseg_jax").warning("%s is odd", name)
        with tolerate_failure([Path("one"), Path("two")], "reading"):
            raise InputError(f"{name} is bad")
        display.print(f"out/{name}.png")
"""


def read_terminal(stdout: int | None = None) -> tuple[list[str], set[str]]:
    """Run the command in a terminal: what is left on its screen, and every line that was there once."""
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        stdin=terminal,
        stdout=terminal if stdout is None else stdout,
        stderr=terminal,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"},
    )
    os.close(terminal)
    screen = pyte.Screen(100, 30)
    stream, seen = pyte.ByteStream(screen), set()
    while True:
        try:
            data = os.read(main, 4096)
        except OSError:  # how Linux says that the other side is closed
            break
        if not data:
            break
        stream.feed(data)
        seen |= {line.rstrip() for line in screen.display}
    os.close(main)
    assert process.wait() == 0
    return [line.rstrip() for line in screen.display if line.strip()], seen


def test_results_and_warnings_stay_on_a_terminal_and_bars_do_not():
    left, seen = read_terminal()
    assert left == [
        line
        for name in ("one", "two")
        for line in (f"fseg: {name} is odd", f"fseg: error: {name} is bad", f"out/{name}.png")
    ]
    assert any("starting" in line for line in seen)
    assert any("two: codebook" in line and "/3" in line for line in seen)


def test_results_go_to_the_file_that_standard_output_is(tmp_path):
    with (tmp_path / "paths.txt").open("wb") as file:
        left, _ = read_terminal(file.fileno())
    assert (tmp_path / "paths.txt").read_text() == "out/one.png\nout/two.png\n"
    assert left == [
        line for name in ("one", "two") for line in (f"fseg: {name} is odd", f"fseg: error: {name} is bad")
    ]


def test_a_log_has_a_line_now_and_then_with_the_time_left(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with show_progress(3) as display:
        for name in ("one", "two"):
            tell = display.begin(name)
            for done in range(0, 101, 10):
                tell("segmentation", done, 100)
                now[0] += 4
        display.update("k-means, passes", 0, None)
        now[0] += 31
        display.update("k-means, passes", 7, None, "shift 3 of its limit")
    assert capsys.readouterr().err.splitlines() == [
        "fseg: [1/3] one: segmentation 80/100 · 2.5/s · 8 s left",
        "fseg: [2/3, 68 s left] two: segmentation 50/100 · 2.5/s · 20 s left",
        "fseg: [2/3, 13 s left] two: k-means, passes 7 · 0.226/s · shift 3 of its limit",
    ]


def test_short_work_says_nothing_in_a_log(capsys):
    with show_progress() as display:
        display.begin("one")("segmentation", 1, 2)
        display.note("loading")
        display.print("out/one.png")
    assert capsys.readouterr() == ("out/one.png\n", "")


def test_quiet_says_nothing_but_results_and_errors(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LOG_EVERY", 0.0)
    set_verbosity(QUIET)
    try:
        with show_progress() as display:
            display.begin("one")("segmentation", 1, 2)
            display.log("step 1/2")
            logging.getLogger("fseg_jax").warning("odd")
            display.print("out/one.png")
    finally:
        set_verbosity(0)
    assert capsys.readouterr() == ("out/one.png\n", "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (99.4, "99 s"), (99.6, "2 min"), (5900, "98 min"), (6000, "1.7 h")]
)
def test_durations(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_options(shell, capsys, monkeypatch):
    monkeypatch.setattr("click.shell_completion.BashComplete._check_version", staticmethod(lambda: None))
    with pytest.raises(SystemExit) as exit_:
        cli.main(["completion", shell])
    script = capsys.readouterr().out
    assert exit_.value.code == 0 and "_FSEG_COMPLETE" in script
    words = {"bash": ("bash", "fseg seg"), "zsh": ("zsh", "fseg seg"), "fish": ("fish", "fseg seg")}[shell]
    monkeypatch.setenv("_FSEG_COMPLETE", f"{words[0]}_complete")
    monkeypatch.setenv("COMP_WORDS", words[1] if shell != "fish" else "fseg ")
    monkeypatch.setenv("COMP_CWORD", "1" if shell != "fish" else "seg")
    with pytest.raises(SystemExit):
        cli.main([])
    assert "segment" in capsys.readouterr().out
