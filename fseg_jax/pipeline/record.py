"""How a slide's outputs come to their names, the record last; and what every record states of its making."""

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from fseg_jax.encoders.kernels import onednn
from fseg_jax.errors import InputError, OutputError
from fseg_jax.files.claims import partial_folder, settle
from fseg_jax.files.exchange import exchange
from fseg_jax.files.paths import is_folder, is_there
from fseg_jax.slides.identity import identify
from fseg_jax.slides.reader import Slide
from fseg_jax.versions import versions_of

PACKAGES = ("fseg-jax", "jax", "jaxlib", "numpy", "tensorstore")


def check_outputs(paths: Sequence[Path], out: Path, overwrite: bool) -> None:
    """Raise ``InputError`` if one of the outputs exists and may not be replaced, or none can be written.

    The first of the paths is the record's. What a killed run had whole is put there first.
    """
    for path in paths:
        try:
            path.name.encode()
        except UnicodeEncodeError:
            raise InputError(f"{path.name!r}: the slide's name is not UTF-8; rename it") from None
    settle(paths[0].stem, out)
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


def finish(folder: Path, record: dict[str, Any], paths: Sequence[Path]) -> dict[str, Any]:
    """Write the record, the first of ``paths``, and put all that the folder holds in place of what is there.

    Returns the record as it is in the file.
    """
    record = {**record, "finished": datetime.now(UTC).isoformat(timespec="seconds")}
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / paths[0].name).write_text(text, encoding="utf-8")
    exchange(folder, [path.name for path in paths])
    return json.loads(text)


@contextmanager
def together(record: str, out: Path) -> Iterator[Path]:
    """A folder for outputs that belong together; when the block ends well, every file made in it comes to its
    place below ``out``, the record last, and what was there under these names goes. Otherwise nothing is
    changed.
    """
    with partial_folder(Path(record).stem, out) as folder:
        yield folder
        names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        exchange(folder, [record, *sorted(name for name in names if name != record)])


def made_with() -> dict[str, Any]:
    """The versions of what computes a result, and the device."""
    versions = versions_of(PACKAGES)
    convolutions = onednn.library()
    if convolutions is not None:
        versions["onednn"] = convolutions.version
    return {
        "versions": versions,
        "device": jax.devices()[0].device_kind,
    }


def slide_facts(slide: Slide) -> dict[str, Any]:
    """Which slide a result is of, and what it is."""
    return {
        "path": str(slide.path),
        "identity": identify(slide.path),
        "format": slide.format,
        "height": slide.height,
        "width": slide.width,
        "mpp": slide.mpp,
    }


class Clock:
    """Seconds since the last lap, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 3)
        self._last = now
