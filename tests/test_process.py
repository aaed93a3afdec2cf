"""The memory of this process."""

import gc
import subprocess
import sys
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


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_kept() -> None:
    """In a process of its own: what the allocator was told cannot be taken back."""
    program = """
import resource, sys
import numpy as np
from fseg_jax.process import keep_freed_memory
if "keep" in sys.argv: keep_freed_memory()
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3): np.ones(64 << 20, np.uint8)
before = faults()
for _ in range(3): np.ones(64 << 20, np.uint8)
print(faults() - before)
"""
    given_back, kept = (
        int(subprocess.run([sys.executable, "-c", program, *words], capture_output=True, check=True).stdout)
        for words in ((), ("keep",))
    )
    assert kept < given_back / 2
