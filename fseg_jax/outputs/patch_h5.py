"""Features of patches in HDF5, as TRIDENT and CLAM write them and MIL programs read them.

``features`` (n, d) and ``coords`` (n, 2), (x, y) of the patches' corners in level-0 pixels. What a patch is
stands in attributes of ``coords``: TRIDENT's ``patch_size_level0``, ``level0_magnification``, …, of which any
may be the text "None", or CLAM's ``patch_size``, ``patch_level``, ``custom_downsample`` and ``downsample``.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fseg_jax.errors import InputError, OutputError, first_line

_MAX_SIDE = 1 << 21  # pixels of a slide's side
_MAX_PATCH = 1 << 16  # level-0 pixels of a patch's side
_SMALL_BYTES = 64 << 20
_MAX_COMPRESSION = 4096  # how many times larger than its file an array may be
_ROWS = 4096  # read at once
_MOST_TWICE = 0.1  # of patches that lie where another does; a few do where outlines of tissue overlap


class PatchFile(NamedTuple):
    """What an HDF5 file of patch features states, but the features.

    Attributes:
        path: The file.
        name: The slide's name.
        encoder: Name of what made the features; "" where the file does not say.
        corners: int64 (n, 2), (x, y) of the patches' corners in level-0 pixels.
        channels: Channels of a feature.
        side: Side of a patch in level-0 pixels.
        magnification: Of level 0; None where the file does not say.
        size: The slide's (height, width) in level-0 pixels; None where the file does not say.
    """

    path: Path
    name: str
    encoder: str
    corners: np.ndarray
    channels: int
    side: int
    magnification: float | None
    size: tuple[int, int] | None


def import_h5py() -> Any:
    """Import the package h5py.

    Raises:
        InputError: It is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise InputError("HDF5 needs the package h5py: pip install 'fseg-jax[h5]'") from None
    return h5py


def list_patch_files(folder: Path) -> list[Path]:
    """List the HDF5 files of a folder, or the one file that is named.

    Raises:
        InputError: There are none, or no such folder.
    """
    if folder.is_file():
        return [folder]
    found = sorted(p for p in folder.glob("[!.]*.h5")) if folder.is_dir() else []
    if not found:
        raise InputError(f"{folder}: holds no .h5 files; give the folder of features of TRIDENT or CLAM")
    return found


def read_patch_file(path: Path) -> PatchFile:
    """Read what a file of patch features states, but the features.

    Raises:
        InputError: It is none, its parts contradict each other, or it lacks what says how large a patch is.
    """
    with _open(path) as file:
        for key in ("features", "coords"):
            if key not in file or not hasattr(file[key], "shape"):
                groups = [name for name in file if not hasattr(file[name], "shape")]
                several = f" at its top, but the groups {', '.join(groups[:3])}" if groups else ""
                raise InputError(
                    f"{path}: holds no dataset {key!r}{several}; give a file a slide, as TRIDENT and CLAM do"
                )
        features, coords = file["features"], file["coords"]
        _check_size(path, features, coords)
        shape = features.shape[1:] if len(features.shape) == 3 and features.shape[0] == 1 else features.shape
        if len(shape) != 2 or coords.ndim != 2 or coords.shape[1] != 2 or 0 in shape:
            raise InputError(
                f"{path}: features are {_format(features.shape)} and coords {_format(coords.shape)}; "
                "(n, d) and (n, 2) are needed"
            )
        if shape[0] != len(coords):
            raise InputError(
                f"{path}: {shape[0]} features and {len(coords)} coordinates; compute the features again"
            )
        if features.dtype.kind not in "f" or coords.dtype.kind not in "iuf":
            raise InputError(f"{path}: its features or coordinates are no numbers ({features.dtype})")
        corners = coords[:]
        facts = {**_read_attributes(features), **_read_attributes(coords), **_read_attributes(file)}
        names = {
            str(found["name"])
            for found in (_read_attributes(features), _read_attributes(coords))
            if found.get("name") is not None
        }
    if not np.isfinite(corners).all() or (corners < 0).any() or (corners > _MAX_SIDE).any():
        raise InputError(f"{path}: its coordinates are no corners in level-0 pixels (NaN, negative or huge)")
    if len(names) > 1:
        raise InputError(
            f"{path}: features of {sorted(names)[0]!r} and coordinates of {sorted(names)[1]!r}: two slides"
        )
    corners = np.rint(corners).astype(np.int64)
    twice = len(corners) - len(np.unique(corners, axis=0))
    if twice > _MOST_TWICE * len(corners):
        raise InputError(
            f"{path}: {twice} of {len(corners)} patches lie where another does: of two slides; "
            "give a file a slide"
        )
    side = _find_side(path, facts, corners)
    height, width = (_get_number(facts, f"level0_{key}") for key in ("height", "width"))
    size = None if height is None or width is None else (int(height), int(width))
    if size is not None and (corners >= size[::-1]).any():
        raise InputError(
            f"{path}: a patch lies outside the slide of {size[1]} × {size[0]} pixels that it states: its "
            "coordinates are another slide's"
        )
    encoder = next((str(facts[key]) for key in ("encoder", "patch_encoder", "model") if facts.get(key)), "")
    folder = path.parent.name
    if not encoder and folder.startswith("features_"):
        encoder = folder.removeprefix("features_")
    return PatchFile(
        path,
        path.stem,
        encoder,
        corners,
        int(shape[1]),
        side,
        _get_number(facts, "level0_magnification"),
        size,
    )


