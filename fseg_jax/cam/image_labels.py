"""Read which image shows what: labels from a folder's subfolders, or from a CSV file.

Without a CSV file, an image's label is the name of its subfolder (the first below the folder). Images in the
folder itself, or in a subfolder called ``unlabelled`` or ``unlabeled``, have no label.

The CSV file has the columns ``image`` (a path below the folder) and ``label``, text as ``outputs.csv_table``
writes it. Images that it does not list, or lists without a label, have none. A ``yes`` in the column
``held_out`` keeps an image from training.
"""

import csv
from collections.abc import Collection
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from fseg_jax.cam.image_folder import find_images
from fseg_jax.errors import InputError
from fseg_jax.files.kinds import suggest_names
from fseg_jax.outputs.csv_table import unguard_cell

UNLABELLED_FOLDERS = ("unlabelled", "unlabeled")
_YES = ("yes", "true", "1")


@dataclass(frozen=True, eq=False)
class LabelledFolder:
    """The images of a folder with their labels, in the order of their paths.

    Attributes:
        folder: The folder that holds all images.
        files: The images' paths.
        labels: Number of each image's class, −1 where it has none.
        classes: Names of the classes; of two, the positive one is last.
        held_out: Which images are not to be trained on.
    """

    folder: Path
    files: tuple[Path, ...]
    labels: Int[np.ndarray, " n"]
    classes: tuple[str, ...]
    held_out: Bool[np.ndarray, " n"]

    def name(self, path: Path) -> str:
        """Return an image's name in tables: its path below the folder."""
        return path.relative_to(self.folder).as_posix()

    def select(self, chosen: Bool[np.ndarray, " n"]) -> "LabelledFolder":
        """Return the chosen images alone."""
        files = tuple(path for path, keep in zip(self.files, chosen.tolist(), strict=True) if keep)
        return replace(self, files=files, labels=self.labels[chosen], held_out=self.held_out[chosen])

    def without(self, files: Collection[Path]) -> "LabelledFolder":
        """Return the images but for some files."""
        dropped = set(files)
        return self.select(np.array([path not in dropped for path in self.files], bool))

    def count(self, chosen: Bool[np.ndarray, " n"]) -> dict[str, int]:
        """Count the chosen images of each class."""
        return {name: int(((self.labels == c) & chosen).sum()) for c, name in enumerate(self.classes)}


def read_labels(folder: Path, table: Path | None = None, positive: str | None = None) -> LabelledFolder:
    """List the images of a folder with their labels.

    ``positive`` names the class that is put last, the one that a network's only logit speaks for where there
    are two. Otherwise classes are in alphabetical order.

    Raises:
        InputError: For a table that cannot be read, names a file that is not in the folder, or names one
            twice; for a positive class that does not exist.
    """
    folder = Path(folder)
    files = find_images(folder)
    if table is None:
        names = [_name_by_subfolder(folder, path) for path in files]
        held_out = np.zeros(len(files), bool)
    else:
        names, held_out = _names_by_table(folder, files, Path(table))
    classes = sorted({name for name in names if name})
    if positive is not None:
        if positive not in classes:
            listed = ", ".join(classes) or "none at all"
            raise InputError(
                f"--positive {positive}: {suggest_names(positive, classes)}the labels are {listed}"
            )
        classes = [name for name in classes if name != positive] + [positive]
    labels = np.array([classes.index(name) if name else -1 for name in names], np.int64)
    return LabelledFolder(folder, tuple(files), labels, tuple(classes), held_out)


def hold_out(images: LabelledFolder, count: int, seed: int) -> Bool[np.ndarray, " n"]:
    """Draw ``count`` labelled images to evaluate on, as evenly over the classes as possible.

    A class gives a quarter of its images at most. Where some images are held out already, none are drawn.
    """
    chosen = np.zeros(len(images.labels), bool)
    if images.held_out.any():
        return chosen
    rng = np.random.default_rng(seed)
    classes = [c for c in range(len(images.classes)) if (images.labels == c).any()]
    for remaining, c in zip(range(len(classes), 0, -1), classes, strict=True):
        of_class = np.flatnonzero(images.labels == c)
        share = min((count - int(chosen.sum())) // remaining, len(of_class) // 4)
        chosen[rng.permutation(of_class)[:share]] = True
    return chosen


def _name_by_subfolder(folder: Path, path: Path) -> str:
    parts = path.relative_to(folder).parts
    return "" if len(parts) == 1 or parts[0].lower() in UNLABELLED_FOLDERS else parts[0]


def _names_by_table(folder: Path, files: list[Path], table: Path) -> tuple[list[str], Bool[np.ndarray, " n"]]:
    """Look up each file's label, "" for none, and whether it is held out."""
    positions = {path.relative_to(folder).as_posix(): i for i, path in enumerate(files)}
    names, held_out, listed = [""] * len(files), np.zeros(len(files), bool), set()
    for image, label, is_held_out in _read_rows(table):
        if image not in positions:
            raise InputError(f"{table}: names {image!r}, which is no image in {folder}")
        if image in listed:
            raise InputError(f"{table}: names {image!r} twice: leave one line")
        names[positions[image]], held_out[positions[image]] = label, is_held_out
        listed.add(image)
    return names, held_out


def _read_rows(table: Path) -> list[tuple[str, str, bool]]:
    """Read a table's rows: image, label, and whether the image is held out."""
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
            unguard_cell((row["image"] or "").strip()),
            unguard_cell((row["label"] or "").strip()),
            (row.get("held_out") or "").strip().lower() in _YES,
        )
        for row in rows
    ]
