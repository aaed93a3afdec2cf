"""Read a file of seeds: points on a slide, each of a class that somebody gave it.

Coordinates are level-0 pixels, x to the right and y down. The file is JSON:

    {"classes": ["normal", "tumour"],                            the negative class first; may be left out
     "seeds": [{"x": 812, "y": 1430.5, "class": "tumour"}, …]}

or GeoJSON as QuPath exports point annotations: a FeatureCollection, a list of features or a single feature,
each a Point or MultiPoint with its class in ``properties.classification.name`` (or ``properties.class``).
``fseg view`` keeps and exports seeds as such a FeatureCollection, with the classes' names beside it, as
``"fseg": {"classes": ["normal", "tumour"]}``. Classes are matched without regard to case. Where a file does
not say which classes there are, they are those of its seeds (``infer_classes``).
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fseg_jax.errors import InputError, first_line
from fseg_jax.slides.bounds import Origin, check_frame

CLASSES = ("negative", "positive")  # where neither a file nor its seeds say otherwise
BACKGROUNDS = ("negative", "background")  # names of classes that come first, whichever seed does
_MOST_CLASSES = 255
_MOST_BYTES = 64 << 20  # of a file of seeds: some 300,000 seeds


class SeedFile(NamedTuple):
    """What a file of seeds holds.

    Attributes:
        points: (x, y) of each seed in level-0 pixels.
        names: The name of each seed's class.
        classes: The classes that there are, the negative one first; None where the file does not say.
        sha256: Hash of the file.
    """

    points: Float[np.ndarray, "m 2"]
    names: list[str]
    classes: tuple[str, ...] | None
    sha256: str


class Seeds(NamedTuple):
    """Seeds of known classes.

    Attributes:
        points: (x, y) of each seed in level-0 pixels.
        labels: The number of each seed's class, from 0 on.
        classes: The classes' names, the negative one first.
        sha256: Hash of their file.
    """

    points: Float[np.ndarray, "m 2"]
    labels: Int[np.ndarray, " m"]
    classes: tuple[str, ...]
    sha256: str


def read_seeds(path: Path, classes: tuple[str, ...] | None = None, *, origin: Origin | None = None) -> Seeds:
    """Read seeds and number their classes: ``classes``, or what the file states, or those of its seeds.

    Args:
        path: The file.
        classes: The classes.
        origin: Where the slide's coordinates count from, which the file's must too.

    Raises:
        InputError: The file is not one of seeds or holds none, a seed is of another class, or the file says
            that its coordinates count from elsewhere.
    """
    file = read_seed_file(path, origin)
    if classes:
        try:
            classes = check_class_names(classes)
        except InputError as error:
            raise InputError(f"--classes: {error}") from None
    try:
        return Seeds(file.points, *number_seeds(file, classes), file.sha256)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read_seed_file(path: Path, origin: Origin | None = None) -> SeedFile:
    """Read seeds, or none, from JSON or GeoJSON.

    Args:
        path: The file.
        origin: Where the slide's coordinates count from, which the file's must too.

    Raises:
        InputError: The file cannot be read, is not one of seeds, or says that its coordinates count from
            elsewhere.
    """
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= _MOST_BYTES else b""
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # a name that no file can have
        raise InputError(f"{str(path)!r}: cannot be read ({first_line(error)})") from None
    if size > _MOST_BYTES:
        raise InputError(f"{path}: {size >> 20} MB, and a file of seeds has {_MOST_BYTES >> 20} at most")
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise InputError(f"{path}: not valid JSON: not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {first_line(error)}") from None
    try:
        if isinstance(content, dict) and "seeds" in content:
            seeds = [(_read_point([s["x"], s["y"]]), _read_name(s["class"])) for s in content["seeds"]]
            stated = content.get("classes")
        else:
            seeds = list(_read_geojson(content, path))
            stated = content["fseg"]["classes"] if isinstance(content, dict) and "fseg" in content else None
        if not isinstance(stated, list | None):
            raise TypeError("classes are no list")
        classes = tuple(_read_name(c) for c in stated) if stated else None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(
            f"{path}: not a file of seeds ({type(error).__name__}: {first_line(error)}); "
            "each needs x, y and class"
        ) from None
    if origin is not None:
        check_frame(path, content, origin)
    points = np.array([xy for xy, _ in seeds], np.float64).reshape(-1, 2)
    return SeedFile(points, [name for _, name in seeds], classes, hashlib.sha256(data).hexdigest())


def number_seeds(
    file: SeedFile, classes: tuple[str, ...] | None = None, *, default: tuple[str, ...] = CLASSES
) -> tuple[Int[np.ndarray, " m"], tuple[str, ...]]:
    """Assign each seed the number of its class, from 0 on; return the numbers and the classes' names.

    The classes are ``classes``, or what the file states, or ``infer_classes(…, default)``.

    Raises:
        InputError: There are no seeds, or a seed is of another class.
    """
    if not file.names:
        raise InputError("holds no seeds")
    names = check_class_names(classes or file.classes or infer_classes(file.names, default))
    numbers = {name.lower(): j for j, name in enumerate(names)}
    for (x, y), name in zip(file.points, file.names, strict=True):
        if name.lower() not in numbers:
            raise InputError(
                f"the seed at x = {x:g}, y = {y:g} is of class {name!r}; there are {', '.join(names)}: "
                "name others with --classes"
            )
    return np.array([numbers[name.lower()] for name in file.names], np.int64), names


def infer_classes(names: Sequence[str], default: tuple[str, ...] = CLASSES) -> tuple[str, ...]:
    """Infer the classes of seeds whose file does not state any, the background's first.

    They are ``default`` where that has all of them. Else they come in the order in which they first appear,
    but one called ``negative`` or ``background`` comes first. A single class is set against ``negative``, and
    a single background against ``positive``.

    >>> infer_classes(["tumour", "Stroma", "tumour", "background"])
    ('background', 'tumour', 'Stroma')
    >>> infer_classes(["tumour"])
    ('negative', 'tumour')
    """
    spelled: dict[str, str] = {}
    for name in names:
        spelled.setdefault(name.lower(), name)
    if spelled.keys() <= {name.lower() for name in default}:
        return default
    first = [spelled[name] for name in spelled if name in BACKGROUNDS]
    others = [spelled[name] for name in spelled if name not in BACKGROUNDS]
    if len(spelled) > 1:
        return (*first, *others)
    return (*first, CLASSES[1]) if first else (CLASSES[0], *others)


def check_class_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Check the classes' names; returns them with single blanks inside and none around.

    Raises:
        InputError: There are fewer than two or more than 255, two are the same but for case, or one cannot
            be written to a file or read as a name.
    """
    names = tuple(_squeeze_blanks(name) for name in classes)
    if not 2 <= len(names) <= _MOST_CLASSES:
        given = f"classes {', '.join(names)}" if len(names) < 2 else f"{len(names)} classes"
        raise InputError(f"{given}: at least two are needed, and {_MOST_CLASSES} at most")
    seen: set[str] = set()
    for name in names:
        # Control characters, and halves of characters that no file's text can have.
        if not name or any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
            raise InputError(f"{name!a} is no class's name: letters, digits, signs and blanks")
        if name.lower() in seen:
            raise InputError(f"two classes are called {name!r}; they must differ")
        seen.add(name.lower())
    return names


