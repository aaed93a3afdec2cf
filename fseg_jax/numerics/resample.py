"""From grids of tokens to pixels: upsampling, and the argmax of what is upsampled.

A token's value lies at the centre of its ``stride × stride`` pixels (half-pixel centres, as in torch's
``interpolate(align_corners=False)``).
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from fseg_jax.numerics.axes import find_first
from fseg_jax.numerics.packing import recompute_rows

# Channels interpolated in a cell between four tokens. Most cells need few; only the others take more.
FEW_CHANNELS, MORE_CHANNELS = 2, 16
CHANNELS_AT_ONCE = 8  # channels that an accelerator compares in a pass over the pixels

_Largest = tuple[tuple[Array, Array], ...]  # for each part of a cell: the largest value so far, and its label


def upsample_nearest(labels: Int[Array, "b h w"], stride: int) -> Int[Array, "b height width"]:
    """Repeat every token's label over its ``stride × stride`` pixels."""
    return jnp.repeat(jnp.repeat(labels, stride, axis=1), stride, axis=2)


def upsample_argmax(W: Float[Array, "b p q k"], stride: int) -> Int[Array, "b height width"]:
    """Upsample every channel bilinearly, and return the largest at each pixel: 1…k, or 0 if none is > 0.

    ``W (b, h + 2, w + 2, k)`` ≥ 0 has a frame of one token on each side, which is left out of the result,
    ``(b, h·stride, w·stride)``. Ties go to the lowest channel.
    """
    begin = (stride + 1) // 2  # half tokens of the frame
    h, w = (stride * (size - 2) for size in W.shape[1:3])
    by = partial(jax.lax.platform_dependent, jnp.moveaxis(W, -1, 0))
    labels: Array = by(
        cpu=partial(_argmax_of_candidates, stride=stride), default=partial(_argmax_of_all, stride=stride)
    )
    return labels[:, begin : begin + h, begin : begin + w]


