"""What somebody has placed on a slide: classes and seeds, what can be undone of them, and their file.

``NAME.seeds.geojson`` is what ``fseg seed`` reads and QuPath opens: a Point for each seed, in level-0 pixels,
in the order they were placed. The classes' names, those too that have no seed yet, are beside them under
``fseg``. It is replaced whole at every change, so that it is always the one before or the one after.
"""

import json
from pathlib import Path
from typing import NamedTuple

from fseg_jax.errors import InputError
from fseg_jax.files.atomic import replace_atomically
from fseg_jax.outputs.colours import palette
from fseg_jax.pipeline.seed_file import CLASSES, check_class_names, number_seeds, read_seed_file

FEWEST_CLASSES, MOST_CLASSES = 2, 9
_LONGEST_NAME = 40
_STEPS = 500  # that can be undone


class Seed(NamedTuple):
    """A point in level-0 pixels, x to the right and y down, and the index of its class."""

    x: float
    y: float
    of: int


class Annotation(NamedTuple):
    """Classes by name, the negative one first, and seeds of them in the order they were placed."""

    classes: tuple[str, ...] = CLASSES
    seeds: tuple[Seed, ...] = ()

    def counts(self) -> list[int]:
        """How many seeds each class has."""
        return [sum(seed.of == j for seed in self.seeds) for j in range(len(self.classes))]

    def renamed(self, j: int, name: str) -> "Annotation":
        """With class j called something else. Raises ``InputError`` for a name that is taken, or none, and
        where there is no such class.
        """
        self._check(j)
        return self._replace(classes=checked((*self.classes[:j], name, *self.classes[j + 1 :])))

    def with_seeds(self, seeds: tuple[Seed, ...]) -> "Annotation":
        """With more seeds. Raises ``InputError`` for one of a class that there is not."""
        for of in {seed.of for seed in seeds}:
            self._check(of)
        return self._replace(seeds=self.seeds + seeds)

    def place_of(self, j: int, before: "Annotation") -> int | None:
        """The number that class j of ``before`` has now, by its name; None where it is gone."""
        name = before.classes[j]
        if name in self.classes:
            return self.classes.index(name)
        return j if len(self.classes) == len(before.classes) else None  # it was renamed

    def _check(self, j: int) -> None:
        if j not in range(len(self.classes)):
            raise InputError("that class was removed just now; choose another")

    def with_class(self) -> "Annotation":
        """With one class more, without seeds. Raises ``InputError`` where there are nine."""
        if len(self.classes) == MOST_CLASSES:
            raise InputError(f"there are {MOST_CLASSES} classes, the most there can be")
        taken = {name.lower() for name in self.classes}
        name = next(n for i in range(len(taken) + 1, 99) if (n := f"class {i}") not in taken)
        return self._replace(classes=(*self.classes, name))

    def without_class(self, j: int) -> "Annotation":
        """Without class j and its seeds. Raises ``InputError`` where there are two, or no such class."""
        self._check(j)
        if len(self.classes) == FEWEST_CLASSES:
            raise InputError("two classes are the fewest there can be; rename them as you like")
        seeds = tuple(s._replace(of=s.of - (s.of > j)) for s in self.seeds if s.of != j)
        return Annotation((*self.classes[:j], *self.classes[j + 1 :]), seeds)


def checked(classes: tuple[str, ...]) -> tuple[str, ...]:
    """The classes' names without space around them; ``InputError`` where they cannot be names of classes."""
    if not FEWEST_CLASSES <= len(classes) <= MOST_CLASSES:
        raise InputError(f"{len(classes)} classes: choose {FEWEST_CLASSES} to {MOST_CLASSES}")
    names = check_class_names(classes)
    for name in names:
        if len(name) > _LONGEST_NAME or "," in name:
            raise InputError(f"{name!r} is no class's name: 1 to {_LONGEST_NAME} letters, and no comma")
    return names


class History(NamedTuple):
    """An annotation, ``now``, those before it, and those that were undone, the next one first.

    Every step gives another history, so that one which cannot be kept is left by forgetting what it gave.
    """

    now: Annotation
    past: tuple[Annotation, ...] = ()
    undone: tuple[Annotation, ...] = ()

    def do(self, new: Annotation) -> "History":
        """With ``new`` as the present; what had been undone is gone."""
        return History(new, (*self.past, self.now)[-_STEPS:])

    def undo(self) -> "History":
        """With the annotation before as the present; as it is where there is none."""
        if not self.past:
            return self
        return History(self.past[-1], self.past[:-1], (self.now, *self.undone))

    def redo(self) -> "History":
        """With what was undone last as the present; as it is where nothing was."""
        if not self.undone:
            return self
        return History(self.undone[0], (*self.past, self.now), self.undone[1:])


def annotation_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.seeds.geojson"


def save(path: Path, annotation: Annotation) -> None:
    """Replace the file by what is given, and have it on the disk before returning."""
    colours = palette(len(annotation.classes)).tolist()
    classified = [
        {"name": name, "color": colour} for name, colour in zip(annotation.classes, colours, strict=True)
    ]
    content = {
        "type": "FeatureCollection",
        "fseg": {"classes": list(annotation.classes)},
        "features": [
            {
                "type": "Feature",
                "geometry": {"type": "Point", "coordinates": [round(s.x, 2), round(s.y, 2)]},
                "properties": {"objectType": "annotation", "classification": classified[s.of]},
            }
            for s in annotation.seeds
        ],
    }
    write_whole(path, json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that whoever reads it, and whenever we are killed, it is the old one or the new one."""
    with replace_atomically(path) as part:
        part.write_text(text, encoding="utf-8")


def load(path: Path, otherwise: tuple[str, ...] = CLASSES) -> Annotation:
    """Read a file of seeds: one that ``save`` wrote, or any that ``fseg seed`` reads.

    The classes are those that the file states; where it states none, ``infer_classes(…, otherwise)``. Raises
    ``InputError`` as ``read_seeds`` does; but no seeds at all are fine where classes are stated.
    """
    file = read_seed_file(path)
    try:
        if file.classes and not file.names:
            return Annotation(checked(file.classes))
        given, names = number_seeds(file, default=otherwise)
        seeds = (Seed(float(x), float(y), int(j)) for (x, y), j in zip(file.points, given, strict=True))
        return Annotation(checked(names), tuple(seeds))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
