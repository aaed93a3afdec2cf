"""``dataset.yaml``: what a folder of images and masks of one's own says of itself.

::

    name: my slides                          # the folder's name, if it is not given
    categories:
      - {name: tumour, value: 1}             # a value of the mask; several as a list; or
      - {name: stroma, value: [2, 3]}        # colour: [220, 20, 60], of a mask of colours
    ignore: [0]                              # values, or colours
    case: '^(TCGA-..-....)'                  # the first group of what matches a file's name; or else the name
    test: '^TCGA-(OL|LL)'                    # names of the test split; or else a third of the cases
    mpp: 0.5                                 # µm per pixel, where it is known

Only ``categories`` is needed. ``case`` and ``test`` are regular expressions of RE2, whose time grows with the
name and no faster: they know no lookaround and no back references.
"""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import re2

from fseg_jax.errors import InputError

IGNORED = 255
UNKNOWN = 254
MOST_CATEGORIES = 254
_KEYS = ("name", "categories", "ignore", "case", "test", "mpp")
_MOST_BYTES = 256 << 10
_MOST_NODES = 100_000  # with all that an alias stands for
_DEEPEST = 16
_LONGEST_PATTERN = 1000  # characters
_LONGEST_NAME = 200
_LARGEST_VALUE = 65_535


class Description(NamedTuple):
    """A ``dataset.yaml`` that is right: ``meaning`` is a category's index or ``IGNORED``, by value, or by
    0xRRGGBB if they are ``colours``; ``case`` and ``test`` are compiled.
    """

    name: str | None
    categories: tuple[str, ...]
    meaning: dict[int, int]
    colours: bool
    case: Any
    test: Any
    mpp: float | None

    def case_of(self, name: str) -> str:
        """The case that a file's name belongs to."""
        found = self.case.search(_text(name)) if self.case else None
        group = found.group(1 if self.case.groups else 0) if found else None
        return name if group is None else group

    def is_test(self, name: str) -> bool:
        """Whether a file's name is of the test split."""
        return self.test is not None and self.test.search(_text(name)) is not None


def read_description(path: Path) -> Description:
    """Read and check a ``dataset.yaml``. InputError, in one line that names the key, where it is wrong."""
    given = _load(path)
    if not isinstance(given, dict) or "categories" not in given or not set(given) <= set(_KEYS):
        extra = [str(key)[:40] for key in given if key not in _KEYS] if isinstance(given, dict) else []
        raise InputError(
            f"{path}: needs categories, and may have name, ignore, case, test, mpp and no more"
            + (f": {', '.join(extra[:5])} is not among them" if extra else "")
        )
    try:
        names, meaning, colours = _categories(given["categories"], given.get("ignore"))
        name, mpp = given.get("name"), given.get("mpp")
        return Description(
            None if name is None else _name("name", name),
            names,
            meaning,
            colours,
            _pattern("case", given.get("case")),
            _pattern("test", given.get("test")),
            None if mpp is None else _mpp(mpp),
        )
    except _WrongKeyError as error:
        raise InputError(f"{path}: {error}") from None


class _WrongKeyError(Exception):
    """What is wrong with a key, in one line that begins with it."""


def _load(path: Path) -> Any:
    import yaml

    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise InputError(f"{path}: is larger than {_MOST_BYTES >> 10} kB: it is no dataset.yaml")
    try:
        loader = yaml.SafeLoader(content.decode("utf-8-sig"))
        node = loader.get_single_node()
        _check_node(node, [_MOST_NODES], _DEEPEST)
        return None if node is None else loader.construct_document(node)
    except _WrongKeyError as error:
        raise InputError(f"{path}: {error}") from None
    except RecursionError:
        raise InputError(f"{path}: not YAML (nested too deep): mend it") from None
    except Exception as error:  # the parser raises anything at all
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: not YAML ({reason}): mend it") from None


