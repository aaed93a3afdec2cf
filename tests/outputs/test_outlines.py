"""Outlines over a picture: where the mask's border is, whatever its resolution; a key that fits."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import draw

from fseg_jax.outputs.lettering import Lettering
from fseg_jax.outputs.outlines import Outline, draw_key, draw_outlines
from fseg_jax.outputs.style import use_style

RED = "#ff0000"


def render(tmp_path: Path, outlines: list[Outline], side: int = 240) -> np.ndarray:
    """Draw outlines over a grey slide of 200 × 200 pixels at 2 µm, which begins at (20, 20)."""
    with use_style():
        lettering = Lettering(np.full((side, side, 3), 128, np.uint8))
        draw_outlines(lettering, outlines, (20, 20), 2.0)
        lettering.save(tmp_path / "a.png")
    return np.asarray(Image.open(tmp_path / "a.png")).astype(int)


def find_red(picture: np.ndarray) -> np.ndarray:
    return (picture[..., 0] > 200) & (picture[..., 1:] < 60).all(-1)


def make_disc(mpp: float) -> np.ndarray:
    """Make a disc of 120 µm round (200, 200) µm."""
    mask = np.zeros((round(400 / mpp),) * 2, bool)
    mask[draw.disk((200 / mpp - 0.5, 200 / mpp - 0.5), 120 / mpp, shape=mask.shape)] = True
    return mask


@pytest.mark.parametrize("mpp", [0.25, 1.0, 2.0, 8.0])
def test_a_line_lies_on_the_border(mpp: float, tmp_path: Path) -> None:
    red = find_red(render(tmp_path, [Outline("disc", make_disc(mpp), mpp, RED)]))
    y, x = np.argwhere(red).T + 0.5
    radius = np.hypot(y - 120, x - 120)
    assert red.sum() > 250
    assert abs(radius.mean() - 60) < 1 and (np.abs(radius - 60) < 1.5 + mpp / 2).all()


def test_a_line_has_a_white_casing_and_a_hole_a_line_of_its_own(tmp_path: Path) -> None:
    mask = np.zeros((200, 200), bool)
    mask[40:160, 40:160] = True
    mask[80:120, 80:120] = False
    picture = render(tmp_path, [Outline("ring", mask, 2.0, RED)])
    row = picture[120]
    assert np.flatnonzero(find_red(picture)[120]).tolist() == [59, 60, 99, 100, 139, 140, 179, 180]
    assert (row[[58, 61, 98, 101]].min(axis=-1) > 180).all()
    assert (row[[40, 80, 120]] == 128).all()


def test_a_pattern_fills_the_area_but_not_its_holes(tmp_path: Path) -> None:
    mask = np.zeros((200, 200), bool)
    mask[20:180, 20:180] = True
    mask[70:130, 70:130] = False
    picture = render(tmp_path, [Outline("ring", mask, 2.0, RED, "xx")])
    reddish = picture[..., 0] - picture[..., 1] > 60
    assert reddish[45:85, 45:195].mean() > 0.05
    assert not reddish[95:145, 95:145].any() and not reddish[:35].any()


def test_an_area_that_is_the_whole_slide_has_its_frame_for_an_outline(tmp_path: Path) -> None:
    red = find_red(render(tmp_path, [Outline("all", np.ones((50, 50), bool), 8.0, RED)]))
    y, x = np.argwhere(red).T
    assert {int(v) for v in (*y, *x)} >= {19, 20, 219, 220} and not red[30:210, 30:210].any()


def test_what_is_nowhere_is_not_drawn(tmp_path: Path) -> None:
    nothing = Outline("none", np.zeros((50, 50), bool), 8.0, RED, "xx")
    assert (render(tmp_path, [nothing]) == 128).all()


def test_a_key_names_what_is_there_as_far_as_it_fits(tmp_path: Path) -> None:
    something = np.ones((9, 9), bool)
    outlines = [
        Outline("Tissue", something, 1.0, RED),
        Outline("Ink", ~something, 1.0, "#0000ff"),
        Outline("Fold", something, 1.0, "#00ff00"),
    ]

    def draw_in(width: float) -> np.ndarray:
        with use_style():
            lettering = Lettering(np.full((60, 400, 3), 255, np.uint8))
            draw_key(lettering, outlines, 10, 40, width, 18)
            lettering.save(tmp_path / "key.png")
        return np.asarray(Image.open(tmp_path / "key.png")).astype(int)

    wide, narrow = draw_in(390), draw_in(150)
    for picture, fold in ((wide, True), (narrow, False)):
        assert find_red(picture).any()
        green = (picture[..., 1] > 200) & (picture[..., 0] < 60)
        assert green.any() == fold
        assert not ((picture[..., 2] > 200) & (picture[..., 0] < 60)).any()
    assert (narrow[:, 160:] == 255).all()
