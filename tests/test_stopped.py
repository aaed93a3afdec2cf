"""A signal that was swallowed, in a callback of compiled code, stops whatever takes long."""

import gc
import multiprocessing
import sys
import weakref
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from fseg_jax.cli.fit import _show_progress
from fseg_jax.cli.pretrain import _show_steps
from fseg_jax.cli.terminal import show_progress
from fseg_jax.cohort.engines import Local, _Worker
from fseg_jax.process import STOPPED, silence_swallowed_interrupts


@pytest.fixture
def swallowed() -> Iterator[None]:
    STOPPED.set()
    yield
    STOPPED.clear()


def test_by_what_reports_slides_and_images(swallowed):
    """``segment``, ``embed``, ``evaluate`` and ``cam``."""
    with show_progress(2) as progress, pytest.raises(KeyboardInterrupt):
        progress("slide")("encode", 0, 3)


def test_by_fit(swallowed):
    with _show_progress() as (sampling, clustering):
        with pytest.raises(KeyboardInterrupt):
            sampling(0, 3, "slide")
        with pytest.raises(KeyboardInterrupt):
            clustering(1, 0.5)


def test_by_pretrain(swallowed):
    at = SimpleNamespace(step=1, loss=1.0, learning_rate=1e-3, images_per_second=1.0, score=None)
    with _show_steps(3, 1) as report, pytest.raises(KeyboardInterrupt):
        report(at)


@pytest.mark.parametrize("idle", [True, False])
def test_by_a_cohort_that_waits_for_its_workers(swallowed, monkeypatch, idle):
    """Also where the signal is swallowed while it waits."""
    ours, theirs = multiprocessing.Pipe()
    engine = Local(1)
    engine._busy[ours] = _Worker(SimpleNamespace(), ours, SimpleNamespace()), SimpleNamespace()
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
        gc.collect()
        assert reference() is None and ("Traceback" in capsys.readouterr().err) == told
