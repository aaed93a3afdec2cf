"""How many tiles at once, and how many threads, by the device."""

import pytest

from fseg_jax.pipeline import batching
from fseg_jax.pipeline.batching import choose_batch, choose_threads

GIB = 1 << 30


@pytest.mark.parametrize(
    ("memory", "batches"),
    [
        (None, (8, 4, 1)),  # a CPU
        (8 * GIB, (40, 8, 2)),
        (16 * GIB, (80, 16, 4)),
        (40 * GIB, (160, 32, 8)),
        (80 * GIB, (256, 64, 16)),
        (0, (40, 8, 2)),  # it does not say
    ],
)
def test_a_batch_fits_the_devices_memory_unless_it_is_given(memory, batches, monkeypatch):
    monkeypatch.setattr(batching, "_read_device_memory", lambda: memory)
    assert tuple(choose_batch(None, side) for side in (224, 512, 1024)) == batches
    assert choose_batch(3, 512) == 3 and choose_batch(None, 40_000) == 1


def test_an_accelerator_gets_a_share_of_the_cores(monkeypatch):
    assert choose_threads(None) == 2 and choose_threads(7, 4) == 7  # the tests' own device is a CPU
    monkeypatch.setattr(batching, "_read_device_memory", lambda: 80 * GIB)
    monkeypatch.setattr(batching, "_count_cores", lambda: 24)
    assert [choose_threads(None, processes) for processes in (1, 2, 3, 24)] == [16, 12, 8, 2]
