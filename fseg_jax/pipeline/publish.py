"""A slide's outputs on their way to their places: checked before the work, put there at once after it.

The record is the last of them to appear: where it is, all are.
"""

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fseg_jax.errors import InputError, OutputError
from fseg_jax.files.exchange import exchange_outputs
from fseg_jax.files.partial_folders import open_partial_folder, recover_outputs
from fseg_jax.files.paths import is_folder, is_there

Json = dict[str, Any]  # a JSON object: text keys, and what JSON can hold


def now() -> str:
    """Tell the time as records state it: ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def check_outputs(paths: Sequence[Path], out: Path, overwrite: bool) -> None:
    """Check that outputs can be written, after putting in place what a killed run had finished.

    Args:
        paths: All outputs, the record first.
        out: Their folder.
        overwrite: Whether outputs that exist may be replaced.

    Raises:
        InputError: One of them exists and may not be replaced, or has a name that no file can have.
        OutputError: The folder cannot be written to.
    """
    for path in paths:
        try:
            path.name.encode()
        except UnicodeEncodeError:
            raise InputError(f"{path.name!r}: the slide's name is not UTF-8; rename it") from None
    recover_outputs(paths[0].stem, out)
    existing = [path for path in paths if is_there(path)]
    if existing and not overwrite:
        raise InputError(f"{existing[-1]} exists: choose another folder, or --overwrite")
    if is_there(out) and not is_folder(out):
        raise InputError(f"{out}: is a file; -o names a folder")
    # The nearest folder that exists must let us in; access() alone would say yes to root on a read-only disk.
    parent = next(p for p in (out, *out.absolute().parents) if is_there(p))
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror})") from error


def encode_json(record: Mapping[str, Any]) -> bytes:
    """Encode a record as the bytes of its file."""
    return (json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def finish(folder: Path, record: Mapping[str, Any], paths: Sequence[Path]) -> Json:
    """Write a record, and put all that the folder holds in place of what is there.

    ``paths`` are all outputs, the record first. Returns the record as it is in the file, with the time.
    """
    data = encode_json({**record, "finished": now()})
    (folder / paths[0].name).write_bytes(data)
    exchange_outputs(folder, [path.name for path in paths])
    content: Json = json.loads(data)
    return content


@contextmanager
def together(record: str, out: Path) -> Iterator[Path]:
    """Give a folder for outputs that belong together, and publish them when the block ends well.

    Every file made in it then comes to its place below ``out``, the record last, and what was there under
    these names goes. When the block fails, nothing is changed.
    """
    with open_partial_folder(Path(record).stem, out) as folder:
        yield folder
        names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        exchange_outputs(folder, [record, *sorted(name for name in names if name != record)])


class Clock:
    """Seconds of each phase of a run, by name."""

    def __init__(self) -> None:
        """Start the clock."""
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def skip(self) -> None:
        """Count the seconds since the last lap for nothing."""
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Note the seconds since the last lap."""
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 3)
        self._last = now
