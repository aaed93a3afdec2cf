"""The state in which the page was left: viewpoint, chosen class, layers. ``NAME.view.json`` stores it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fseg_jax.viewer.annotation import replace_text

_FARTHEST = 1e9  # µm


def read_page_state(path: Path) -> dict[str, Any]:
    """Read the valid entries of a state file; none if it is missing or damaged."""
    try:
        return filter_page_state(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return {}


def write_page_state(path: Path, state: dict[str, Any]) -> None:
    """Replace the state file.

    Raises:
        OutputError: The file cannot be written.
    """
    replace_text(path, json.dumps(state, indent=1, ensure_ascii=False) + "\n")


def filter_page_state(state: Any) -> dict[str, Any]:
    """Select the known entries that have valid values."""
    if not isinstance(state, dict):
        return {}
    return {key: state[key] for key, is_valid in _VALIDATORS.items() if key in state and is_valid(state[key])}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _FARTHEST


def _is_integer(value: Any) -> bool:
    return type(value) is int


def _is_integer_list(value: Any) -> bool:
    return isinstance(value, list) and all(_is_integer(v) for v in value)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_opacity(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_viewpoint(value: Any) -> bool:
    """Check for a view's centre, µm, and scale, µm per screen pixel; None is the whole slide."""
    if value is None:
        return True
    return (
        isinstance(value, dict)
        and value.keys() == {"x", "y", "scale"}
        and all(_is_number(v) for v in value.values())
        and value["scale"] > 0
    )


_VALIDATORS: dict[str, Callable[[Any], bool]] = {
    "view": _is_viewpoint,
    "mode": _is_integer,
    "class": _is_integer,
    "coloured": _is_integer,
    "unseen": _is_integer_list,
    "hidden": _is_integer_list,
    "result_on": _is_bool,
    "layer_on": _is_bool,
    "result_alpha": _is_opacity,
    "layer_alpha": _is_opacity,
    "map_alpha": _is_opacity,
    "map_as": _is_text,
}
