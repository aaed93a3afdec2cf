"""The table of areas."""

import csv

import numpy as np
import pytest

from fseg_jax.errors import InputError
from fseg_jax.outputs.areas import round_area, write_areas
from fseg_jax.outputs.colours import make_palette

pytestmark = pytest.mark.smoke


def test_areas_say_pixels_and_mm2(tmp_path):
    pixels = np.array([10**9, 3_000_000, 0, 1_000_000])
    write_areas(tmp_path / "s.csv", ["a,b", "c", "d"], pixels, 0.5, step_mm2=256e-6, colours=make_palette(3))
    rows = list(csv.DictReader((tmp_path / "s.csv").open(encoding="utf-8")))
    assert list(rows[0]) == ["cluster", "name", "colour", "pixels", "area_mm2", "share", "area_step_mm2"]
    assert [row["name"] for row in rows] == ["a,b", "c", "d"]
    assert [float(row["area_mm2"]) for row in rows] == [0.75, 0, 0.25]
    assert [float(row["share"]) for row in rows] == [0.75, 0, 0.25]
    assert rows[0]["colour"] == "#009e73" and rows[0]["pixels"] == "3000000"
    assert {row["area_step_mm2"] for row in rows} == {"0.00026"}


@pytest.mark.parametrize(
    ("side_um", "area", "share", "step"),
    [
        (16, "0.1235", "0.617", "0.00026"),  # a token
        (64, "0.123", "0.62", "0.0041"),  # patches of 128 µm, half overlapping
        (128, "0.12", "0.62", "0.016"),
        (512, "0.1", "1", "0.26"),  # one step is more than all of the tissue
    ],
)
def test_areas_have_the_digits_that_their_least_step_changes(tmp_path, side_um, area, share, step):
    pixels = np.array([0, 123_456, 76_544])
    write_areas(
        tmp_path / "s.csv", ["a", "b"], pixels, 1.0, step_mm2=side_um**2 * 1e-6, colours=make_palette(2)
    )
    row = next(csv.DictReader((tmp_path / "s.csv").open(encoding="utf-8")))
    assert (row["area_mm2"], row["share"], row["area_step_mm2"]) == (area, share, step)
    assert round_area(0.123456, side_um**2 * 1e-6) == float(area)


def test_areas_of_no_tissue(tmp_path):
    write_areas(tmp_path / "s.csv", ["a"], np.array([5, 0]), 1.0, step_mm2=256e-6, colours=make_palette(1))
    assert (tmp_path / "s.csv").read_text().splitlines()[1] == "1,a,#009e73,0,0.0000,0,0.00026"


def test_what_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(InputError, match="cannot be written") as caught:
        write_areas(
            tmp_path / "absent" / "s", ["a"], np.array([5, 0]), 1.0, step_mm2=1.0, colours=make_palette(1)
        )
    assert "\n" not in str(caught.value)


def test_the_share_at_the_border_comes_last(tmp_path):
    write_areas(
        tmp_path / "s.csv",
        ["a", "b"],
        np.array([5, 30, 10]),
        1.0,
        step_mm2=256e-6,
        colours=make_palette(2),
        border_shares=[0.25, 1.0],
    )
    with (tmp_path / "s.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[-1] == "border_share" and [float(row["border_share"]) for row in rows] == [0.25, 1.0]
