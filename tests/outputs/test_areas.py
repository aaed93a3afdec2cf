"""The table of areas."""

import csv

import numpy as np
import pytest

from fseg_jax.errors import InputError
from fseg_jax.outputs.areas import write_areas
from fseg_jax.outputs.colours import make_palette

pytestmark = pytest.mark.smoke


def test_areas_say_pixels_and_mm2(tmp_path):
    pixels = np.array([10**9, 3_000_000, 0, 1_000_000])
    write_areas(tmp_path / "s.csv", ["a,b", "c", "d"], pixels, 0.5, colours=make_palette(3))
    rows = list(csv.DictReader((tmp_path / "s.csv").open(encoding="utf-8")))
    assert list(rows[0]) == ["cluster", "name", "colour", "pixels", "area_mm2", "share"]
    assert [row["name"] for row in rows] == ["a,b", "c", "d"]
    assert [float(row["area_mm2"]) for row in rows] == [0.75, 0, 0.25]
    assert [float(row["share"]) for row in rows] == [0.75, 0, 0.25]
    assert rows[0]["colour"] == "#009e73" and rows[0]["pixels"] == "3000000"


def test_areas_of_no_tissue(tmp_path):
    write_areas(tmp_path / "s.csv", ["a"], np.array([5, 0]), 1.0, colours=make_palette(1))
    assert (tmp_path / "s.csv").read_text().splitlines()[1] == "1,a,#009e73,0,0.000000,0.000000"


def test_what_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(InputError, match="cannot be written") as caught:
        write_areas(tmp_path / "absent" / "s", ["a"], np.array([5, 0]), 1.0, colours=make_palette(1))
    assert "\n" not in str(caught.value)
