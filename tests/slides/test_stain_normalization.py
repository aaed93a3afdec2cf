"""Stain normalization: densities after it, and that it does not see what it must not."""

import numpy as np
import pytest
from PIL import Image
from skimage import data as pictures

from fseg_jax.slides.reader import open_slide
from fseg_jax.slides.stain_normalization import (
    NO_GAINS,
    STANDARD_DENSITY,
    measure_gains,
    measure_slide,
    recolour,
)
from fseg_jax.slides.tissue import Tissue

STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])  # haematoxylin, eosin: Ruifrok & Johnston


def draw_tissue(shape, strength=(1.0, 1.0, 1.0), seed=0):
    """Draw uint8 tissue of both stains, whose densities are multiplied channel by channel."""
    amounts = np.random.default_rng(seed).gamma(4, 0.15, (*shape, 2))
    return np.round(255 * np.exp(-(amounts @ STAINS) * strength)).astype(np.uint8)


def density(pixels):
    return -np.log(np.maximum(pixels, 0.5) / 255).reshape(-1, 3)


def test_tissue_gets_the_standard_densities():
    image = draw_tissue((200, 150), (0.6, 1.3, 0.8))
    gains = measure_gains(image.reshape(-1, 3))
    mean = density(recolour(image, gains)).mean(0)
    np.testing.assert_allclose(mean, STANDARD_DENSITY, rtol=0.03)


def test_one_tissue_in_two_laboratories_becomes_one_image():
    pale, strong = (draw_tissue((128, 128), strength) for strength in ((0.6, 0.8, 0.5), (1.2, 1.1, 1.0)))
    assert np.abs(pale.astype(int) - strong).mean() > 25
    normalized = [recolour(image, measure_gains(image.reshape(-1, 3))) for image in (pale, strong)]
    assert np.abs(normalized[0].astype(int) - normalized[1]).mean() < 3


def test_glass_padding_and_ink_are_not_measured_and_glass_stays():
    tissue = draw_tissue((100, 100)).reshape(-1, 3)
    others = np.repeat(np.array([[255, 255, 255], [240, 240, 238], [0, 0, 0]], np.uint8), 4000, axis=0)
    assert measure_gains(np.concatenate([tissue, others])) == measure_gains(tissue)
    assert measure_gains(others) == NO_GAINS  # there is nothing to measure
    white = np.full((4, 4, 3), 255, np.uint8)
    assert (recolour(white, (0.5, 2.0, 1.3)) == 255).all()
    assert (recolour(np.zeros((4, 4, 3), np.uint8), (0.5, 2.0, 1.3)) == 0).all()


def test_gains_are_bounded():
    faint = np.repeat(np.array([[254, 60, 150]], np.uint8), 1000, axis=0)
    assert max(measure_gains(faint)) == 4


def test_a_brown_slide_stays():
    image = pictures.immunohistochemistry()
    assert measure_gains(image.reshape(-1, 3)) == NO_GAINS


@pytest.fixture
def slide(tmp_path):
    image = np.full((700, 900, 3), 244, np.uint8)
    image[100:600, 100:700] = draw_tissue((500, 600), (0.7, 0.9, 1.4))
    Image.fromarray(image).save(tmp_path / "slide.png")
    with open_slide(tmp_path / "slide.png", 0.5) as opened:
        yield opened


def test_a_slide_is_measured_on_its_tissue(slide):
    mask = np.zeros((175, 225), bool)
    mask[25:150, 25:175] = True
    whole = slide.read(100, 100, 500, 600, 0.5)
    gains = measure_slide(slide, Tissue(mask, 2.0), 0.5)
    np.testing.assert_allclose(gains, measure_gains(whole.reshape(-1, 3)), rtol=0.03)
    assert gains == measure_slide(slide, Tissue(mask, 2.0), 0.5)
    assert measure_slide(slide, Tissue(~mask, 2.0), 0.5) == NO_GAINS  # glass alone
    assert measure_slide(slide, Tissue(np.zeros_like(mask), 2.0), 0.5) == NO_GAINS
