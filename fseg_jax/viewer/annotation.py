"""The classes and seeds placed on a slide, their undo history, and their file.

``NAME.seeds.geojson`` is a file that ``fseg seed`` reads and QuPath opens: a Point for each seed, in level-0
pixels, in the order of placement. All class names, with or without seeds, and what coordinates count from
(``slides/bounds.py``) are stored under ``fseg``. Every
change replaces the whole file atomically.
"""

import json
from pathlib import Path
from typing import NamedTuple

from fseg_jax.errors import InputError
from fseg_jax.files.atomic import replace_atomically
from fseg_jax.outputs.colours import make_palette
from fseg_jax.pipeline.seed_file import CLASSES, check_class_names, number_seeds, read_seed_file
from fseg_jax.pipeline.slide_facts import SlideFacts

FEWEST_CLASSES, MOST_CLASSES = 2, 9
_LONGEST_NAME = 40
_UNDO_STEPS = 500


class Seed(NamedTuple):
    """A point that marks a class.

    Attributes:
        x: Level-0 pixels, to the right.
        y: Level-0 pixels, downwards.
        class_index: Index of its class in ``Annotation.classes``.
    """

    x: float
    y: float
    class_index: int


class Annotation(NamedTuple):
    """The classes and seeds of a slide; every change returns a new annotation.

    Attributes:
        classes: Names, the negative class first.
        seeds: Seeds in the order of placement.
    """

    classes: tuple[str, ...] = CLASSES
    seeds: tuple[Seed, ...] = ()

    def count_seeds(self) -> list[int]:
        """Count the seeds of each class."""
        return [sum(seed.class_index == j for seed in self.seeds) for j in range(len(self.classes))]

    def find_class(self, j: int, before: "Annotation") -> int | None:
        """Find the present index of class j of an earlier annotation, by its name; None if it is gone."""
        name = before.classes[j]
        if name in self.classes:
            return self.classes.index(name)
        return j if len(self.classes) == len(before.classes) else None  # it was renamed

    def add_seeds(self, seeds: tuple[Seed, ...]) -> "Annotation":
        """Append seeds.

        Raises:
            InputError: There is no such class.
        """
        for j in {seed.class_index for seed in seeds}:
            self._check_class(j)
        return self._replace(seeds=self.seeds + seeds)

    def add_class(self) -> "Annotation":
        """Append a class without seeds, called "class N".

        Raises:
            InputError: There are ``MOST_CLASSES`` already.
        """
        if len(self.classes) == MOST_CLASSES:
            raise InputError(f"there are {MOST_CLASSES} classes, the most there can be")
        taken = {name.lower() for name in self.classes}
        name = next(n for i in range(len(taken) + 1, 99) if (n := f"class {i}") not in taken)
        return self._replace(classes=(*self.classes, name))

    def rename_class(self, j: int, name: str) -> "Annotation":
        """Rename class j.

        Raises:
            InputError: The name is empty, invalid or taken, or there is no such class.
        """
        self._check_class(j)
        return self._replace(classes=check_classes((*self.classes[:j], name, *self.classes[j + 1 :])))

    def remove_class(self, j: int) -> "Annotation":
        """Remove class j and its seeds.

        Raises:
            InputError: Only ``FEWEST_CLASSES`` are left, or there is no such class.
        """
        self._check_class(j)
        if len(self.classes) == FEWEST_CLASSES:
            raise InputError("two classes are the fewest there can be; rename them as you like")
        seeds = tuple(
            seed._replace(class_index=seed.class_index - (seed.class_index > j))
            for seed in self.seeds
            if seed.class_index != j
        )
        return Annotation((*self.classes[:j], *self.classes[j + 1 :]), seeds)

    def _check_class(self, j: int) -> None:
        if j not in range(len(self.classes)):
            raise InputError("that class was removed just now; choose another")


def check_classes(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Check the number and names of classes; return the names stripped of blanks.

    Raises:
        InputError: There are too few or too many, or a name is invalid or taken.
    """
    if not FEWEST_CLASSES <= len(classes) <= MOST_CLASSES:
        raise InputError(f"{len(classes)} classes: choose {FEWEST_CLASSES} to {MOST_CLASSES}")
    names = check_class_names(classes)
    for name in names:
        if len(name) > _LONGEST_NAME or "," in name:
            raise InputError(f"{name!r} is no class's name: 1 to {_LONGEST_NAME} letters, and no comma")
    return names


class History(NamedTuple):
    """The undo history of an annotation; every step returns a new history.

    A step that cannot be saved is dropped by discarding the history it returned.

    Attributes:
        present: The current annotation.
        past: Earlier annotations, the oldest first.
        future: Undone annotations, the next to redo first.
    """

    present: Annotation
    past: tuple[Annotation, ...] = ()
    future: tuple[Annotation, ...] = ()

    def do(self, annotation: Annotation) -> "History":
        """Make an annotation the present; drop the future."""
        return History(annotation, (*self.past, self.present)[-_UNDO_STEPS:])

    def undo(self) -> "History":
        """Go back one step; return the same history if there is none."""
        if not self.past:
            return self
        return History(self.past[-1], self.past[:-1], (self.present, *self.future))

    def redo(self) -> "History":
        """Take the step that was undone last; return the same history if there is none."""
        if not self.future:
            return self
        return History(self.future[0], (*self.past, self.present), self.future[1:])


def locate_annotation(folder: Path, name: str) -> Path:
    """Return the path of a slide's seeds file."""
    return folder / f"{name}.seeds.geojson"


def write_annotation(path: Path, annotation: Annotation, slide: SlideFacts) -> None:
    """Replace the seeds file, durably; it says what coordinates on the slide count from.

    Raises:
        OutputError: The file cannot be written.
    """
    colours = make_palette(len(annotation.classes)).tolist()
    classifications = [
        {"name": name, "color": colour} for name, colour in zip(annotation.classes, colours, strict=True)
    ]
    content = {
        "type": "FeatureCollection",
        "fseg": {"classes": list(annotation.classes), **slide.frame_to_json()},
        "features": [
            {
                "type": "Feature",
                "geometry": {"type": "Point", "coordinates": [round(seed.x, 2), round(seed.y, 2)]},
                "properties": {
                    "objectType": "annotation",
                    "classification": classifications[seed.class_index],
                },
            }
            for seed in annotation.seeds
        ],
    }
    replace_text(path, json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Replace a text file atomically.

    Raises:
        OutputError: The file cannot be written.
    """
    with replace_atomically(path) as part:
        part.write_text(text, encoding="utf-8")


def read_annotation(
    path: Path, default: tuple[str, ...] = CLASSES, *, slide: SlideFacts | None = None
) -> Annotation:
    """Read a seeds file: one that ``write_annotation`` wrote, or any that ``fseg seed`` reads.

    Args:
        path: The file.
        default: The classes to infer from (``infer_classes``) if the file states none.
        slide: The slide, whose coordinates must count from where the file's do.

    Raises:
        InputError: The file is damaged, has neither classes nor seeds, or says that its coordinates count
            from elsewhere.
    """
    file = read_seed_file(path, slide.origin if slide else None)
    try:
        if file.classes and not file.names:
            return Annotation(check_classes(file.classes))
        class_indices, names = number_seeds(file, default=default)
        seeds = (
            Seed(float(x), float(y), int(j)) for (x, y), j in zip(file.points, class_indices, strict=True)
        )
        return Annotation(check_classes(names), tuple(seeds))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
