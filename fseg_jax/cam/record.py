"""What each step on a folder leaves: a record, written last: if it is there, all is."""

import json
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from fseg_jax.errors import InputError, OutputError
from fseg_jax.files.atomic import replacing
from fseg_jax.files.partial_folders import recover_outputs
from fseg_jax.versions import versions_of


def fresh(out: Path, name: str, overwrite: bool) -> Path:
    """The record's path, where there is none yet, or one that may be replaced."""
    record = Path(out) / name
    recover_outputs(record.stem, record.parent)
    if record.exists() and not overwrite:
        raise InputError(f"{record} exists: give --overwrite, or another folder")
    return record


def make_folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be made ({error.strerror}): give another folder") from error
    return path


def write_record(path: Path, said: dict[str, Any], started: float) -> dict[str, Any]:
    record = {
        "method": "CAM (Storås 2021, MediaEval Medico)",
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 1),
        "versions": {"python": platform.python_version()}
        | versions_of(("fseg-jax", "jax", "flax", "optax", "numpy", "pillow")),
        "device": jax.devices()[0].device_kind,
        **said,
    }
    with replacing(path) as part:
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record
