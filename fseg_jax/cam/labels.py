"""Which image shows what: labels from a folder's subfolders, or from a CSV file.

Without a file, an image's label is the name of the subfolder it lies in (the first below the folder); images
in the folder itself, or in one called ``unlabelled`` or ``unlabeled``, have none. A file is CSV with the
columns ``image`` (a path below the folder) and ``label``, text as ``outputs.csv_table`` writes it; images
that it does not list, or lists without a label, have none. A column ``held_out`` that says yes keeps an image
from training.
"""

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from fseg_jax.cam.images import find_images
from fseg_jax.errors import InputError
from fseg_jax.files.atomic import replacing
from fseg_jax.files.kinds import did_you_mean
from fseg_jax.outputs.csv_table import csv_text, plain

NONE = ("unlabelled", "unlabeled")
_YES = ("yes", "true", "1")


class Labelled(NamedTuple):
    """Images in the order of their paths, with their labels, −1 where there is none.

    ``classes`` are in order, the positive one of two last; ``held_out`` says which are not to be trained on.
    """

    folder: Path
    files: tuple[Path, ...]
    labels: Int[np.ndarray, " n"]
    classes: tuple[str, ...]
    held_out: Bool[np.ndarray, " n"]

    def name(self, path: Path) -> str:
        """What an image is called in files: its path below the folder."""
        return path.relative_to(self.folder).as_posix()

    def without(self, files: Sequence[tuple[Path, str]]) -> "Labelled":
        """The same but for some files."""
        gone = {path for path, _ in files}
        keep = np.array([path not in gone for path in self.files], bool)
        kept = tuple(path for path in self.files if path not in gone)
        return self._replace(files=kept, labels=self.labels[keep], held_out=self.held_out[keep])


def read_labels(folder: Path, table: Path | None = None, positive: str | None = None) -> Labelled:
    """The images of a folder with their labels.

    ``positive`` names the class that is put last, the one that two classes' only logit speaks for; otherwise
    classes are in alphabetical order. Raises ``InputError`` for a table that cannot be read, names a file
    that is not in the folder or one twice, and for a positive class that there is not.
    """
    folder = Path(folder)
    files = find_images(folder)
    names = [_by_folder(folder, path) for path in files]
    held_out = np.zeros(len(files), bool)
    if table is not None:
        position = {path.relative_to(folder).as_posix(): i for i, path in enumerate(files)}
        names = [""] * len(files)
        for image, label, kept_out in _rows(Path(table)):
            if image not in position:
                raise InputError(f"{table}: names {image!r}, which is no image in {folder}")
            if position[image] < 0:
                raise InputError(f"{table}: names {image!r} twice: leave one line")
            names[position[image]], held_out[position[image]] = label, kept_out
            position[image] = -1
    classes = sorted({name for name in names if name})
    if positive is not None:
        if positive not in classes:
            listed = ", ".join(classes) or "none at all"
            raise InputError(
                f"--positive {positive}: {did_you_mean(positive, classes)}the labels are {listed}"
            )
        classes = [name for name in classes if name != positive] + [positive]
    labels = np.array([classes.index(name) if name else -1 for name in names], np.int64)
    return Labelled(folder, tuple(files), labels, tuple(classes), held_out)


def _by_folder(folder: Path, path: Path) -> str:
    parts = path.relative_to(folder).parts
    return "" if len(parts) == 1 or parts[0].lower() in NONE else parts[0]


def _rows(table: Path) -> list[tuple[str, str, bool]]:
    try:
        reader = csv.DictReader(StringIO(table.read_text(encoding="utf-8-sig")))
        rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "not CSV in UTF-8"
        raise InputError(f"{table}: cannot be read ({reason}): give a CSV file of image,label") from error
    if not {"image", "label"} <= set(reader.fieldnames or ()):
        raise InputError(f"{table}: has no columns image and label: name them in its first line")
    return [
        (
            plain((row["image"] or "").strip()),
            plain((row["label"] or "").strip()),
            (row.get("held_out") or "").strip().lower() in _YES,
        )
        for row in rows
    ]


def write_table(path: Path, rows: Sequence[dict[str, object]], columns: Sequence[str]) -> None:
    """Write rows as CSV that no spreadsheet takes for formulas; the file appears whole or not at all."""
    with replacing(path) as part:
        part.write_text(csv_text(columns, rows), encoding="utf-8")
