"""The global features against values worked out by hand, and against their definitions written naively."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fseg_jax.cam.global_features import (
    COUNT,
    EDGE_SHARES,
    SLICES,
    color_histogram,
    edge_histogram,
    global_features,
    luminance_layout,
    scale_evenly,
    tamura,
)
from fseg_jax.errors import InputError

VERTICAL, HORIZONTAL, RISING, FALLING, OTHER = range(5)  # kinds of edges
INSIDE = 62 * 62  # pixels inside the border of 64 × 64


def grey(values: np.ndarray) -> np.ndarray:
    """One image, of one grey."""
    return np.repeat(np.asarray(values, np.uint8)[None, :, :, None], 3, axis=3)


def edges(values: dict[tuple[int, int, int], int]) -> np.ndarray:
    """An edge histogram by (row of the part, column, kind)."""
    histogram = np.zeros((4, 4, 5))
    for place, value in values.items():
        histogram[place] = value
    return histogram.reshape(1, 80)


def counts(bins: dict[int, int], n: int) -> np.ndarray:
    histogram = np.zeros((1, n))
    for place, value in bins.items():
        histogram[0, place] = value
    return histogram


# --------------------------------------------------------------------------------- worked out by hand


def test_a_constant_image():
    image = grey(np.full((64, 64), 127))
    np.testing.assert_array_equal(edge_histogram(image), np.zeros((1, 80)))
    texture = np.asarray(tamura(image))
    np.testing.assert_allclose(texture[:, :2], [[2 * INSIDE / 4096, 0]])  # every pixel's size is 2
    np.testing.assert_array_equal(texture[:, 2:], counts({0: INSIDE}, 16))  # and every pixel is flat
    # 127 is 0.2122 of the light: 54 of 255, and 6 of 32.
    np.testing.assert_array_equal(luminance_layout(image), np.full((1, 64), 6))
    np.testing.assert_array_equal(color_histogram(image), counts({16 + 4 + 1: 255}, 64))


def test_a_vertical_edge():
    """Black up to column 32, white from 33: the edge is inside the 17th column of blocks of 2 × 2."""
    image = grey(np.broadcast_to(np.where(np.arange(64) < 33, 0, 255), (64, 64)))
    # One column of the eight in the third column of parts: 0.125, nearest to 0.144849, the fourth step.
    np.testing.assert_array_equal(edge_histogram(image), edges({(row, 2, VERTICAL): 3 for row in range(4)}))
    texture = np.asarray(tamura(image))
    # Over 16 pixels columns 18…36 see more of the edge than over 4; they count 4, the others 2.
    assert texture[0, 0] == 62 * (19 * 4 + 43 * 2) / 4096
    p = 31 / 64 * 33 / 64  # variance of black and white, in 255²
    np.testing.assert_allclose(texture[0, 1], 255 * p / (4096 * p * (1 - 3 * p)) ** 0.25, rtol=1e-6)
    # Columns 32 and 33 brighten to the right.
    np.testing.assert_array_equal(texture[:, 2:], counts({15: 2 * 62, 0: 60 * 62}, 16))
    # Columns 32…39 are seven eighths white: 223.
    np.testing.assert_array_equal(
        luminance_layout(image)[0].reshape(8, 8), 8 * [[0, 0, 0, 0, 27, 31, 31, 31]]
    )
    # 31 columns to 33: ⌊255 · 31 / 33⌋.
    np.testing.assert_array_equal(color_histogram(image), counts({0: 255, 63: 239}, 64))


def test_a_horizontal_edge_is_the_vertical_one_turned():
    image = grey(np.broadcast_to(np.where(np.arange(64) < 33, 0, 255)[:, None], (64, 64)))
    # The steps are others for each kind: 0.125 is nearest to 0.125879, the third.
    np.testing.assert_array_equal(
        edge_histogram(image), edges({(2, column, HORIZONTAL): 2 for column in range(4)})
    )
    texture = np.asarray(tamura(image))
    assert texture[0, 0] == 62 * (19 * 4 + 43 * 2) / 4096
    np.testing.assert_array_equal(texture[:, 2:], counts({7: 2 * 62, 0: 60 * 62}, 16))
    np.testing.assert_array_equal(
        luminance_layout(image)[0].reshape(8, 8).T, 8 * [[0, 0, 0, 0, 27, 31, 31, 31]]
    )


def test_a_darkening_edge_counts_as_flat():
    image = grey(np.broadcast_to(np.where(np.arange(64) < 33, 255, 0), (64, 64)))
    np.testing.assert_array_equal(tamura(image)[:, 2:], counts({0: INSIDE}, 16))


def test_diagonal_edges():
    """34 × 34 blocks of 4 × 4; parts of 9, 8, 9 and 8. The edge lies in the blocks of one diagonal."""
    y, x = np.indices((136, 136))
    # 8 of the 9 · 8 blocks in the four parts on the diagonal, 1 of 9 · 9 in two beside it, too few to count.
    rising = {(row, 3 - row, RISING): 5 for row in range(4)}
    np.testing.assert_array_equal(edge_histogram(grey(255 * (x + y >= 136))), edges(rising))
    falling = {(row, row, FALLING): 5 for row in range(4)}  # 9 of 9 · 9, 8 of 8 · 8
    np.testing.assert_array_equal(edge_histogram(grey(255 * (y >= x + 1))), edges(falling))


def test_a_chequerboard():
    y, x = np.indices((64, 64))
    image = grey(255 * ((x + y) % 2 == 0))
    everywhere = {(row, column, OTHER): 7 for row in range(4) for column in range(4)}
    np.testing.assert_array_equal(edge_histogram(image), edges(everywhere))
    texture = np.asarray(tamura(image))
    np.testing.assert_allclose(texture[0, 1], 255 * 0.25 / (4096 * 0.25 * 0.25) ** 0.25, rtol=1e-6)
    # The pixels on both sides of one are equal.
    np.testing.assert_array_equal(texture[:, 2:], counts({0: INSIDE}, 16))
    # Half of the light, 127.5, goes up to 128.
    np.testing.assert_array_equal(luminance_layout(image), np.full((1, 64), 16))
    np.testing.assert_array_equal(color_histogram(image), counts({0: 255, 63: 255}, 64))


@pytest.mark.parametrize(
    ("colour", "light", "bin"),
    [
        ((255, 0, 0), 57, 48),
        ((0, 255, 0), 183, 12),
        ((0, 0, 255), 15, 3),
        ((0, 0, 0), 0, 0),
        ((255, 255, 255), 255, 63),
        ((42, 43, 127), 9, 5),  # 42.5 and 127.5 are the borders between colours
        ((128, 212, 213), 143, 2 * 16 + 2 * 4 + 3),
    ],
)
def test_one_pure_colour(colour, light, bin):
    image = np.broadcast_to(np.array(colour, np.uint8), (1, 40, 56, 3))
    features = np.asarray(global_features(image))
    np.testing.assert_array_equal(features[:, SLICES.edge_histogram], np.zeros((1, 80)))
    texture = features[0, SLICES.tamura]  # at 45 × 64
    np.testing.assert_allclose(texture[:3], [2 * 43 * 62 / (45 * 64), 0, 43 * 62])
    assert not texture[3:].any()
    np.testing.assert_array_equal(features[0, SLICES.luminance_layout], np.full(64, light // 8))
    np.testing.assert_array_equal(features[:, SLICES.color_histogram], counts({bin: 255}, 64))


# --------------------------------------------------------------------------- definitions, written naively


def their_light(image: np.ndarray) -> np.ndarray:
    c = image / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return np.floor(255 * (linear * [0.2225, 0.7169, 0.0606]).sum(-1) + 0.5)


def their_reduction(light: np.ndarray, rows: int, columns: int) -> np.ndarray:
    def weights(old: int, new: int, i: int) -> np.ndarray:
        low, high = i * old / new, (i + 1) * old / new
        return np.array([max(0.0, min(high, p + 1) - max(low, p)) for p in range(old)]) / (high - low)

    out = np.zeros((rows, columns))
    for r in range(rows):
        for c in range(columns):
            mean = weights(light.shape[0], rows, r) @ light @ weights(light.shape[1], columns, c)
            out[r, c] = math.floor(mean + 0.5 + 1e-9)
    return out


def their_edges(image: np.ndarray) -> np.ndarray:
    height, width, _ = image.shape
    y = np.floor(219 * (image @ [0.299, 0.587, 0.114]) / 256 + 16.5 + 1e-9)
    side = max(2, int(math.sqrt(height * width / 1100)) // 2 * 2)
    root = math.sqrt(2)
    filters = [[1, -1, 1, -1], [1, 1, -1, -1], [root, 0, 0, -root], [0, root, -root, 0], [2, -2, -2, 2]]
    found, blocks = np.zeros((16, 5)), np.zeros(16)
    for top in range(0, height - side + 1, side):
        for left in range(0, width - side + 1, side):
            part = int(left * 4 / width) + 4 * int(top * 4 / height)
            blocks[part] += 1
            block = y[top : top + side, left : left + side]
            half = side // 2
            means = [q.mean() for q in (block[:half, :half], block[:half, half:])]
            means += [q.mean() for q in (block[half:, :half], block[half:, half:])]
            strengths = np.abs(np.array(filters) @ means)
            if strengths.max() >= 11 - 1e-9:
                found[part, np.flatnonzero(strengths >= strengths.max() - 1e-9)[0]] += 1
    shares = found / np.maximum(blocks, 1)[:, None]
    distances = np.abs(shares[:, :, None] - EDGE_SHARES)
    return distances.argmin(-1).reshape(80)


def their_tamura(image: np.ndarray) -> np.ndarray:
    light, longer = their_light(image), max(image.shape[:2])
    g = their_reduction(light, *(max(3, 64 * side // longer) for side in image.shape[:2]))
    h, w = g.shape

    def average(y: int, x: int, k: int) -> float:
        start = int(2 ** (k - 1))
        rows = np.clip(np.arange(4**k) + y - start, 0, h - 1)
        columns = np.clip(np.arange(4**k) + x - start, 0, w - 1)
        return g[np.ix_(rows, columns)].sum() / 4**k

    coarseness, directions = 0.0, np.zeros(16)
    for y in range(1, h - 1):
        for x in range(1, w - 1):
            size, best = 1, 0.0
            for k in range(3):
                d = int(2 ** (k - 1))
                horizontal = abs(average(y, x + d, k) - average(y, x - d, k))
                vertical = abs(average(y + d, x, k) - average(y - d, x, k))
                if max(horizontal, vertical) > best:
                    size, best = k, max(horizontal, vertical)
            coarseness += 2**size
            around = g[y - 1 : y + 2, x - 1 : x + 2]
            dx, dy = (around[:, 2] - around[:, 0]).sum(), (around[2] - around[0]).sum()
            with np.errstate(divide="ignore", invalid="ignore"):
                angle = math.pi / 2 + np.arctan(dx / dy)
            directions[0 if math.isnan(angle) else min(int(angle / 0.2), 15)] += 1
    sigma = g.std()
    contrast = sigma / (((g - g.mean()) ** 4).sum() / sigma**4) ** 0.25 if sigma > 0 else 0.0
    return np.array([coarseness / (h * w), contrast, *directions])


def their_layout(image: np.ndarray) -> np.ndarray:
    return np.floor(their_reduction(their_light(image), 8, 8) / 8).reshape(64)


def their_colours(image: np.ndarray) -> np.ndarray:
    histogram = np.zeros(64)
    for r, g, b in image.reshape(-1, 3):
        histogram[16 * round(r / 85) + 4 * round(g / 85) + round(b / 85)] += 1
    return np.floor(255 * histogram / histogram.max() + 1e-9)


def photograph(height: int, width: int, seed: int, contrast: float) -> np.ndarray:
    """Something between a picture and noise: blots of colour, grain, and a black corner."""
    r = np.random.default_rng(seed)
    blots = np.kron(r.normal(size=(height // 6 + 1, width // 6 + 1, 3)), np.ones((6, 6, 1)))[:height, :width]
    image = 127 + contrast * (60 * blots + 15 * r.normal(size=(height, width, 3)))
    image[: height // 4, : width // 4] = 0
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width"),
    [(48, 80), (97, 61), (150, 170), (16, 120)],
    ids=lambda side: str(side),
)
def test_equals_the_definitions(height, width):
    image = photograph(height, width, height, 1.0)
    features = np.asarray(global_features(image[None]), np.float64)[0]
    np.testing.assert_array_equal(features[SLICES.edge_histogram], their_edges(image))
    np.testing.assert_allclose(features[SLICES.tamura], their_tamura(image), rtol=1e-5)
    np.testing.assert_array_equal(features[SLICES.luminance_layout], their_layout(image))
    np.testing.assert_array_equal(features[SLICES.color_histogram], their_colours(image))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), contrast=st.floats(0, 4))
def test_edges_colours_and_layout_equal_the_definitions_of_any_picture(seed, contrast):
    image = photograph(40, 52, seed, contrast)
    np.testing.assert_array_equal(edge_histogram(image[None])[0], their_edges(image))
    np.testing.assert_array_equal(luminance_layout(image[None])[0], their_layout(image))
    np.testing.assert_array_equal(color_histogram(image[None])[0], their_colours(image))


# ------------------------------------------------------------------------------------------------- the rest


def test_the_four_are_put_together_in_order():
    images = np.stack([photograph(64, 48, seed, 1.0) for seed in range(3)])
    features = global_features(images)
    assert features.shape == (3, COUNT) and features.dtype == np.float32
    assert [s.stop - s.start for s in SLICES] == [80, 18, 64, 64] and SLICES[-1].stop == COUNT
    for place, function in zip(
        SLICES, (edge_histogram, tamura, luminance_layout, color_histogram), strict=True
    ):
        np.testing.assert_array_equal(features[:, place], function(images))
    # An image has the same features alone.
    np.testing.assert_allclose(features[1:2], global_features(images[1:2]), rtol=1e-6)


def test_a_shape_is_compiled_once():
    images = np.stack([photograph(44, 36, seed, 1.0) for seed in range(2)])
    global_features(images)
    before = global_features._cache_size()
    global_features(images[::-1])
    global_features(np.zeros_like(images))
    assert global_features._cache_size() == before


@pytest.mark.parametrize(
    ("shape", "says"), [((1, 7, 20, 3), "20 × 7 pixels"), ((1, 4096, 4096, 3), "4096 × 4096 pixels")]
)
def test_sizes_that_make_no_sense_are_named(shape, says):
    images = np.broadcast_to(np.uint8(0), shape)
    for function in (global_features, edge_histogram, tamura, luminance_layout, color_histogram):
        with pytest.raises(InputError, match=says):
            function(images)


def test_scale_evenly_features_deviate_alike_and_keep_their_numbers_proportions():
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(30, COUNT)) * rng.uniform(1, 500, COUNT)).astype(np.float32)
    X[:, SLICES.luminance_layout] = 7
    found = scale_evenly(X)
    deviations = [np.sqrt(found[:, where].var(0).sum()) for where in SLICES]
    np.testing.assert_allclose(deviations, [1, 1, 0, 1], atol=1e-5)
    np.testing.assert_array_equal(found[:, SLICES.luminance_layout], 7)
    ratio = found[:, SLICES.tamura] / X[:, SLICES.tamura]
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)
