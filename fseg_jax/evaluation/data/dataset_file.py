"""``dataset.yaml``: the description of a folder of one's own images and masks.

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
from fseg_jax.evaluation.data.mask_codes import IGNORED, MOST_CATEGORIES, MaskCodes

Yaml = Any  # what a YAML file may hold
Pattern = Any  # a compiled expression of RE2, which comes without types
_KEYS = ("name", "categories", "ignore", "case", "test", "mpp")
_MOST_BYTES = 256 << 10
_MOST_NODES = 100_000  # with all that an alias stands for
_DEEPEST = 16
_LONGEST_PATTERN = 1000  # characters
_LONGEST_NAME = 200
_LARGEST_VALUE = 65_535


class DatasetDescription(NamedTuple):
    """A ``dataset.yaml`` that is right."""

    name: str | None
    categories: tuple[str, ...]
    codes: MaskCodes  # what the pixels of a mask mean
    case: Pattern | None  # finds the case in a file's name
    test: Pattern | None  # finds something in the names of the test split
    mpp: float | None  # µm per pixel

    def find_case(self, name: str) -> str:
        """Find the case that a file's name belongs to: the name itself where ``case`` finds nothing."""
        match = None if self.case is None else self.case.search(_valid_text(name))
        if self.case is None or match is None:
            return name
        case = match.group(1 if self.case.groups else 0)
        return name if case is None else str(case)

    def is_test(self, name: str) -> bool:
        """Tell whether a file's name is of the test split."""
        return self.test is not None and self.test.search(_valid_text(name)) is not None


def read_description(path: Path) -> DatasetDescription:
    """Read and check a ``dataset.yaml``.

    Raises:
        InputError: The file is wrong; the message is one line that names the key.
    """
    content = _load(path)
    if not isinstance(content, dict) or "categories" not in content or not set(content) <= set(_KEYS):
        extra = [str(key)[:40] for key in content if key not in _KEYS] if isinstance(content, dict) else []
        raise InputError(
            f"{path}: needs categories, and may have name, ignore, case, test, mpp and no more"
            + (f": {', '.join(extra[:5])} is not among them" if extra else "")
        )
    try:
        names, codes = _read_categories(content["categories"], content.get("ignore"))
        name, mpp = content.get("name"), content.get("mpp")
        return DatasetDescription(
            name=None if name is None else _read_name("name", name),
            categories=names,
            codes=codes,
            case=_compile_pattern("case", content.get("case")),
            test=_compile_pattern("test", content.get("test")),
            mpp=None if mpp is None else _read_mpp(mpp),
        )
    except _WrongKeyError as error:
        raise InputError(f"{path}: {error}") from None


class _WrongKeyError(Exception):
    """A key is wrong; the message is one line that begins with the key."""


def _load(path: Path) -> Yaml:
    """Load the file's YAML; ``InputError`` where it is none."""
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


def _check_node(node: Any, budget: list[int], depth: int) -> None:
    """Bound the size of a document with all its aliases written out, before anything is built from it.

    ``budget`` holds how many nodes may still come, ``depth`` how many levels.
    """
    budget[0] -= 1
    if budget[0] < 0 or depth < 0:
        raise _WrongKeyError("holds too much, or is nested too deep: write its aliases out")
    if isinstance(getattr(node, "value", None), list):
        pairs = [item for item in node.value if isinstance(item, tuple)]
        keys = [key.value for key, _ in pairs if isinstance(key.value, str)]
        if repeated := [key for key, n in Counter(keys).items() if n > 1 and key != "<<"]:
            raise _WrongKeyError(f"{repeated[0][:40]}: is given twice: keep one")
        for item in node.value:
            for part in item if isinstance(item, tuple) else (item,):
                _check_node(part, budget, depth - 1)


class _Entry(NamedTuple):
    """A value or colour of the file, where it stands, and the category that it means."""

    key: str
    code: Yaml
    category: int


