"""Tables as CSV in which no spreadsheet takes a text for a formula.

A spreadsheet takes a cell that begins with ``=``, ``+``, ``-``, ``@``, a tab or the end of a line for a
formula. Such text is guarded by an apostrophe before it, ``'=A1``. Text that begins with apostrophes and then
such a character gets one more, so that removing one gives back the text. Numbers are not guarded.
"""

import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from typing import Any

from fseg_jax.files.atomic import replace_atomically

# With the full-width forms, which some spreadsheets accept too.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


def format_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Format rows as CSV, below a header; a cell that a row lacks is empty."""
    lines = [columns, *([row.get(column, "") for column in columns] for row in rows)]
    return "".join(map(_format_line, lines))


def write_csv(
    path: str | os.PathLike[str], columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> None:
    """Write rows as ``format_csv`` formats them; the file appears whole or not at all."""
    with replace_atomically(path) as part:
        part.write_text(format_csv(columns, rows), encoding="utf-8")


def _format_line(cells: Sequence[Any]) -> str:
    text = StringIO()
    # With lineterminator="\n" the writer would not quote a cell with a carriage return.
    csv.writer(text, lineterminator="\r\n").writerow([guard_cell(cell) for cell in cells])
    return text.getvalue().removesuffix("\r\n") + "\n"


def guard_cell(cell: Any) -> Any:
    """Put an apostrophe before text that a spreadsheet would take for a formula."""
    if isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell


def unguard_cell(cell: str) -> str:
    """Remove the apostrophe that guards a cell's text."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
