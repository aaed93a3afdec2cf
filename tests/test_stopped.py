"""A signal that was swallowed, in a callback of compiled code, stops whatever takes long."""

import multiprocessing
import sys
import weakref
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from fseg_jax.cli.progress import show_progress
from fseg_jax.cohort.engines import Local, _Worker
from fseg_jax.process import STOPPED, silence_swallowed_interrupts


@pytest.fixture
def swallowed() -> Iterator[None]:
    STOPPED.set()
    yield
    STOPPED.clear()


def test_by_what_reports_slides_and_images(swallowed):
    """Every long command does, whatever it shows."""
    with show_progress(2) as display:
        with pytest.raises(KeyboardInterrupt):
            display.begin("slide")
        with pytest.raises(KeyboardInterrupt):
            display.update("encode", 0, 3)


@pytest.mark.parametrize("idle", [True, False])
def test_by_a_cohort_that_waits_for_its_workers(swallowed, monkeypatch, idle):
    """Also where the signal is swallowed while it waits."""
    ours, theirs = multiprocessing.Pipe()
    engine = Local(1)
    engine._workers.append(_Worker(SimpleNamespace(), ours, SimpleNamespace(), {"S": SimpleNamespace()}))
    if not idle:
        STOPPED.clear()

        def wait(connections: list, seconds: float) -> list:
            assert 0 < seconds < 10
            STOPPED.set()
            return []

        monkeypatch.setattr("fseg_jax.cohort.engines.wait", wait)
    with pytest.raises(KeyboardInterrupt):
        next(engine.run(SimpleNamespace(), [], False))
    ours.close()
    theirs.close()


def test_and_it_is_no_traceback(swallowed, monkeypatch, capsys):
    """As of any other exception that nobody can catch, which is one."""

    class Thing:
        pass

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    def failed(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    silence_swallowed_interrupts()
    for callback, told in ((interrupted, False), (failed, True)):
        thing = Thing()
        reference = weakref.ref(thing, callback)
        del thing
        assert reference() is None and ("Traceback" in capsys.readouterr().err) == told
