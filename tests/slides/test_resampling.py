"""Resampling against exact means in float64, at every kind of scale."""

import errno
from typing import Any

import numpy as np
import pytest

from fseg_jax.slides import resampling
from fseg_jax.slides.resampling import make_taps, resample

SCALES = [0.3, 0.9975, 1.0002, 1.002, 1.1, 1.4, 1.979, 2.0, 2.004, 3.957, 13.3, 60.7]


def mean_of_area(pixels: np.ndarray, first: int, start: int, count: int, scale: float) -> np.ndarray:
    """The mean of each output pixel's area along the first axis, by an integral; below 1, interpolated."""
    flat = pixels.reshape(len(pixels), -1)
    if scale <= 1:
        centre = (np.arange(start, start + count) + 0.5) * scale - 0.5 - first
        columns = [np.interp(centre, np.arange(len(flat)), column) for column in flat.T]
        return np.stack(columns, axis=1).reshape(count, *pixels.shape[1:])
    total = np.concatenate([np.zeros((1, flat.shape[1])), flat.cumsum(0)])
    edges = np.arange(start, start + count + 1) * scale - first
    at = np.stack([np.interp(edges, np.arange(len(total)), column) for column in total.T], axis=1)
    return (np.diff(at, axis=0) / scale).reshape(count, *pixels.shape[1:])


@pytest.mark.smoke
@pytest.mark.parametrize("scale", SCALES)
def test_pixels_are_the_exact_mean_rounded(scale: float) -> None:
    height, width = (37, 90) if scale < 5 else (4, 7)
    rows, columns = make_taps(1003, height, scale), make_taps(77, width, scale)
    noise = np.random.default_rng(0).integers(0, 256, (rows.length, columns.length, 3))
    pixels = noise.astype(np.uint8)
    exact = mean_of_area(pixels.astype(float), rows.first, 1003, height, scale)
    exact = mean_of_area(exact.swapaxes(0, 1), columns.first, 77, width, scale).swapaxes(0, 1)
    assert np.abs(resample(pixels, rows, columns) - exact).max() < 0.52
    for value in (0, 255):  # sums of 32 bits hold the largest
        assert (resample(np.full_like(pixels, value), rows, columns) == value).all()


@pytest.mark.parametrize("scale", SCALES)
def test_every_pixel_has_its_own_weights_in_any_box(scale: float) -> None:
    """Wide boxes whose pixels follow the level's take other loops than narrow ones."""
    rows, columns = make_taps(0, 5, scale), make_taps(500, 120, scale)
    pixels = np.random.default_rng(1).integers(0, 256, (rows.length, columns.length, 3), np.uint8)
    whole = resample(pixels, rows, columns)
    for x in range(0, 118, 7):
        part = make_taps(500 + x, 2, scale)
        begin = part.first - columns.first
        box = resample(pixels[:, begin : begin + part.length], rows, part)
        np.testing.assert_array_equal(box, whole[:, x : x + 2])
    assert columns.weights.sum(axis=1).tolist() == [1 << 16] * 120


def test_the_loops_are_compiled_once_for_all_shapes() -> None:
    compiled = resampling._compile()
    for scale in SCALES:
        rows, columns = make_taps(3, 4, scale), make_taps(9, 5, scale)
        frozen = np.zeros((rows.length, columns.length, 3), np.uint8)
        frozen.flags.writeable = False
        resample(frozen, rows, columns)
    assert resampling._compile() is compiled and len(compiled.signatures) == 1


def fill(pixels: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, out: Any) -> None:
    out[:] = 7


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("FunctionCache.__init__", RuntimeError("no locator available")),
        ("IndexDataCacheFile.save", OSError(errno.ENOSPC, "No space left on device")),
        ("IndexDataCacheFile.load", EOFError("Ran out of input")),
    ],
)
def test_loops_are_compiled_where_they_cannot_be_kept(
    call: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(f"numba.core.caching.{call}", fail)
    monkeypatch.setattr(resampling, "_resample", fill)  # it compiles in a moment
    monkeypatch.setattr(resampling, "_compile", resampling._compile_once.__wrapped__)
    taps = make_taps(0, 4, 2.0)
    assert (resample(np.zeros((8, 8, 3), np.uint8), taps, taps) == 7).all()
