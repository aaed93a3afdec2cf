"""The memory of this process."""

import gc
from collections.abc import Iterator

import pytest

from fseg_jax.process import collect_less_often


@pytest.fixture
def python_defaults() -> Iterator[None]:
    """Collect garbage as often as Python does by itself, and afterwards as often as before."""
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


@pytest.mark.usefixtures("python_defaults")
def test_a_program_that_starts_is_not_looked_through_again_and_again() -> None:
    collect_less_often()
    gc.collect()
    before = gc.get_stats()[0]["collections"]
    kept = [[number] for number in range(100_000)]
    assert gc.get_stats()[0]["collections"] - before <= len(kept) // 10_000  # by default, a hundred and more
