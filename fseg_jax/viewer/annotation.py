"""What somebody has placed on a slide: classes and seeds, what can be undone of them, and their file.

``NAME.seeds.geojson`` is what ``fseg seed`` reads and QuPath opens: a Point for each seed, in level-0 pixels,
in the order they were placed. The classes' names, those too that have no seed yet, are beside them under
``fseg``. It is replaced whole at every change, so that it is always the one before or the one after.
"""

import json
from pathlib import Path
from typing import NamedTuple

from fseg_jax.atomic import replacing
from fseg_jax.cohort.seeds import CLASSES, read_seed_file, read_seeds
from fseg_jax.errors import InputError
from fseg_jax.outputs.colours import palette

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
        """With class j called something else. Raises ``InputError`` for a name that is taken, or none."""
        return self._replace(classes=checked((*self.classes[:j], name, *self.classes[j + 1 :])))

    def with_class(self) -> "Annotation":
        """With one class more, without seeds. Raises ``InputError`` where there are nine."""
        if len(self.classes) == MOST_CLASSES:
            raise InputError(f"there are {MOST_CLASSES} classes, the most there can be")
        taken = {name.lower() for name in self.classes}
        name = next(n for i in range(len(taken) + 1, 99) if (n := f"class {i}") not in taken)
        return self._replace(classes=(*self.classes, name))

    def without_class(self, j: int) -> "Annotation":
        """Without class j and its seeds. Raises ``InputError`` where there are two."""
        if len(self.classes) == FEWEST_CLASSES:
            raise InputError("two classes are the fewest there can be; rename them as you like")
        seeds = tuple(s._replace(of=s.of - (s.of > j)) for s in self.seeds if s.of != j)
        return Annotation((*self.classes[:j], *self.classes[j + 1 :]), seeds)


def checked(classes: tuple[str, ...]) -> tuple[str, ...]:
    """The classes' names without space around them; ``InputError`` where they cannot be names of classes."""
    names = tuple(" ".join(name.split()) for name in classes)
    if not FEWEST_CLASSES <= len(names) <= MOST_CLASSES:
        raise InputError(f"{len(names)} classes: choose {FEWEST_CLASSES} to {MOST_CLASSES}")
    for name in names:
        if not 0 < len(name) <= _LONGEST_NAME or "," in name:
            raise InputError(f"{name!r} is no class's name: 1 to {_LONGEST_NAME} letters, and no comma")
        if sum(name.lower() == other.lower() for other in names) > 1:
            raise InputError(f"two classes are called {name!r}; they must differ")
    return names


class History:
    """An annotation and the steps to and fro: ``now``, ``do``, ``undo``, ``redo``."""

    def __init__(self, now: Annotation) -> None:
        self._steps, self._at = [now], 0

    @property
    def now(self) -> Annotation:
        return self._steps[self._at]

    @property
    def can_undo(self) -> bool:
        return self._at > 0

    @property
    def can_redo(self) -> bool:
        return self._at + 1 < len(self._steps)

    def do(self, new: Annotation) -> None:
        """Make ``new`` the present; what had been undone is gone."""
        self._steps = [*self._steps[: self._at + 1], new][-_STEPS:]
        self._at = len(self._steps) - 1

    def undo(self) -> None:
        self._at = max(self._at - 1, 0)

    def redo(self) -> None:
        self._at = min(self._at + 1, len(self._steps) - 1)


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
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def load(path: Path, otherwise: tuple[str, ...] | None = None) -> Annotation:
    """Read a file of seeds: one that ``save`` wrote, or any that ``fseg seed`` reads.

    The classes are those that the file states; where it states none, ``otherwise``, or ``negative`` and
    ``positive``. Raises ``InputError`` as ``read_seeds`` does; but no seeds at all are fine where classes are
    stated.
    """
    file = read_seed_file(path)
    names: tuple[str, ...] = file.classes or ()
    seeds: tuple[Seed, ...] = ()
    if file.names or not names:
        points, given, names = read_seeds(path, file.classes or otherwise)
        seeds = tuple(Seed(float(x), float(y), int(j)) for (x, y), j in zip(points, given, strict=True))
    try:
        return Annotation(checked(names), seeds)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
