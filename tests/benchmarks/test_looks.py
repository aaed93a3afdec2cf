"""Measures of how labels look, on labels for which they are known."""

import numpy as np
import pytest

from benchmarks.looks import MPP, measure_looks

SIDE = 200


def draw_disc(radius: float) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    return np.hypot(y, x) <= radius


def test_a_shell_round_a_piece_of_tissue_is_a_ring() -> None:
    labels = np.where(draw_disc(80), np.where(draw_disc(75), 1, 2), 0).astype(np.uint8)
    looks = measure_looks(labels, MPP)
    shell = (labels == 2).sum() / (labels > 0).sum()
    assert looks.ring == pytest.approx(shell)
    assert looks.bands == pytest.approx(shell, abs=0.01)  # 20 µm thick
    assert looks.specks == 0


def test_halves_of_a_piece_are_no_rings() -> None:
    labels = np.where(draw_disc(80), 1 + (np.arange(SIDE) > 99), 0).astype(np.uint8)
    looks = measure_looks(labels, MPP)
    assert looks.ring == 0 and looks.bands < 0.02
    assert looks.regions == pytest.approx(2 / ((labels > 0).sum() * 16e-6))


def test_the_frame_of_a_picture_is_no_border() -> None:
    labels = np.ones((SIDE, SIDE), np.uint8)
    labels[:, :5] = 2  # 20 µm along the frame, where the tissue goes on
    assert measure_looks(labels, MPP).ring == 0
    labels[:, -1] = 0
    labels[:, -6:-1] = 3  # and as much along glass
    assert measure_looks(labels, MPP).ring == pytest.approx(5 / (SIDE - 1))


@pytest.mark.parametrize(("width", "is_band"), [(10, True), (14, False)])
def test_bands_are_what_is_thinner_than_48_um(width: int, is_band: bool) -> None:
    labels = np.ones((SIDE, SIDE), np.uint8)
    labels[:, 100 : 100 + width] = 2
    assert measure_looks(labels, MPP).bands == pytest.approx(width / SIDE if is_band else 0)


def test_specks_are_counted_as_regions() -> None:
    labels = np.ones((SIDE, SIDE), np.uint8)
    labels[10:15, 10:15] = 2  # 400 µm²
    labels[50:56, 50:56] = 3  # 576 µm²
    looks = measure_looks(labels, MPP)
    assert looks.specks == pytest.approx(1 / 3)
    assert looks.regions == pytest.approx(3 / (SIDE**2 * 16e-6))


def test_a_picture_without_tissue_has_nothing() -> None:
    assert measure_looks(np.zeros((9, 9), np.uint8), MPP) == (0, 0, 0, 0)
