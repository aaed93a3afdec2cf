"""The four global features of the CAM paper (Storås 2021, §2): what an image looks like as a whole.

The paper takes them from LIRE (Lux et al. 2016), and clusters them as they come, in LIRE's scales. So these
are LIRE's definitions, steps and ranges. One after the other (``SLICES``) they are 226 numbers:

=======================  =====  =====================================================================
feature                  count  range
=======================  =====  =====================================================================
edge histogram              80  0…7, whole: 4 × 4 parts of the image by 5 kinds of edge
Tamura                      18  coarseness 1.8…3.8, contrast 0…16, 16 counts of directions 0…3844
luminance layout            64  0…31, whole: 8 × 8 means of grey
simple colour histogram     64  0…255, whole: the commonest of 4 × 4 × 4 colours has 255
=======================  =====  =====================================================================

Tamura's ranges are those of a square image. The counts of directions spread images most, the colours come
next.

Grey is two things in LIRE. The edges are found in video luminance Y, 16…234. Tamura and the layout take
Java's grey, which is linear light: an sRGB image of middle grey, 127, has 54.

Where ours differs from LIRE:

- Java's drawing makes an image small by picking pixels out; ours takes the mean over the area of each new
  pixel, so that the values do not hang on single pixels.
- LIRE's layout draws the image 32 pixels wide on a canvas of 8 × 8, which keeps its top left corner and
  nothing else: in the features that the paper's authors published it is the frame's black corner. Ours, and
  surely what was meant, is the whole image at 8 × 8; an image that is not square is stretched to it.
- A part of the image that has no block of the edge histogram has no edges, where LIRE divides by zero.

Where LIRE differs from Tamura, Mori & Yamawaki (1978), we follow LIRE: its windows are 4^k wide, not 2^k, and
their sums are divided by 4^k; of the sizes k = 1 and 2 alone can win; the fourth moment of the contrast is a
sum, not a mean; directions are counted wherever they are, flat places as direction 0.

All images of a call have one size, and features depend on it (that of a block, of an edge's scale): resize
images to one size first. What is compiled depends on the shape alone, and an image's features on nothing but
the image: but for the last digit of the contrast they are whole numbers, or such over the number of pixels.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from fseg_jax.errors import InputError

Batch = UInt8[Array, "b height width 3"]

SMALLEST = 8  # pixels: four parts of one block of two
LARGEST = 2**23  # pixels an image: beyond, its sums leave 32 bits

BLOCKS = 1100  # that an image is to be cut into for edges, about
EDGE = 11  # units of luminance: the weakest edge
# ISO/IEC 15938-3 (MPEG-7 Visual), edge histogram: for vertical, horizontal, 45°, 135° and other edges, the
# shares of a part's blocks that the eight steps stand for.
EDGE_SHARES = np.array(
    [
        [0.010867, 0.057915, 0.099526, 0.144849, 0.195573, 0.260504, 0.358031, 0.530128],
        [0.012266, 0.069934, 0.125879, 0.182307, 0.243396, 0.314563, 0.411728, 0.564319],
        [0.004193, 0.025852, 0.046860, 0.068519, 0.093286, 0.123490, 0.161505, 0.228960],
        [0.004174, 0.025924, 0.046232, 0.067163, 0.089655, 0.115391, 0.151904, 0.217745],
        [0.006778, 0.051667, 0.108650, 0.166257, 0.224226, 0.285691, 0.356375, 0.450972],
    ]
)

TAMURA_SIDE = 64  # pixels of the longer side that Tamura's features are read at
DIRECTIONS = 16
DIRECTION_WIDTH = 0.2  # radians: the sixteenth bin is narrower, π / 0.2 = 15.7
LAYOUT_SIDE = 8
LAYOUT_STEP = 8  # units of grey
COLOR_STEP = 85  # units of a channel: 0, 85, 170 and 255 are the centres


class Slices(NamedTuple):
    """Where each feature lies in the 226 numbers of ``global_features``."""

    edge_histogram: slice
    tamura: slice
    luminance_layout: slice
    color_histogram: slice


SLICES = Slices(slice(0, 80), slice(80, 98), slice(98, 162), slice(162, 226))
COUNT = 226


@jax.jit
def global_features(images: Batch) -> Float[Array, "b 226"]:
    """Describe each image by the four features, one after the other (``SLICES``), in LIRE's scales.

    ``images``: ``uint8 (b, height, width, 3)`` sRGB, all resized to one size beforehand; returns float32.
    Raises ``InputError`` for sides below 8 pixels or more than 8.4 million pixels an image.
    """
    parts = edge_histogram(images), tamura(images), luminance_layout(images), color_histogram(images)
    return jnp.concatenate(parts, axis=1)


def scale_evenly(X: Float[np.ndarray, "n 226"]) -> Float[np.ndarray, "n 226"]:
    """Divide each of the four features by its deviation over images, so that none outweighs the others.

    The paper does not: there Tamura's counts and the colours decide alone. A feature that is the same for all
    images stays as it is.
    """
    deviations = [float(np.sqrt(X[:, where].var(0).sum())) for where in SLICES]
    counts = [where.stop - where.start for where in SLICES]
    return X / np.repeat([d or 1.0 for d in deviations], counts).astype(X.dtype)


@jax.jit
def edge_histogram(images: Batch) -> Float[Array, "b 80"]:
    """Count the edges of five kinds in each of 4 × 4 parts, in the eight steps of MPEG-7 (§8.3 of
    ISO/IEC 15938-3).

    The image is cut into about 1,100 square blocks, and a block into quarters. Five differences of the
    quarters' mean luminance are the strengths of a vertical, a horizontal, a 45°, a 135° and a
    non-directional edge; the strongest is the block's (the first of equals), if it is 11 or more. The share
    of a part's blocks that have an edge of a kind is rounded to the nearest of eight (``EDGE_SHARES``), whose
    number 0…7 is the value. Parts go row by row, five kinds each. Returns float32 ``(b, 80)``.
    """
    _check(images)
    b, height, width, _ = images.shape
    side = max(2, math.floor(math.isqrt(height * width // BLOCKS) / 2) * 2)
    rows, columns = height // side, width // side
    quarters = (
        _luminance(images)[:, : rows * side, : columns * side]
        .reshape(b, rows, 2, side // 2, columns, 2, side // 2)
        .sum((3, 6))
        .astype(jnp.float32)
    )
    left_top, right_top = quarters[:, :, 0, :, 0], quarters[:, :, 0, :, 1]
    left_bottom, right_bottom = quarters[:, :, 1, :, 0], quarters[:, :, 1, :, 1]
    strengths = jnp.abs(
        jnp.stack(
            [
                left_top - right_top + left_bottom - right_bottom,
                left_top + right_top - left_bottom - right_bottom,
                math.sqrt(2) * (left_top - right_bottom),
                math.sqrt(2) * (right_top - left_bottom),
                2 * (left_top - right_top - left_bottom + right_bottom),
            ],
            axis=-1,
        )
    )
    kinds = jax.nn.one_hot(jnp.argmax(strengths, axis=-1), 5, dtype=jnp.int32)
    kinds *= jnp.max(strengths, axis=-1, keepdims=True) >= EDGE * side * side / 4
    row_part, column_part = _parts(rows, side, height), _parts(columns, side, width)
    counts = jnp.einsum("pr,brck,qc->bpqk", row_part, kinds, column_part)
    blocks = row_part.sum(1)[:, None] * column_part.sum(1)[None]
    # Whole blocks below the borders between the steps: what is counted is compared exactly.
    borders = (EDGE_SHARES[:, :-1] + EDGE_SHARES[:, 1:]) / 2
    limits = np.floor(borders * blocks[..., None, None]).astype(np.int32)
    return (counts[..., None] > limits[None]).sum(-1).reshape(b, 80).astype(jnp.float32)


@jax.jit
def tamura(images: Batch) -> Float[Array, "b 18"]:
    """Describe texture by coarseness, contrast and 16 counts of directions, at 64 pixels of the longer side.

    With g the grey, N its number of pixels and windows that repeat the image's edge:

    - coarseness, Σ 2^k(p) / N over the pixels p inside the border: k(p) is 2 where sums over 16 × 16 pixels,
      divided by 16, differ more between two sides of p than sums over 4 × 4, divided by 4, do; else it is 1;
    - contrast, σ² / (Σ (g − μ)⁴)^¼, and 0 for a constant image;
    - directions, how many pixels inside the border have a (π/2 + arctan(∂x / ∂y)) / 0.2 from 0, from 1, …,
      from 15 up, with ∂x and ∂y the differences over 3 × 3 pixels (Prewitt): bin 0 where it is flat or only
      darkens to the right, 15 where it only brightens to the right, 7 where ∂x is 0 and ∂y not.

    Returns float32 ``(b, 18)``.
    """
    _check(images)
    height, width = images.shape[1:3]
    longer = max(height, width)
    grey = _reduce(
        _linear_grey(images), max(3, TAMURA_SIDE * height // longer), max(3, TAMURA_SIDE * width // longer)
    )
    coarseness, contrast = _coarseness(grey)[:, None], _contrast(grey)[:, None]
    return jnp.concatenate([coarseness, contrast, _directions(grey)], axis=1)


@jax.jit
def luminance_layout(images: Batch) -> Float[Array, "b 64"]:
    """Shrink the image to 8 × 8 means of grey, row by row, in 32 steps 0…31: float32 ``(b, 64)``."""
    _check(images)
    small = _reduce(_linear_grey(images), LAYOUT_SIDE, LAYOUT_SIDE)
    return (small // LAYOUT_STEP).reshape(images.shape[0], -1).astype(jnp.float32)


@jax.jit
def color_histogram(images: Batch) -> Float[Array, "b 64"]:
    """Count colours by the nearest of 0, 85, 170 and 255 in each channel, the commonest as 255.

    Bin 16 R + 4 G + B with each 0…3; ⌊255 · count / highest count⌋. Returns float32 ``(b, 64)``.
    """
    _check(images)
    r, g, b = jnp.moveaxis((images.astype(jnp.int32) + COLOR_STEP // 2) // COLOR_STEP, -1, 0)
    bins = (16 * r + 4 * g + b).reshape(images.shape[0], -1).astype(jnp.uint8)
    # A colour at a time: on a CPU ten times as fast as all at once, and twice as fast as a scatter.
    counts = jax.lax.map(lambda color: (bins == color).sum(1), jnp.arange(64, dtype=jnp.uint8)).T
    return (counts * 255 // counts.max(1, keepdims=True)).astype(jnp.float32)


def _check(images: Batch) -> None:
    height, width = images.shape[1:3]
    if min(height, width) < SMALLEST:
        raise InputError(
            f"images of {width} × {height} pixels: resize them, to {SMALLEST} × {SMALLEST} at least"
        )
    if height * width > LARGEST:
        raise InputError(f"images of {width} × {height} pixels: resize them, to {LARGEST} pixels at most")


def _luminance(images: Batch) -> Int[Array, "b height width"]:
    """Y of ITU-R BT.601, 16…234: ⌊219 (0.299 R + 0.587 G + 0.114 B) / 256 + 16.5⌋, in whole numbers."""
    weights = jnp.asarray([299, 587, 114], jnp.int32)
    return (219 * (images.astype(jnp.int32) * weights.reshape(1, 1, 1, 3)).sum(-1) + 16_500 * 256) // 256_000


def _linear_tables() -> Int[np.ndarray, "256 3"]:
    """What a value of each channel adds to linear grey, in 2⁻²⁰ (IEC 61966-2-1; Y of sRGB's primaries under
    D50, as ICC profiles have it).
    """
    value = np.arange(256) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.rint(255 * 2**20 * linear[:, None] * [0.2225, 0.7169, 0.0606]).astype(np.int32)


LINEAR = _linear_tables()


def _linear_grey(images: Batch) -> Int[Array, "b height width"]:
    """Linear light, 0…255, to the nearest whole number."""
    added = [jnp.asarray(LINEAR[:, channel])[images[..., channel]] for channel in range(3)]
    return (added[0] + added[1] + added[2] + 2**19) >> 20


def _reduce(grey: Int[Array, "b height width"], rows: int, columns: int) -> Int[Array, "b rows columns"]:
    """The mean over the area of each new pixel, to the nearest whole number: exact, so that what is constant
    stays so, and halves always go up.
    """
    height, width = grey.shape[1:]
    # Below 2²⁴ floats are whole numbers too, and multiply faster.
    by_row = _shares(height, rows).astype(np.float32)
    tall = jnp.einsum("rh,bhw->brw", by_row, grey.astype(jnp.float32), precision="highest").astype(jnp.int32)
    total = jnp.einsum("brw,cw->brc", tall, _shares(width, columns))
    return (total + height * width // 2) // (height * width)


def _shares(old: int, new: int) -> Int[np.ndarray, "new old"]:
    """How much of each old pixel lies in each new one, in units of a new-th of an old pixel: rows sum to
    ``old``.
    """
    begin, pixel = np.arange(new)[:, None] * old, np.arange(old)[None] * new
    return np.maximum(np.minimum(begin + old, pixel + new) - np.maximum(begin, pixel), 0).astype(np.int32)


def _parts(blocks: int, side: int, length: int) -> Int[np.ndarray, "4 blocks"]:
    """Which of the four parts along an axis each block begins in."""
    part = np.arange(blocks) * side * 4 // length
    return (part[None] == np.arange(4)[:, None]).astype(np.int32)


def _coarseness(grey: Int[Array, "b h w"]) -> Float[Array, " b"]:
    _, h, w = grey.shape
    frame = 16  # as wide as the widest window: none leaves it
    padded = jnp.pad(grey, ((0, 0), (frame, frame), (frame, frame)), mode="edge")

    def difference(k: int) -> Int[Array, "b h2 w2"]:
        """The larger of the horizontal and the vertical difference, at each pixel inside the border."""
        side, half = 4**k, 2 ** (k - 1)
        window = (1, side, side)
        sums = jax.lax.reduce_window(padded, np.int32(0), jax.lax.add, window, (1, 1, 1), "valid")

        def at(dy: int, dx: int) -> Int[Array, "b h2 w2"]:
            """The sum over the window that begins (dy, dx) from the pixel."""
            y, x = frame + 1 + dy, frame + 1 + dx
            return sums[:, y : y + h - 2, x : x + w - 2]

        horizontal = jnp.abs(at(-half, 0) - at(-half, -2 * half))
        vertical = jnp.abs(at(0, -half) - at(-2 * half, -half))
        return jnp.maximum(horizontal, vertical)

    coarse = difference(2) > 4 * difference(1)
    return jnp.where(coarse, 4, 2).sum((1, 2)).astype(jnp.float32) / (h * w)


def _contrast(grey: Int[Array, "b h w"]) -> Float[Array, " b"]:
    g = grey.reshape(grey.shape[0], -1).astype(jnp.float32)
    square = (g - g.mean(1, keepdims=True)) ** 2
    variance, fourth = square.mean(1), (square * square).sum(1)
    return jnp.where(variance > 0, variance / jnp.where(variance > 0, fourth, 1) ** 0.25, 0)


def _directions(grey: Int[Array, "b h w"]) -> Float[Array, "b 16"]:
    def across(x: Int[Array, "b p q"]) -> Int[Array, "b p r"]:
        return x[:, :, 2:] - x[:, :, :-2]

    def along(x: Int[Array, "b p q"]) -> Int[Array, "b r q"]:
        return x[:, :-2] + x[:, 1:-1] + x[:, 2:]

    def turned(x: Int[Array, "b p q"]) -> Int[Array, "b q p"]:
        return jnp.swapaxes(x, 1, 2)

    dx = along(across(grey)).astype(jnp.float32)
    dy = turned(along(across(turned(grey)))).astype(jnp.float32)
    upright = jnp.where(dx > 0, math.pi / 2, -math.pi / 2)
    angle = jnp.where(dy == 0, upright, jnp.arctan(dx / jnp.where(dy == 0, 1, dy)))
    bins = jnp.clip(jnp.floor((angle + math.pi / 2) / DIRECTION_WIDTH), 0, DIRECTIONS - 1)
    bins = bins.reshape(grey.shape[0], -1, 1)
    return (bins == jnp.arange(DIRECTIONS, dtype=jnp.float32)[None, None]).sum(1).astype(jnp.float32)
