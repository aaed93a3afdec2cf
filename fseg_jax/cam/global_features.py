"""Compute the four global features of the CAM paper (Storås 2021, §2), which describe an image as a whole.

The paper takes them from LIRE (Lux et al. 2016), and clusters them in LIRE's scales. So these are LIRE's
definitions, steps and ranges. One after the other (``SLICES``) they are 226 numbers:

=======================  =====  =====================================================================
feature                  count  range
=======================  =====  =====================================================================
edge histogram              80  0…7, whole: 4 × 4 parts of the image by 5 kinds of edge
Tamura                      18  coarseness 1.8…3.8, contrast 0…16, 16 counts of directions 0…3844
luminance layout            64  0…31, whole: 8 × 8 means of grey
simple colour histogram     64  0…255, whole: the commonest of 4 × 4 × 4 colours has 255
=======================  =====  =====================================================================

Tamura's ranges are those of a square image. The counts of directions vary most between images, the colours
come next.

LIRE uses two kinds of grey. Edges are found in video luminance Y, 16…234. Tamura and the layout take Java's
grey, which is linear light: middle grey of sRGB, 127, becomes 54.

Where this differs from LIRE:

- Java shrinks an image by picking single pixels. This takes the mean over the area of each new pixel, so that
  no value depends on a single pixel.
- LIRE's layout draws the image 32 pixels wide on a canvas of 8 × 8, which keeps only its top left corner: in
  the features that the paper's authors published, this is the black corner of the frame. This takes the whole
  image at 8 × 8, which was surely meant; an image that is not square is stretched.
- A part of the image without any block of the edge histogram has no edges. LIRE divides by zero there.

Where LIRE differs from Tamura, Mori & Yamawaki (1978), this follows LIRE: windows are 4^k wide, not 2^k, and
their sums are divided by 4^k; only the sizes k = 1 and 2 can win; the fourth moment of the contrast is a sum,
not a mean; directions are counted everywhere, flat places as direction 0.

All images of a call have one size. Features depend on that size (through the size of a block and the scale of
an edge), so resize images to one size first. The compiled program depends on the shape alone, and an image's
features depend on that image alone. All features are whole numbers, or whole numbers over the number of
pixels, except for the last digit of the contrast.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from fseg_jax.errors import InputError

Batch = UInt8[Array, "b height width 3"]

SMALLEST_SIDE = 8  # pixels: four parts of one block of two
MOST_PIXELS = 2**23  # an image: the sums of a larger one leave 32 bits

BLOCKS = 1100  # number of blocks that an image is cut into for edges, about
WEAKEST_EDGE = 11  # units of luminance
# ISO/IEC 15938-3 (MPEG-7 Visual), edge histogram: for vertical, horizontal, 45°, 135° and other edges, the
# share of a part's blocks that each of the eight steps stands for.
EDGE_SHARES = np.array(
    [
        [0.010867, 0.057915, 0.099526, 0.144849, 0.195573, 0.260504, 0.358031, 0.530128],
        [0.012266, 0.069934, 0.125879, 0.182307, 0.243396, 0.314563, 0.411728, 0.564319],
        [0.004193, 0.025852, 0.046860, 0.068519, 0.093286, 0.123490, 0.161505, 0.228960],
        [0.004174, 0.025924, 0.046232, 0.067163, 0.089655, 0.115391, 0.151904, 0.217745],
        [0.006778, 0.051667, 0.108650, 0.166257, 0.224226, 0.285691, 0.356375, 0.450972],
    ]
)

TAMURA_SIDE = 64  # pixels along the longer side, for Tamura's features
DIRECTIONS = 16
DIRECTION_WIDTH = 0.2  # radians a bin; the sixteenth is narrower, π / 0.2 = 15.7
LAYOUT_SIDE = 8  # cells
LAYOUT_STEP = 8  # units of grey
COLOR_STEP = 85  # units of a channel: the bins' centers are 0, 85, 170 and 255


class Slices(NamedTuple):
    """Where each feature lies in the 226 numbers of ``global_features``.

    Attributes:
        edge_histogram: Numbers of ``edge_histogram``.
        tamura: Numbers of ``tamura``.
        luminance_layout: Numbers of ``luminance_layout``.
        color_histogram: Numbers of ``color_histogram``.
    """

    edge_histogram: slice
    tamura: slice
    luminance_layout: slice
    color_histogram: slice


SLICES = Slices(slice(0, 80), slice(80, 98), slice(98, 162), slice(162, 226))
COUNT = 226  # numbers an image


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

    The paper does not do this: there, Tamura's counts and the colours decide alone. A feature that is the
    same for all images stays as it is.
    """
    deviations = [float(np.sqrt(X[:, part].var(0).sum())) for part in SLICES]
    counts = [part.stop - part.start for part in SLICES]
    scaled: np.ndarray = X / np.repeat([d or 1.0 for d in deviations], counts).astype(X.dtype)
    return scaled


