"""Tables as CSV, which are opened in spreadsheets: a name of a slide or a class is never run as a formula.

A spreadsheet takes a cell that begins with ``=``, ``+``, ``-``, ``@``, a tab or a line's end for something to
work out. Such text gets an apostrophe before it, ``'=A1``; text that has apostrophes and then such a
character gets one more, so that ``plain``, which takes one away, gives back every text. Numbers stay as they
are.
"""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from typing import Any

# Full-width forms too: some spreadsheets take them for the plain ones.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Write rows below their columns' names; a cell that a row lacks is empty."""
    lines = [columns, *([row.get(column, "") for column in columns] for row in rows)]
    return "".join(map(_line, lines))


def _line(cells: Sequence[Any]) -> str:
    text = StringIO()
    # Told that lines end in "\n" alone, the writer would leave a carriage return in a cell unquoted.
    csv.writer(text, lineterminator="\r\n").writerow([guarded(cell) for cell in cells])
    return text.getvalue().removesuffix("\r\n") + "\n"


def guarded(cell: Any) -> Any:
    """A cell as no spreadsheet runs it."""
    if isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell


def plain(cell: str) -> str:
    """What a cell said before it was guarded."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
