"""Text over pictures."""

import numpy as np
import pytest
from PIL import Image

from fseg_jax.outputs.lettering import (
    Lettering,
    fit_text,
    measure_text,
    replace_missing_letters,
    round_length,
)
from fseg_jax.outputs.style import use_style


def letter(path, pixels, *words):
    with use_style():
        lettering = Lettering(pixels)
        for word in words:
            lettering.write_text(*word)
        lettering.save(path)
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("shape", [(1, 1), (77, 1001), (1426, 2399)])
def test_a_picture_keeps_its_own_pixels(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    np.testing.assert_array_equal(letter(tmp_path / "p.png", pixels), pixels)


def test_the_same_lettering_is_the_same_file(tmp_path):
    pixels = np.full((60, 300, 3), 255, np.uint8)
    for name in "ab":
        letter(tmp_path / name, pixels, (5, 40, "areas in mm²", 20))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("text", ["x", "Ødegård – 3 µm² ×2", "$x^2$ costs $5"])
def test_text_is_as_wide_as_it_is_measured(tmp_path, text):
    picture = letter(tmp_path / "p.png", np.full((60, 600, 3), 255, np.uint8), (100, 40, text, 20))
    columns = np.flatnonzero((picture < 200).any((0, 2)))
    assert columns[0] == pytest.approx(100, abs=3)
    assert columns[-1] - columns[0] == pytest.approx(measure_text(text, 20), abs=5)


def test_text_is_shortened_to_a_width():
    assert fit_text("short", 20, 500) == "short"
    fitted = fit_text("long " * 100, 20, 300)
    assert fitted.endswith("…") and 270 < measure_text(fitted, 20) <= 300


def test_no_letter_is_drawn_as_an_empty_box():
    assert replace_missing_letters("Ødegård – 3 µm² ×2 胃\n") == "Ødegård – 3 µm² ×2 ??"


@pytest.mark.parametrize(
    ("at_most", "length"), [(1.0, 1), (1.99, 1), (2.0, 2), (49.9, 20), (50, 50), (4321, 2000), (0.03, 0.02)]
)
def test_scale_bars_have_round_lengths(at_most, length):
    assert round_length(at_most) == pytest.approx(length)
