"""How many tiles go to the encoder at once, and how many threads decode them, where nobody says.

======================  ================  ==========================  =======
device                  pixels at once    tiles of 224² and of 512²   threads
======================  ================  ==========================  =======
CPU                     2²⁰               8 (no more) and 4           2
less than 12 GiB        2²¹               40 and 8                    1 a core, 2 to 16
less than 30 GiB        2²²               80 and 16                   the same
less than 60 GiB        2²³               160 and 32                  the same
more                    2²⁴               256 (no more) and 64        the same
======================  ================  ==========================  =======

No result depends on either. On a CPU more tiles at once are no quicker, and the last batch, which is padded,
wastes more. Cores are shared by the processes of a machine.
"""

import os
from functools import cache

import jax

_MOST_ON_CPU, _MOST = 8, 256  # tiles
_PIXELS_ON_CPU = 1 << 20
_PIXELS = ((12, 1 << 21), (30, 1 << 22), (60, 1 << 23))  # below so many GiB
_PIXELS_OF_MORE = 1 << 24
_THREADS_ON_CPU, _MOST_THREADS = 2, 16
# Tiles that are labelled at once, and contributions of all clusters in them.
_BLOCKS_ON_CPU, _WEIGHTS_ON_CPU = 4, 1 << 22
_BLOCKS, _WEIGHTS = 32, 1 << 25


def choose_batch(batch: int | None, side: int) -> int:
    """Choose how many tiles of ``side`` pixels are encoded at once: as many as are asked for, if any."""
    return batch or _fit_batch(_read_device_memory(), side)


def choose_blocks(weights: int) -> int:
    """Choose how many tiles are labelled at once; each has so many ``weights``, those of all clusters."""
    on_cpu = _read_device_memory() is None
    blocks, limit = (_BLOCKS_ON_CPU, _WEIGHTS_ON_CPU) if on_cpu else (_BLOCKS, _WEIGHTS)
    return max(1, min(blocks, limit // weights))


def choose_threads(threads: int | None, processes: int = 1) -> int:
    """Choose how many threads decode: as many as are asked for, if any.

    Args:
        threads: So many are asked for; None: by the device and the machine.
        processes: Processes like this one on the machine.
    """
    if threads:
        return threads
    return _THREADS_ON_CPU if _read_device_memory() is None else _share_cores(_count_cores(), processes)


def _fit_batch(memory: int | None, side: int) -> int:
    """Fit a batch to a device's bytes of memory; None: a CPU."""
    if memory is None:
        return max(1, min(_MOST_ON_CPU, _PIXELS_ON_CPU // side**2))
    pixels = next((size for below, size in _PIXELS if memory < below << 30), _PIXELS_OF_MORE)
    tiles = min(_MOST, pixels // side**2)
    return max(1, tiles // 8 * 8 or tiles)


def _share_cores(cores: int, processes: int) -> int:
    return min(_MOST_THREADS, max(2, cores // processes))


def _count_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _read_device_memory() -> int | None:
    """Read the bytes of memory of the device; None: it is a CPU."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return None
    return int((device.memory_stats() or {}).get("bytes_limit", 0))
