"""Tables that are opened in spreadsheets."""

import csv
from io import StringIO

import pytest

from fseg_jax.outputs.csv_table import format_csv, guard_cell, unguard_cell

pytestmark = pytest.mark.smoke

FORMULAS = ["=1+1", "+A1", "-A1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=cmd|' /C calc'!A0", "\uff1d1+1", "-"]
HARMLESS = ["", "tumour", "a=b", "S-01", "'quoted'", "-0.5", "+1e-3", "-.5", "3", "1-2"]


def read(text: str) -> list[list[str]]:
    return list(csv.reader(StringIO(text, newline="")))


@pytest.mark.parametrize("cell", FORMULAS)
def test_what_a_spreadsheet_would_run_is_text(cell):
    head, row = read(format_csv([cell], [{cell: cell}]))
    assert head == row == [f"'{cell}"]


@pytest.mark.parametrize("cell", [*HARMLESS, -1.5, 7, None, True])
def test_other_cells_are_as_they_were(cell):
    assert guard_cell(cell) == cell


@pytest.mark.parametrize("cell", [*FORMULAS, *HARMLESS, "'=1", "''=1", "'", "''", "'a"])
def test_every_text_comes_back(cell):
    ((_, (written,))) = read(format_csv(["name"], [{"name": cell}]) if cell else 'name\n""\n')
    assert unguard_cell(written) == cell


def test_a_cell_that_a_row_lacks_is_empty():
    assert format_csv(("a", "b"), [{"b": 1}, {"a": "x, y"}]) == 'a,b\n,1\n"x, y",\n'