def _read_categories(given: Yaml, ignored: Yaml) -> tuple[tuple[str, ...], MaskCodes]:
    """Read the categories' names, and what each code of a mask means."""
    if not isinstance(given, list):
        raise _WrongKeyError(f"categories: {_shorten(given)} is no list of names with values")
    if not isinstance(ignored, list | None):
        raise _WrongKeyError(f"ignore: {_shorten(ignored)} is no list: write it in brackets")
    names: list[str] = []
    entries = [_Entry("ignore", code, IGNORED) for code in ignored or ()]
    for index, category in enumerate(given):
        name, codes = _read_category(category)
        names.append(name)
        entries += [_Entry(f"categories: {name}", code, index) for code in codes]
    if not 2 <= len(names) <= MOST_CATEGORIES or len(set(names)) < len(names):
        raise _WrongKeyError(
            f"categories: {', '.join(names[:20])}: two or more, of different names, are needed"
            f" ({MOST_CATEGORIES} at most)"
        )
    meaning = _map_codes(entries)
    are_colours = {isinstance(entry.code, list) for entry in entries}
    if len(are_colours) > 1:
        raise _WrongKeyError("categories: values and colours are mixed: a mask has one or the other")
    return tuple(names), MaskCodes(meaning, colours=are_colours == {True})


def _read_category(category: Yaml) -> tuple[str, list[Yaml]]:
    """Read one category: its name, and its values or its colour, which are yet to be checked."""
    if not isinstance(category, dict) or set(category) not in ({"name", "value"}, {"name", "colour"}):
        raise _WrongKeyError(f"categories: {_shorten(category)}: give a name, and a value or a colour")
    name = _read_name("categories", category["name"])
    if "colour" in category:
        colour = category["colour"]
        if not isinstance(colour, list):
            raise _WrongKeyError(f"categories: {name}: {_shorten(colour)} is no colour [red, green, blue]")
        return name, [colour]
    value = category["value"]
    values = value if isinstance(value, list) else [value]
    if not values:
        raise _WrongKeyError(f"categories: {name}: has no value")
    return name, values


def _map_codes(entries: list[_Entry]) -> dict[int, int]:
    """Map each code to its category; ``_WrongKeyError`` for what is no code, or has two meanings."""
    meaning: dict[int, int] = {}
    for entry in entries:
        code = _read_code(entry.code)
        if code is None:
            raise _WrongKeyError(
                f"{entry.key}: {_shorten(entry.code)} is neither a value of 0 to {_LARGEST_VALUE} "
                "nor a colour [red, green, blue]"
            )
        if meaning.setdefault(code, entry.category) != entry.category:
            raise _WrongKeyError(
                f"{entry.key}: {_shorten(entry.code)} is given two meanings: keep one of them"
            )
    return meaning


def _read_code(code: Yaml) -> int | None:
    """Read a value, or a colour as 0xRRGGBB; None for anything else."""
    if type(code) is int and 0 <= code <= _LARGEST_VALUE:
        return code
    if isinstance(code, list) and len(code) == 3 and all(type(v) is int and 0 <= v < 256 for v in code):
        red, green, blue = code
        return int(red << 16 | green << 8 | blue)
    return None


def _read_name(key: str, given: Yaml) -> str:
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise _WrongKeyError(f"{key}: {_shorten(given)} is no name: put it in quotes")
    name = " ".join(str(given).split())
    if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        raise _WrongKeyError(f"{key}: {_shorten(given)} is no name: give 1 to {_LONGEST_NAME} letters")
    return name


def _compile_pattern(key: str, given: Yaml) -> Pattern | None:
    if given is None:
        return None
    if not isinstance(given, str):
        raise _WrongKeyError(f"{key}: {_shorten(given)} is no regular expression: put it in quotes")
    if len(given) > _LONGEST_PATTERN:
        raise _WrongKeyError(f"{key}: is longer than {_LONGEST_PATTERN} characters")
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(_valid_text(given), options)
    except re2.error as error:
        reason = error.args[0] if error.args else error
        reason = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise _WrongKeyError(f"{key}: {_shorten(given)} is no regular expression of RE2 ({reason})") from None


def _read_mpp(given: Yaml) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given <= 1000:
        raise _WrongKeyError(f"mpp: {_shorten(given)} is not a number of µm per pixel")
    return float(given)


def _shorten(given: Yaml) -> str:
    return " ".join(repr(given)[:60].split())


def _valid_text(name: str) -> str:
    """Replace the bytes of a file's name that are no text."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
