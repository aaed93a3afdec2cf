"""The resampling of a level's pixels to any resolution, in integers, by compiled code that holds no lock.

A pixel is the mean of exactly the area that it covers, or is interpolated linearly where that is less than a
level pixel. Its weights depend on its own place and are whole numbers, so that its value is the same in any
box, batch and thread. It is within half a grey level, and a few hundredths, of what real numbers give.
"""

import logging
import math
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8, UInt32

_log = logging.getLogger(__name__)

_BITS = 16  # of weights: a pixel's sum to 1 << 16
_compile_lock = threading.Lock()


class Taps(NamedTuple):
    """The level pixels of which each output pixel is made, along one axis.

    Attributes:
        first: Index of the first level pixel that any of them takes.
        length: Number of level pixels from the first to the last that any of them takes.
        start: For each output pixel, its first level pixel, counted from ``first``.
        weights: The weights of that pixel and those that follow it.
        runs: Where output pixels begin whose first level pixels follow each other, and whose third weights
            are all 0 or all not; and the end.
        of_samples: The first three weights of each pixel's red, green and blue, side by side.
    """

    first: int
    length: int
    start: Int64[np.ndarray, " count"]
    weights: UInt32[np.ndarray, "count taps"]
    runs: Int64[np.ndarray, " runs+1"]
    of_samples: UInt32[np.ndarray, "3 3*count"]


@lru_cache(maxsize=256)
def make_taps(start: int, count: int, scale: float) -> Taps:
    """Find the level pixels of ``count`` output pixels from ``start``, and their weights.

    Args:
        start: Index of the first output pixel.
        count: Number of output pixels.
        scale: Level pixels per output pixel.
    """
    index = np.arange(start, start + count)[:, None]
    if scale > 1:
        low, high = index * scale, (index + 1) * scale
        pixel = np.floor(low).astype(np.int64)
        taps = max(3, math.ceil(scale) + 1)
        # Rounded as a running sum: the weights' sum is exact.
        share = ((pixel + np.arange(1, taps + 1)).clip(low, high) - low) / scale
    else:
        centre = (index + 0.5) * scale - 0.5
        pixel = np.floor(centre).astype(np.int64)
        share = np.concatenate([1 - (centre - pixel), np.ones((count, 2))], axis=1)
    total = np.rint(share * (1 << _BITS)).astype(np.int64)
    weights = np.diff(total, axis=1, prepend=0)
    first = int(pixel[0, 0])
    last = int((pixel + np.arange(weights.shape[1]))[weights > 0].max())
    offsets = pixel[:, 0] - first
    breaks = np.flatnonzero((np.diff(offsets) != 1) | np.diff(weights[:, 2] == 0)) + 1
    runs = np.concatenate([[0], breaks, [count]]).astype(np.int64)
    of_samples = np.repeat(weights[:, :3], 3, axis=0).T.astype(np.uint32, order="C")
    return Taps(first, last - first + 1, offsets, weights.astype(np.uint32), runs, of_samples)


def resample(
    pixels: UInt8[np.ndarray, "h w 3"], rows: Taps, columns: Taps
) -> UInt8[np.ndarray, "height width 3"]:
    """Resample a box of a level, which begins with the first pixel that the taps take."""
    out = np.empty((len(rows.start), len(columns.start), 3), np.uint8)
    compiled = _compile()
    compiled(
        np.ascontiguousarray(pixels),
        rows.start,
        rows.weights,
        columns.start,
        columns.weights,
        columns.of_samples,
        columns.runs,
        out,
    )
    return out


