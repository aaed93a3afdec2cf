"""From a row of the catalog to its network with weights, through the cache of converted files.

Published weights are converted once for each dtype and kept as
``$FSEG_CACHE/encoders/NAME/published-DTYPE.safetensors``. A checkpoint that the user gives is kept beside
them, under the first digits of its own hash; a text tower likewise, in a file of its own that begins with
``text-``. Converted files carry the hash of their bytes: a damaged one is made again.

The modules in their order: ``hub`` fetches the published file, ``checkpoint`` reads its tensors, ``convert``
makes ours of them by ``weight_rules``, and ``weights_file`` writes, reads and checks our file.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import jax.numpy as jnp
from jax.typing import DTypeLike

from fseg_jax.encoders.architectures import AnyConfig
from fseg_jax.encoders.catalog.row import Row, TextRow
from fseg_jax.encoders.weights import hub, weights_file
from fseg_jax.encoders.weights.checkpoint import hash_file
from fseg_jax.encoders.weights.convert import convert_file
from fseg_jax.encoders.weights.hub import Status
from fseg_jax.encoders.weights.weights_file import LoadedNetwork, LoadedTextTower
from fseg_jax.errors import InputError
from fseg_jax.files.downloads import find_cache_folder
from fseg_jax.files.kinds import describe_kind, is_written_here
from fseg_jax.files.paths import is_file
from fseg_jax.files.tensor_reader import BrokenFileError, read_header

_ABANDONED = 24 * 3600  # seconds after which the writer of a half-written file is taken for dead

_log = logging.getLogger(__name__)


Loaded = TypeVar("Loaded", LoadedNetwork, LoadedTextTower)


@dataclass(frozen=True)
class _Part(Generic[Loaded]):
    """What is taken out of a published file, and kept as a file of ours: the encoder, or its text tower."""

    name: str  # in the file
    config: AnyConfig
    parameters: int
    prefix: str  # of the file's name
    load: Callable[[Path, DTypeLike], Loaded]


class CachedFile(NamedTuple):
    """A converted file in the cache."""

    name: str  # of the encoder
    path: Path
    size: int  # bytes


def load_published(row: Row, dtype: DTypeLike) -> LoadedNetwork:
    """Load the published weights from the cache, or fetch and convert them into it first.

    Raises:
        InputError: the weights are neither here nor available, or there is no room for them.
    """
    return _load_published(row, _describe_encoder(row), dtype)


def load_given(row: Row, path: Path, dtype: DTypeLike) -> LoadedNetwork:
    """Load the weights of a file that the user gives: a published checkpoint, or a converted file.

    A checkpoint is converted into the cache when it is new to it.

    Raises:
        InputError: there is no such file, it is damaged, or it is another encoder's.
    """
    return _load_given(row, _describe_encoder(row), path, dtype)


def load_text_tower(row: Row, text: TextRow, path: Path | None, dtype: DTypeLike) -> LoadedTextTower:
    """Load the text tower of a row, published or from the user's file, as its encoder is loaded."""
    part = _Part(
        f"the text tower of {row.name}",
        text.config,
        text.parameters,
        "text-",
        lambda path, dtype: weights_file.load_text_tower(path, dtype=dtype),
    )
    return _load_published(row, part, dtype) if path is None else _load_given(row, part, path, dtype)


def _describe_encoder(row: Row) -> _Part[LoadedNetwork]:
    return _Part(
        row.name, row.config, row.parameters, "", lambda path, dtype: weights_file.load(path, dtype=dtype)
    )


def _load_published(row: Row, part: _Part[Loaded], dtype: DTypeLike) -> Loaded:
    path = _folder(row) / f"{part.prefix}published-{_name(dtype)}.safetensors"
    if (loaded := _load_cached(part, path, dtype)) is not None:
        return loaded
    _require_room(row, part, dtype)
    is_new = not any(_folder(row).glob("*published-*"))
    checkpoint = hub.fetch_checkpoint(row)
    if is_new:
        _log_licence(row)
    try:
        _convert(part, checkpoint, path, dtype)
    except InputError:
        if row.url:  # it came without a hash to check: another try fetches it again
            checkpoint.unlink(missing_ok=True)
        raise
    return part.load(path, dtype)