def _squeeze_blanks(name: str) -> str:
    return " ".join(name.split())


def _read_name(value: Any) -> str:
    """Read a class's name, which may be a number."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise TypeError(f"{value!r:.40} is no class's name")
    return _squeeze_blanks(str(value))


def _read_point(values: Any) -> tuple[float, float]:
    """Read the x and y of a point; what comes after them is height."""
    x, y = values[:2]
    for value in (x, y):
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise TypeError(f"{value!r:.40} is no coordinate")
    try:
        return float(x), float(y)
    except OverflowError:
        raise ValueError("a coordinate is too large") from None


def _read_geojson(content: Any, path: Path) -> Iterator[tuple[tuple[float, float], str]]:
    """Yield the points of GeoJSON, with their classes' names."""
    if isinstance(content, dict) and content["type"] != "FeatureCollection":
        content = [content]
    for feature in content if isinstance(content, list) else content["features"]:
        geometry, properties = feature["geometry"], feature.get("properties") or {}
        kind, coordinates = geometry["type"], geometry["coordinates"]
        if kind not in ("Point", "MultiPoint"):
            raise InputError(f"{path}: holds a {kind!s:.40}; seeds are points (Point or MultiPoint)")
        name = properties.get("classification") or properties.get("class")
        name = name.get("name") if isinstance(name, dict) else name
        for xy in [coordinates] if kind == "Point" else coordinates:
            x, y = _read_point(xy)
            if not name:
                raise InputError(f"{path}: the seed at x = {x:g}, y = {y:g} has no class")
            yield (x, y), _read_name(name)