def read_patch_features(patches: PatchFile) -> Iterator[np.ndarray]:
    """Yield the features of a file in order, float32 (m, d), some thousand at a time.

    Raises:
        InputError: One is no number, or the file is damaged.
    """
    with _open(patches.path) as file:
        features = file["features"]
        n = len(patches.corners)
        for first in range(0, n, _ROWS):
            at = slice(first, min(first + _ROWS, n))
            try:
                part = np.asarray(features[0, at] if len(features.shape) == 3 else features[at], np.float32)
            except OSError as error:
                raise InputError(f"{patches.path}: damaged ({first_line(error)})") from None
            finite = np.isfinite(part).all(axis=1)
            if not finite.all():
                row = first + int(np.argmin(finite))
                raise InputError(
                    f"{patches.path}: the feature in row {row} holds a NaN or an infinity; compute it again"
                )
            yield part


def write_patch_file(
    path: Path,
    parts: Iterable[np.ndarray],
    corners: np.ndarray,
    channels: int,
    attributes: Mapping[str, Any],
) -> None:
    """Write features of patches as TRIDENT does.

    Args:
        path: The file.
        parts: The features in order, float32 (m, d) each.
        corners: (n, 2), (x, y) of the patches' corners in level-0 pixels.
        channels: Channels of a feature.
        attributes: Attributes of ``coords``; what is None becomes the text "None", as TRIDENT has it.

    Raises:
        InputError: The package h5py is not installed.
        OutputError: The file cannot be written.
    """
    h5py = import_h5py()
    n = len(corners)
    try:
        with h5py.File(path, "w", locking=False) as file:
            features = file.create_dataset(
                "features", (n, channels), "f4", chunks=(max(1, min(n, _ROWS)), channels)
            )
            first = 0
            for part in parts:
                features[first : first + len(part)] = part
                first += len(part)
            coords = file.create_dataset("coords", data=np.rint(corners).astype(np.int64))
            coords.attrs.update({key: "None" if v is None else v for key, v in attributes.items()})
            features.attrs["name"] = attributes["name"]
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or first_line(error)})") from None


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    h5py = import_h5py()
    try:
        file = h5py.File(path, "r", locking=False)
    except (OSError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else None
        reason = os.strerror(number) if number else "it is no HDF5, or damaged"
        raise InputError(f"{path}: cannot be read ({reason})") from None
    with file:
        try:
            yield file
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: damaged ({first_line(error)})") from None


def _check_size(path: Path, *datasets: Any) -> None:
    """Refuse datasets that are stated far larger than the file can hold."""
    limit = _SMALL_BYTES + _MAX_COMPRESSION * path.stat().st_size
    for dataset in datasets:
        chunk = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
        if math.prod(dataset.shape) * dataset.dtype.itemsize > limit or chunk > limit:
            raise InputError(f"{path}: {dataset.name} states {_format(dataset.shape)}, and the file is small")


def _format(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "one value"


def _read_attributes(holder: Any) -> dict[str, Any]:
    """Read attributes; the text "None", and what is no value, are None."""
    facts = {}
    for key in list(holder.attrs)[:1000]:
        value = holder.attrs[key]
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        is_none = isinstance(value, str) and value.strip().lower() in ("none", "nan", "")
        facts[str(key)] = None if is_none else value
    return facts


def _get_number(facts: Mapping[str, Any], key: str) -> float | None:
    """Get a positive number, or the first of several; None where it is missing or none."""
    try:
        number = float(np.ravel(facts[key])[0])
    except (KeyError, TypeError, ValueError, IndexError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _find_side(path: Path, facts: Mapping[str, Any], corners: np.ndarray) -> int:
    """Find the side of a patch in level-0 pixels."""
    side = _get_number(facts, "patch_size_level0")
    size = _get_number(facts, "patch_size")
    if side is None and size is not None:
        from_, to = (_get_number(facts, f"{key}_magnification") for key in ("level0", "target"))
        level, factor = facts.get("patch_level"), _get_number(facts, "custom_downsample") or 1.0
        downsample = _get_number(facts, "downsample")
        if from_ is not None and to is not None:
            side = size * from_ / to
        elif downsample is not None or (level is not None and int(np.ravel(level)[0]) == 0):
            side = size * factor * (downsample or 1.0)
    if side is None:
        raise InputError(
            f"{path}: does not say how large a patch is on level 0: neither patch_size_level0 (TRIDENT) nor "
            "patch_size with patch_level 0 or downsample (CLAM) is among its attributes; CLAM's has them in "
            "patches/: copy them"
        )
    if not 1 <= round(side) <= _MAX_PATCH:
        raise InputError(f"{path}: a patch of {side:g} level-0 pixels cannot be")
    return round(side)