def _check_node(node: Any, left: list[int], depth: int) -> None:
    """Bound what a document comes to when all its aliases are written out, before anything is made of it."""
    left[0] -= 1
    if left[0] < 0 or depth < 0:
        raise _WrongKeyError("holds too much, or is nested too deep: write its aliases out")
    if isinstance(getattr(node, "value", None), list):
        pairs = [item for item in node.value if isinstance(item, tuple)]
        keys = [key.value for key, _ in pairs if isinstance(key.value, str)]
        if twice := [key for key, n in Counter(keys).items() if n > 1 and key != "<<"]:
            raise _WrongKeyError(f"{twice[0][:40]}: is given twice: keep one")
        for item in node.value:
            for part in item if isinstance(item, tuple) else (item,):
                _check_node(part, left, depth - 1)


def _categories(given: Any, ignored: Any) -> tuple[tuple[str, ...], dict[int, int], bool]:
    """The categories' names, what each code means, and whether codes are colours."""
    if not isinstance(given, list):
        raise _WrongKeyError(f"categories: {_shown(given)} is no list of names with values")
    if not isinstance(ignored, list | None):
        raise _WrongKeyError(f"ignore: {_shown(ignored)} is no list: write it in brackets")
    names: list[str] = []
    entries: list[tuple[str, Any, int]] = [("ignore", entry, IGNORED) for entry in ignored or ()]
    for n, category in enumerate(given):
        if not isinstance(category, dict) or set(category) not in ({"name", "value"}, {"name", "colour"}):
            raise _WrongKeyError(f"categories: {_shown(category)}: give a name, and a value or a colour")
        names.append(_name("categories", category["name"]))
        value = category.get("value", category.get("colour"))
        if "colour" in category and not isinstance(value, list):
            raise _WrongKeyError(f"categories: {names[-1]}: {_shown(value)} is no colour [red, green, blue]")
        several = value if "value" in category and isinstance(value, list) else [value]
        if not several:
            raise _WrongKeyError(f"categories: {names[-1]}: has no value")
        entries += [(f"categories: {names[-1]}", entry, n) for entry in several]
    if not 2 <= len(names) <= MOST_CATEGORIES or len(set(names)) < len(names):
        raise _WrongKeyError(
            f"categories: {', '.join(names[:20])}: two or more, of different names, are needed"
            f" ({MOST_CATEGORIES} at most)"
        )
    meaning: dict[int, int] = {}
    for where, entry, n in entries:
        code = _code(entry)
        if code is None:
            raise _WrongKeyError(
                f"{where}: {_shown(entry)} is neither a value of 0 to {_LARGEST_VALUE} nor a colour "
                "[red, green, blue]"
            )
        if meaning.setdefault(code, n) != n:
            raise _WrongKeyError(f"{where}: {_shown(entry)} is given two meanings: keep one of them")
    kinds = {isinstance(entry, list) for _, entry, _ in entries}
    if len(kinds) > 1:
        raise _WrongKeyError("categories: values and colours are mixed: a mask has one or the other")
    return tuple(names), meaning, kinds == {True}


def _code(entry: Any) -> int | None:
    if type(entry) is int and 0 <= entry <= _LARGEST_VALUE:
        return entry
    if isinstance(entry, list) and len(entry) == 3 and all(type(v) is int and 0 <= v < 256 for v in entry):
        return entry[0] << 16 | entry[1] << 8 | entry[2]
    return None


def _name(key: str, given: Any) -> str:
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise _WrongKeyError(f"{key}: {_shown(given)} is no name: put it in quotes")
    name = " ".join(str(given).split())
    if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        raise _WrongKeyError(f"{key}: {_shown(given)} is no name: give 1 to {_LONGEST_NAME} letters")
    return name


def _pattern(key: str, given: Any) -> Any:
    if given is None:
        return None
    if not isinstance(given, str):
        raise _WrongKeyError(f"{key}: {_shown(given)} is no regular expression: put it in quotes")
    if len(given) > _LONGEST_PATTERN:
        raise _WrongKeyError(f"{key}: is longer than {_LONGEST_PATTERN} characters")
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(_text(given), options)
    except re2.error as error:
        reason = error.args[0] if error.args else error
        reason = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise _WrongKeyError(f"{key}: {_shown(given)} is no regular expression of RE2 ({reason})") from None


def _mpp(given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given <= 1000:
        raise _WrongKeyError(f"mpp: {_shown(given)} is not a number of µm per pixel")
    return float(given)


def _shown(given: Any) -> str:
    return " ".join(repr(given)[:60].split())


def _text(name: str) -> str:
    """A name that may hold bytes of no encoding, as text."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