def _load_given(row: Row, part: _Part[Loaded], path: Path, dtype: DTypeLike) -> Loaded:
    if not _is_converted(path):
        return _load_checkpoint(row, part, path, dtype)
    loaded = part.load(path, dtype)
    name = loaded.metadata.get("name")
    if name != part.name:
        raise InputError(
            f"{path}: holds the weights of {name}, not of {part.name}: "
            "name that encoder, or give another file"
        )
    return loaded


def check_status(row: Row, *, timeout: float = 3.0) -> Status:
    """Check whether an encoder's weights are here, and if not, whether the hub has them; fetch nothing."""
    files = [file for file in list_cached() if file.path.parent == _folder(row) and _is_published(file.path)]
    if files:
        return Status("cached", ", ".join(f"{file.path} ({file.size / 1e6:,.0f} MB)" for file in files))
    if (path := hub.find_download(row)) is not None:
        return Status("cached", f"{path} (as published; converted when it is first used)")
    return hub.check_access(row, timeout=timeout)


def is_local(row: Row) -> bool:
    """Whether the published weights are on this machine, converted or as they were published."""
    return any(map(_is_published, _folder(row).glob("*.safetensors"))) or hub.find_download(row) is not None


def list_cached() -> list[CachedFile]:
    """List the converted weights in the cache."""
    paths = sorted((find_cache_folder() / "encoders").glob("*/[!.]*.safetensors"))
    return [CachedFile(path.parent.name, path, path.stat().st_size) for path in paths]


def _load_checkpoint(row: Row, part: _Part[Loaded], checkpoint: Path, dtype: DTypeLike) -> Loaded:
    if not is_file(checkpoint):
        raise InputError(
            f"{checkpoint}: no such file: give a published checkpoint of {row.name}, or a converted one"
        )
    if is_written_here(checkpoint):
        raise InputError(
            f"{checkpoint}: {describe_kind(checkpoint)}, not a checkpoint of {row.name}: give that"
        )
    try:
        prefix = hash_file(checkpoint)[:16]
    except OSError as error:
        raise InputError(f"{checkpoint}: cannot be read ({error.strerror}): give a file that can") from error
    path = _folder(row) / f"{part.prefix}{prefix}-{_name(dtype)}.safetensors"
    if (loaded := _load_cached(part, path, dtype)) is not None:
        return loaded
    _require_room(row, part, dtype)
    is_new = not any(_folder(row).glob(f"*{prefix}-*"))
    _convert(part, checkpoint, path, dtype)
    if is_new:
        _log_licence(row)
    return part.load(path, dtype)


def _load_cached(part: _Part[Loaded], path: Path, dtype: DTypeLike) -> Loaded | None:
    if not path.exists():
        return None
    try:
        return part.load(path, dtype)
    except InputError as error:
        # Damaged, or of a version before this one.
        reason = str(error).removeprefix(f"{path}: ").partition(": ")[0]
        _log.warning("%s: %s: it is made again", path, reason)
        return None


def _convert(part: _Part[Loaded], checkpoint: Path, path: Path, dtype: DTypeLike) -> None:
    for partial in path.parent.glob(".*.safetensors.*"):
        if partial.exists() and time.time() - partial.stat().st_mtime > _ABANDONED:
            partial.unlink(missing_ok=True)
    convert_file(checkpoint, path, part.config, name=part.name, dtype=dtype)


def _require_room(row: Row, part: _Part[Loaded], dtype: DTypeLike) -> None:
    """Raise ``InputError`` where the cache cannot take the weights: before they are fetched, not after."""
    folder, needed = _folder(row), part.parameters * jnp.dtype(dtype).itemsize
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}): set FSEG_CACHE to a folder that can"
        ) from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: cannot be written: set FSEG_CACHE to a folder that can")
    if free < needed:
        raise InputError(
            f"{folder}: {free / 1e9:.1f} GB are free and {part.name} takes {needed / 1e9:.1f} GB: "
            "free the disk, or set FSEG_CACHE to a folder with room"
        )


def _log_licence(row: Row) -> None:
    _log.warning("%s: licence %s, see %s. Cite %s", row.name, row.licence, row.page, row.citation)


def _folder(row: Row) -> Path:
    return find_cache_folder() / "encoders" / row.name.replace(":", "-")


def _name(dtype: DTypeLike) -> str:
    return str(jnp.dtype(dtype).name)


def _is_published(path: Path) -> bool:
    return path.name.startswith("published-")


def _is_converted(path: Path) -> bool:
    try:
        return read_header(path).metadata.get("format") == weights_file.FORMAT
    except (BrokenFileError, OSError):
        return False
