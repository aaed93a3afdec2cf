"""Tables as CSV in which no spreadsheet takes a text for a formula.

A spreadsheet takes a cell that begins with ``=``, ``+``, ``-``, ``@``, a tab or the end of a line for a
formula. Such text is guarded by an apostrophe before it, ``'=A1``. Text that begins with apostrophes and then
such a character gets one more, so that removing one gives back the text. Numbers are not guarded.
"""

import csv
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from fseg_jax.errors import InputError
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


def read_table(path: str | os.PathLike[str], wanted: str) -> bytes:
    """Read the content of a table that a user wrote, for ``parse_table``; ``wanted`` is what is wanted.

    Raises:
        InputError: There is no such file, or it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {wanted}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def parse_table(
    content: bytes, source: str, columns: Sequence[str], needed: int, wanted: str
) -> list[tuple[int, dict[str, str]]]:
    """Parse a table that a user wrote: CSV in UTF-8, split at commas, semicolons or tabs.

    Args:
        content: The file's content.
        source: Where it is from, for errors.
        columns: The columns that are read, in any order and case; others are left out.
        needed: How many of them, the first ones, must be there.
        wanted: What is wanted, for errors.

    Returns:
        The lines that are not empty, each with its number: cells by column, without the guard.

    Raises:
        InputError: It is no such table; the message is one line.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise InputError(f"{source}: line {number} is not UTF-8; save it as CSV in UTF-8; {wanted}") from None
    first = text.partition("\n")[0]
    reader = csv.reader(StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    try:
        lines = [line for line in _number_lines(reader) if any(cell.strip() for cell in line[1])]
    except csv.Error as error:
        raise InputError(f"{source}: line {reader.line_num} is not CSV ({error})") from None
    header = [cell.strip().lower() for cell in lines[0][1]] if lines else []
    if missing := [column for column in columns[:needed] if column not in header]:
        raise InputError(f"{source}: no column {' and no column '.join(missing)} in its first line; {wanted}")
    if twice := [column for column in columns if header.count(column) > 1]:
        raise InputError(f"{source}: two columns are called {twice[0]}; keep one")
    rows = []
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            raise InputError(f"{source}: line {number}: {len(cells)} cells, but the header has {len(header)}")
        found = zip(header, cells, strict=True)
        rows.append((number, {name: unguard_cell(cell.strip()) for name, cell in found if name in columns}))
    return rows


def _number_lines(reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Yield the records with the line that each ends at."""
    for cells in reader:
        yield reader.line_num, cells  # type: ignore[attr-defined]


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