def _resample(
    pixels: Any,
    row_start: Any,
    row_weights: Any,
    column_start: Any,
    column_weights: Any,
    sample_weights: Any,
    runs: Any,
    out: Any,
) -> None:
    """Resample along y and then along x, a row at a time; ``sample_weights`` (3, 3·width) are of each sample.

    Sums are of 32 bits: a pixel of 8 by a weight of 16, which is rounded to 16, and that by a weight of 16.
    """
    samples = 3 * pixels.shape[1]
    flat = pixels.reshape(pixels.shape[0], samples)
    total = np.empty(samples, np.uint32)
    row = np.zeros(samples + 3 * column_weights.shape[1], np.uint16)  # taps of weight 0 may lie past the end
    half = np.uint32(1 << 23)
    # Where output pixels follow the level's for long, their taps lie side by side: several times as fast.
    has_runs = column_weights.shape[1] == 3 and 8 * len(runs) < len(column_start)
    for y in range(len(row_start)):
        if row_weights.shape[1] == 3 and row_weights[y, 2] == 0:
            weight, next_weight = row_weights[y, 0], row_weights[y, 1]
            source, below = flat[row_start[y]], flat[min(row_start[y] + 1, len(flat) - 1)]
            for i in range(samples):
                value = np.uint32(128) + weight * np.uint32(source[i]) + next_weight * np.uint32(below[i])
                row[i] = np.uint16(value >> np.uint32(8))
        else:
            for i in range(samples):
                total[i] = np.uint32(128)
            for tap in range(row_weights.shape[1]):
                tap_weight = row_weights[y, tap]
                if tap_weight != 0:
                    tap_source = flat[row_start[y] + tap]
                    for i in range(samples):
                        total[i] += tap_weight * np.uint32(tap_source[i])
            for i in range(samples):
                row[i] = np.uint16(total[i] >> np.uint32(8))
        target = out[y].reshape(-1)
        if has_runs:
            for run in range(len(runs) - 1):
                begin, count = 3 * runs[run], 3 * (runs[run + 1] - runs[run])
                taps, part = row[3 * column_start[runs[run]] :], target[begin : begin + count]
                a, b, c = sample_weights[0, begin:], sample_weights[1, begin:], sample_weights[2, begin:]
                if c[0] == 0:  # as in all of the run
                    for i in range(count):
                        value = half + a[i] * np.uint32(taps[i]) + b[i] * np.uint32(taps[i + 3])
                        part[i] = np.uint8(value >> np.uint32(24))
                else:
                    for i in range(count):
                        value = half + a[i] * np.uint32(taps[i]) + b[i] * np.uint32(taps[i + 3])
                        part[i] = np.uint8((value + c[i] * np.uint32(taps[i + 6])) >> np.uint32(24))
        else:
            for x in range(len(column_start)):
                i = 3 * column_start[x]
                weight, next_weight = column_weights[x, 0], column_weights[x, 1]
                red = half + weight * np.uint32(row[i]) + next_weight * np.uint32(row[i + 3])
                green = half + weight * np.uint32(row[i + 1]) + next_weight * np.uint32(row[i + 4])
                blue = half + weight * np.uint32(row[i + 2]) + next_weight * np.uint32(row[i + 5])
                for tap in range(2, column_weights.shape[1]):
                    weight = column_weights[x, tap]
                    if weight == 0:
                        break
                    i = 3 * (column_start[x] + tap)
                    red += weight * np.uint32(row[i])
                    green += weight * np.uint32(row[i + 1])
                    blue += weight * np.uint32(row[i + 2])
                target[3 * x] = np.uint8(red >> np.uint32(24))
                target[3 * x + 1] = np.uint8(green >> np.uint32(24))
                target[3 * x + 2] = np.uint8(blue >> np.uint32(24))


def _compile() -> Callable[..., None]:
    """Compile the loops once, or take them from where an earlier process kept them."""
    with _compile_lock:
        return _compile_once()


@lru_cache(maxsize=1)
def _compile_once() -> Callable[..., None]:
    import numba

    types = numba.types
    signature = types.void(
        types.Array(types.uint8, 3, "C", readonly=True),
        types.int64[::1],
        types.uint32[:, ::1],
        types.int64[::1],
        types.uint32[:, ::1],
        types.uint32[:, ::1],
        types.int64[::1],
        types.uint8[:, :, ::1],
    )
    try:
        return numba.njit(signature, nogil=True, cache=True)(_resample)
    except Exception as error:  # there is no place to keep it, or it is full, or what is kept is damaged
        _log.debug("resampling is compiled anew: %s", error)
        return numba.njit(signature, nogil=True)(_resample)