def _place_pixels(stride: int, dtype: jnp.dtype) -> Float[Array, " side"]:
    """Place the pixels between two tokens, or between a token and the midpoint where the stride is even."""
    if stride % 2:
        return jnp.arange(stride, dtype=dtype) / stride
    return (jnp.arange(stride // 2, dtype=dtype) + 0.5) / (stride // 2)


def _interpolate(
    corners: Sequence[Float[Array, "..."]], down: Float[Array, "..."], across: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Interpolate between a cell's corners: top left, top right, bottom left, bottom right."""
    a, b, c, d = corners
    left, right = a * (1 - down) + c * down, b * (1 - down) + d * down
    return left * (1 - across) + right * across


def _argmax_of_all(W: Float[Array, "k b p q"], stride: int) -> Int[Array, "b height width"]:
    """Find the largest channel at every pixel between tokens, one channel after another, for an accelerator.

    To leave channels out, as ``_argmax_of_candidates`` does, takes gathers, which are slow there. The
    values are the same to the bit, and so are the labels.
    """
    k, b, p, q = W.shape
    t = _place_pixels(stride, W.dtype)
    side = len(t)
    parts = stride // side  # of a cell, along each axis
    down, across = t.reshape(-1, 1, 1, 1, 1), t.reshape(1, -1, 1, 1, 1)
    # Cells lie along the last axes, which is what vectors are made of, and their pixels along the first.
    shape = (side, side, b, p - 1, q - 1)

    def step(state: _Largest, channel: tuple[Array, Array]) -> tuple[_Largest, None]:
        w, label = channel
        points = [[w[:, y : p - 1 + y, x : q - 1 + x] for x in (0, 1)] for y in (0, 1)]
        if parts == 2:
            points = [
                points[0],
                [(above + below) * 0.5 for above, below in zip(*points, strict=True)],
                points[1],
            ]
            points = [[left, (left + right) * 0.5, right] for left, right in points]
        new = []
        for (y, x), (largest, best) in zip(np.ndindex(parts, parts), state, strict=True):
            corners = [points[y + i][x + j][None, None] for i in (0, 1) for j in (0, 1)]
            value = _interpolate(corners, down, across)
            better = value > largest
            new.append((jnp.where(better, value, largest), jnp.where(better, label, best)))
        return tuple(new), None

    nothing = (jnp.zeros(shape, W.dtype), jnp.zeros(shape, jnp.int32))
    labels = jnp.arange(1, k + 1, dtype=jnp.int32)
    state, _ = jax.lax.scan(step, (nothing,) * parts**2, (W, labels), unroll=min(k, CHANNELS_AT_ONCE))
    best = jnp.stack([best for _, best in state]).reshape(parts, parts, *shape)
    best = best.astype(jnp.uint8 if k <= 255 else jnp.uint16)  # a quarter to be moved
    # To (b, p − 1, parts, side, parts, side, q − 1) first: a TPU pads what lies along the last axes.
    best = best.transpose(4, 5, 0, 2, 1, 3, 6).reshape(b, (p - 1) * stride, stride, q - 1)
    best = jnp.swapaxes(best, 2, 3)
    return best.reshape(b, (p - 1) * stride, (q - 1) * stride).astype(jnp.int32)


def _argmax_of_candidates(W: Float[Array, "k b p q"], stride: int) -> Int[Array, "b height width"]:
    """Find the largest channel at every pixel between tokens, of those that can be, for a CPU."""
    t = _place_pixels(stride, W.dtype)
    if len(t) < stride:  # in smaller cells far fewer channels can be the largest
        W = _insert_midpoints(_insert_midpoints(W, 2), 3)
    b, p, q, side = W.shape[1], W.shape[2] - 1, W.shape[3] - 1, len(t)
    labels = jnp.swapaxes(_argmax_in_cells(W, t).reshape(b, p, q, side, side), 2, 3)
    return labels.reshape(b, p * side, q * side)


def _insert_midpoints(W: Float[Array, "k b p q"], axis: int) -> Float[Array, "k b p2 q2"]:
    """Insert the mean of every two neighbours between them, along one axis."""
    n = W.shape[axis]
    before, after = (jax.lax.slice_in_dim(W, i, n - 1 + i, axis=axis) for i in (0, 1))
    pairs = jnp.stack([before, (before + after) * 0.5], axis + 1)
    shape = (*W.shape[:axis], 2 * (n - 1), *W.shape[axis + 1 :])
    last = jax.lax.slice_in_dim(W, n - 1, n, axis=axis)
    return jnp.concatenate([pairs.reshape(shape), last], axis)


class _Race(NamedTuple):
    """The largest value so far at each pixel of some cells, its channel, and the channels not yet tried."""

    largest: Float[Array, "m side side"]
    channel: Int[Array, "m side side"]
    rest: UInt[Array, "words m"]


def _argmax_in_cells(W: Float[Array, "k b p q"], t: Float[Array, " side"]) -> Int[Array, "n pixels"]:
    """Find the largest channel at the pixels of every cell between four tokens: 1…k, or 0 if none is > 0.

    There are b · (p − 1) · (q − 1) cells, with the values ``W`` at their corners. Pixels lie at ``t`` of the
    way from one corner to the next, down and across.

    A channel can only be the largest at a pixel if its largest corner is at least the largest of all
    channels' smallest corners. Few channels pass, so few are interpolated.
    """
    k, _, p, q = W.shape
    side = len(t)
    places = jnp.arange(W[0].size).reshape(W.shape[1:])
    # A cell's corners: top left, top right, bottom left, bottom right.
    corners = [(y, x) for y in (slice(p - 1), slice(1, p)) for x in (slice(q - 1), slice(1, q))]
    # Two by two: a CPU takes a reduction of four one entry at a time.
    a, b, c, d = (W[:, :, y, x].reshape(k, -1) for y, x in corners)
    most = jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))
    least = jnp.minimum(jnp.minimum(a, b), jnp.minimum(c, d))
    bar = jnp.max(least, axis=0, keepdims=True)
    channels = jnp.arange(k)[:, None]
    # Where no channel is positive at all corners, those that are zero everywhere tie: the first stands for
    # them.
    can_win = (most > bar) | ((most == bar) & ((bar != 0) | (channels == find_first(most >= bar, 0))))
    candidates = _pack_bits(can_win)
    count = jnp.sum(jax.lax.population_count(candidates), axis=0).astype(jnp.int32)

    def interpolate(cells: Int[Array, " m"] | None, limit: int) -> Int[Array, "m pixels"]:
        """Interpolate at most ``limit`` candidates of some cells, or of all."""
        rest = candidates if cells is None else candidates[:, cells]
        at = [places[:, y, x].ravel() for y, x in corners]
        at = at if cells is None else [place[cells] for place in at]
        down, across = t.reshape(1, -1, 1), t.reshape(1, 1, -1)
        largest = jnp.full((rest.shape[1], side, side), -jnp.inf, W.dtype)

        def step(race: _Race) -> _Race:
            j, rest = _pop_lowest_bit(race.rest)
            first_entry = jnp.minimum(j[0], k - 1) * W[0].size
            values = (jnp.where(j[0] < k, W.ravel()[first_entry + place], -jnp.inf) for place in at)
            value = _interpolate([value.reshape(-1, 1, 1) for value in values], down, across)
            better = value > race.largest
            channel = jnp.where(better, j.reshape(-1, 1, 1), race.channel)
            return _Race(jnp.where(better, value, race.largest), channel, rest)

        race = _Race(largest, jnp.zeros(largest.shape, jnp.int32), rest)
        if cells is None:
            for _ in range(limit):
                race = step(race)
        else:
            steps = jnp.minimum(jnp.max(count[cells]), limit)
            race = jax.lax.fori_loop(0, steps, lambda _, race: step(race), race)
        return jnp.where(race.largest > 0, race.channel + 1, 0).reshape(-1, side * side)

    few, more = min(FEW_CHANNELS, k), min(MORE_CHANNELS, k)
    labels = interpolate(None, few)
    labels = recompute_rows(
        lambda cells: interpolate(cells, more), (count > few) & (count <= more), labels, share=1 / 4
    )
    return recompute_rows(lambda cells: interpolate(cells, k), count > more, labels)


def _pack_bits(mask: Bool[Array, "k n"]) -> UInt[Array, "words n"]:
    """Pack a mask into words of 32 bits along its first axis: a pass over them reads a 32nd."""
    k, n = mask.shape
    bits = jnp.pad(mask, ((0, -k % 32), (0, 0))).reshape(-1, 32, n).astype(jnp.uint32)
    return jnp.sum(bits << jnp.arange(32, dtype=jnp.uint32).reshape(1, 32, 1), axis=1, dtype=jnp.uint32)


def _pop_lowest_bit(words: UInt[Array, "words n"]) -> tuple[Int[Array, "1 n"], UInt[Array, "words n"]]:
    """Find the lowest bit that is set, and clear it; its place is past the end where none is set."""
    word = find_first(words != 0, 0)
    in_word = jnp.arange(len(words))[:, None] == word
    lowest = jnp.max(jnp.where(in_word, words, 0), axis=0, keepdims=True)
    bit = lowest & (~lowest + 1)
    return 32 * word + (31 - jax.lax.clz(bit)).astype(jnp.int32), jnp.where(in_word, words ^ bit, words)