@jax.jit
def edge_histogram(images: Batch) -> Float[Array, "b 80"]:
    """Count five kinds of edges in each of 4 × 4 parts, in the eight steps of MPEG-7.

    The image is cut into about 1,100 square blocks, and a block into quarters. Five differences of the
    quarters' mean luminance are the strengths of a vertical, a horizontal, a 45°, a 135° and a
    non-directional edge. The strongest (the first of equals) is the block's edge, if it is 11 or more. For
    each part and kind, the share of blocks with such an edge is rounded to the nearest of eight shares
    (``EDGE_SHARES``); its number 0…7 is the value.

    Source: ISO/IEC 15938-3, §8.3. Returns float32 ``(b, 80)``: parts row by row, five kinds each.
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
    kinds *= jnp.max(strengths, axis=-1, keepdims=True) >= WEAKEST_EDGE * side * side / 4
    row_part, column_part = _parts(rows, side, height), _parts(columns, side, width)
    counts: Int[Array, "b 4 4 5"] = jnp.einsum("pr,brck,qc->bpqk", row_part, kinds, column_part)
    blocks = row_part.sum(1)[:, None] * column_part.sum(1)[None]
    # Borders between the steps, in whole blocks, so that counts are compared exactly.
    borders = (EDGE_SHARES[:, :-1] + EDGE_SHARES[:, 1:]) / 2
    limits = np.floor(borders * blocks[..., None, None]).astype(np.int32)
    steps: Array = (counts[..., None] > limits[None]).sum(-1)
    return steps.reshape(b, 80).astype(jnp.float32)


@jax.jit
def tamura(images: Batch) -> Float[Array, "b 18"]:
    """Describe texture by coarseness, contrast and 16 counts of directions, at 64 pixels of the longer side.

    g is the grey, N its number of pixels; windows repeat the image's edge.

    - Coarseness: Σ 2^k(p) / N over the pixels p inside the border. k(p) is 2 where sums over 16 × 16 pixels,
      divided by 16, differ more between two sides of p than sums over 4 × 4 pixels, divided by 4; else 1.
    - Contrast: σ² / (Σ (g − μ)⁴)^¼, and 0 for a constant image.
    - Directions: counts of the pixels inside the border by bin ⌊(π/2 + arctan(∂x / ∂y)) / 0.2⌋, with ∂x and
      ∂y the differences over 3 × 3 pixels (Prewitt). Bin 0 is flat or darkens to the right alone, 15
      brightens to the right alone, 7 has ∂x = 0 and ∂y ≠ 0.

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
    # One colour at a time: on a CPU ten times as fast as all at once, and twice as fast as a scatter.
    counts: Array = jax.lax.map(lambda color: (bins == color).sum(1), jnp.arange(64, dtype=jnp.uint8)).T
    return (counts * 255 // counts.max(1, keepdims=True)).astype(jnp.float32)


def _check(images: Batch) -> None:
    height, width = images.shape[1:3]
    if min(height, width) < SMALLEST_SIDE:
        raise InputError(
            f"images of {width} × {height} pixels: resize them, to {SMALLEST_SIDE} × {SMALLEST_SIDE} at least"
        )
    if height * width > MOST_PIXELS:
        raise InputError(f"images of {width} × {height} pixels: resize them, to {MOST_PIXELS} pixels at most")


def _luminance(images: Batch) -> Int[Array, "b height width"]:
    """Compute Y of ITU-R BT.601, 16…234, in whole numbers.

    Y = ⌊219 (0.299 R + 0.587 G + 0.114 B) / 256 + 16.5⌋
    """
    weights = jnp.asarray([299, 587, 114], jnp.int32)
    weighted = (images.astype(jnp.int32) * weights.reshape(1, 1, 1, 3)).sum(-1)
    return (219 * weighted + 16_500 * 256) // 256_000


def _linear_tables() -> Int[np.ndarray, "256 3"]:
    """Tabulate what a value of each channel adds to linear grey, in units of 2⁻²⁰.

    Source: IEC 61966-2-1; weights are Y of sRGB's primaries under D50, as ICC profiles have it.
    """
    value = np.arange(256) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    table: np.ndarray = np.rint(255 * 2**20 * linear[:, None] * [0.2225, 0.7169, 0.0606]).astype(np.int32)
    return table


LINEAR = _linear_tables()


def _linear_grey(images: Batch) -> Int[Array, "b height width"]:
    """Compute linear light, 0…255, to the nearest whole number."""
    r, g, b = (jnp.asarray(LINEAR[:, channel])[images[..., channel]] for channel in range(3))
    return (r + g + b + 2**19) >> 20


def _reduce(grey: Int[Array, "b height width"], rows: int, columns: int) -> Int[Array, "b rows columns"]:
    """Shrink by the mean over the area of each new pixel, to the nearest whole number.

    The arithmetic is exact, so that a constant image stays constant, and halves always go up.
    """
    height, width = grey.shape[1:]
    # Floats below 2²⁴ hold whole numbers exactly, and multiply faster.
    by_row = _shares(height, rows).astype(np.float32)
    tall = jnp.einsum("rh,bhw->brw", by_row, grey.astype(jnp.float32), precision="highest").astype(jnp.int32)
    total = jnp.einsum("brw,cw->brc", tall, _shares(width, columns))
    return (total + height * width // 2) // (height * width)


def _shares(old: int, new: int) -> Int[np.ndarray, "new old"]:
    """Compute how much of each old pixel lies in each new one, in units of 1/``new`` of an old pixel.

    Rows sum to ``old``.
    """
    begin, pixel = np.arange(new)[:, None] * old, np.arange(old)[None] * new
    overlap = np.minimum(begin + old, pixel + new) - np.maximum(begin, pixel)
    return np.asarray(np.maximum(overlap, 0), np.int32)


def _parts(blocks: int, side: int, length: int) -> Int[np.ndarray, "4 blocks"]:
    """Mark which of the four parts along an axis each block begins in, one-hot."""
    part = np.arange(blocks) * side * 4 // length
    one_hot: np.ndarray = part[None] == np.arange(4)[:, None]
    return one_hot.astype(np.int32)


def _coarseness(grey: Int[Array, "b h w"]) -> Float[Array, " b"]:
    _, h, w = grey.shape
    frame = 16  # as wide as the widest window, so that no window leaves the padded image
    padded = jnp.pad(grey, ((0, 0), (frame, frame), (frame, frame)), mode="edge")

    def difference(k: int) -> Int[Array, "b h2 w2"]:
        """Compute the larger of the horizontal and vertical differences, at each pixel inside the border."""
        side, half = 4**k, 2 ** (k - 1)
        window = (1, side, side)
        sums: Array = jax.lax.reduce_window(padded, np.int32(0), jax.lax.add, window, (1, 1, 1), "valid")

        def read(dy: int, dx: int) -> Int[Array, "b h2 w2"]:
            """Read the sum over the window that begins (dy, dx) from the pixel."""
            y, x = frame + 1 + dy, frame + 1 + dx
            return sums[:, y : y + h - 2, x : x + w - 2]

        horizontal = jnp.abs(read(-half, 0) - read(-half, -2 * half))
        vertical = jnp.abs(read(0, -half) - read(-2 * half, -half))
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

    def transpose(x: Int[Array, "b p q"]) -> Int[Array, "b q p"]:
        return jnp.swapaxes(x, 1, 2)

    dx = along(across(grey)).astype(jnp.float32)
    dy = transpose(along(across(transpose(grey)))).astype(jnp.float32)
    upright = jnp.where(dx > 0, math.pi / 2, -math.pi / 2)
    angle = jnp.where(dy == 0, upright, jnp.arctan(dx / jnp.where(dy == 0, 1, dy)))
    bins = jnp.clip(jnp.floor((angle + math.pi / 2) / DIRECTION_WIDTH), 0, DIRECTIONS - 1)
    bins = bins.reshape(grey.shape[0], -1, 1)
    return (bins == jnp.arange(DIRECTIONS, dtype=jnp.float32)[None, None]).sum(1).astype(jnp.float32)
