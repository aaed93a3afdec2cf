"""What each step of the chain leaves in its folder: tables, and a record that is written last.

A folder that holds a step's record holds all of the step's outputs.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fseg_jax.errors import InputError, OutputError
from fseg_jax.files.atomic import replace_atomically
from fseg_jax.files.partial_folders import recover_outputs
from fseg_jax.pipeline.provenance import Provenance

METHOD = "CAM (Storås 2021, MediaEval Medico)"
PACKAGES = ("fseg-jax", "jax", "flax", "optax", "numpy", "pillow")


@dataclass(frozen=True)
class StepRecord:
    """The record of a step; each step adds fields of its own.

    Attributes:
        provenance: When, with what and on what the step was done.
    """

    provenance: Provenance

    def to_json(self) -> dict[str, Any]:
        """Return the record as it is in its file: method, provenance, then the step's own fields."""
        facts = asdict(self)
        return {"method": METHOD, **facts.pop("provenance"), **facts}


def split_record(content: dict[str, Any]) -> tuple[Provenance, dict[str, Any]]:
    """Take a record's file apart: its provenance, and the fields of the step."""
    names = [field.name for field in fields(Provenance)]
    provenance = Provenance(**{name: content[name] for name in names})
    return provenance, {name: value for name, value in content.items() if name not in (*names, "method")}


def take_provenance(started: float) -> Provenance:
    """Take down when and with what a step was done that began at ``started``."""
    return Provenance.since(started, PACKAGES)


def check_record_is_new(out: Path, name: str, overwrite: bool) -> None:
    """Check that a folder has no record of this name yet, or that it may be replaced.

    What a killed run had whole is put in place first. Raises ``InputError`` for a record that would be lost.
    """
    record = Path(out) / name
    recover_outputs(record.stem, record.parent)
    if record.exists() and not overwrite:
        raise InputError(f"{record} exists: give --overwrite, or another folder")


def make_folder(path: Path) -> Path:
    """Make a folder and those above it. Raises ``OutputError`` where the system refuses."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be made ({error.strerror}): give another folder") from error
    return path


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, indented by one; the file appears whole or not at all."""
    with replace_atomically(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
