"""Our file of a network's weights: safetensors by dotted path, which describe and check themselves.

The metadata are ``format`` and ``version``, the encoder's ``name``, its ``architecture`` (the configuration
as JSON), ``source_sha256`` of the published file, and ``sha256`` of the tensors' bytes in the order of the
file. Files are written and read one tensor at a time, so neither takes more memory than the weights.
"""

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from fseg_jax.encoders.architectures import (
    AnyConfig,
    Config,
    build_abstract,
    config_from_json,
    config_to_json,
    count_blocks,
    fill_network,
    list_tensors,
)
from fseg_jax.encoders.layers import Network
from fseg_jax.encoders.text.network import TextTower
from fseg_jax.errors import InputError
from fseg_jax.files.atomic import replace_atomically
from fseg_jax.files.kinds import ENCODER, describe_kind
from fseg_jax.files.tensor_reader import BrokenFileError, TensorHeader, read_header

FORMAT, VERSION = ENCODER, "1"

# The dtypes of a file, as safetensors call them.
_DTYPE_NAMES = {np.dtype(np.float32): "F32", np.dtype(ml_dtypes.bfloat16): "BF16"}
_DTYPES = {name: dtype for dtype, name in _DTYPE_NAMES.items()}


class LoadedNetwork(NamedTuple):
    """A network with its weights, as a file has it."""

    network: Network
    metadata: dict[str, str]  # of the file


class LoadedTextTower(NamedTuple):
    """A text tower with its weights, as a file has it."""

    tower: TextTower
    metadata: dict[str, str]  # of the file


def write(
    path: Path,
    config: AnyConfig,
    targets: Mapping[str, jax.ShapeDtypeStruct],
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    name: str,
    source_sha256: str,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write an encoder's tensors; the file appears whole or not at all.

    Args:
        path: the file.
        config: the network's configuration.
        targets: shape and dtype of each tensor by name, in the order of the file.
        tensors: the tensors with their names, one at a time, in the order of ``targets``.
        name: the encoder's name.
        source_sha256: the hash of the published file.
        facts: further metadata.

    Raises:
        InputError: the file cannot be written.
    """
    path = Path(path)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "architecture": config_to_json(config),
        "source_sha256": source_sha256,
        "sha256": "0" * 64,
        **(facts or {}),
    }
    entries = _entries(targets)
    digest = hashlib.sha256()
    with replace_atomically(path) as part:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(_header(metadata, entries))
            for _, tensor in tensors:
                data = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
                digest.update(data)
                file.write(data)
            # The digest takes the place of as many zeros, so nothing moves.
            file.seek(0)
            file.write(_header({**metadata, "sha256": digest.hexdigest()}, entries))


def write_network(
    path: Path,
    network: Network,
    config: Config,
    *,
    name: str,
    dtype: DTypeLike = jnp.float32,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write a network that was trained here, kernels in ``dtype``; the file appears whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    state = nnx.to_flat_state(nnx.state(network))
    tensors = {".".join(map(str, path)): np.asarray(variable.get_value()) for path, variable in state}
    targets = list_tensors(build_abstract(config, dtype=dtype))
    ordered = ((name, tensors[name].astype(target.dtype)) for name, target in targets.items())
    write(path, config, targets, ordered, name=name, source_sha256="", facts=facts)


def load(path: Path, *, dtype: DTypeLike = jnp.float32) -> LoadedNetwork:
    """Load the network that a file of ours describes, its weights in ``dtype``.

    Raises:
        InputError: there is no such file, it is of another format, or its bytes do not have its hash.
    """
    network, metadata = _load(Path(path), dtype)
    if isinstance(network, TextTower):
        raise InputError(f"{path}: holds a text tower, not an encoder: give an encoder's weights")
    return LoadedNetwork(network, metadata)


def load_text_tower(path: Path, *, dtype: DTypeLike = jnp.float32) -> LoadedTextTower:
    """Load the text tower that a file of ours describes, as ``load`` does an encoder's network."""
    tower, metadata = _load(Path(path), dtype)
    if not isinstance(tower, TextTower):
        raise InputError(
            f"{path}: holds the vision tower alone: give the published checkpoint, which has the text tower"
        )
    return LoadedTextTower(tower, metadata)


def _load(path: Path, dtype: DTypeLike) -> tuple[Network | TextTower, dict[str, str]]:
    header = _read_header(path)
    try:
        config = config_from_json(header.metadata["architecture"])
        if count_blocks(config) > len(header.entries):  # a block holds a tensor at least
            raise ValueError("more blocks than tensors")
        abstract = build_abstract(config, dtype=dtype)
    except Exception as error:  # a network of such a configuration may fail in any way
        raise _damaged(path) from error
    network = fill_network(abstract, _read_tensors(path, header), label=str(path))
    return network, header.metadata


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a file of ours; InputError where it is none."""
    return _read_header(Path(path)).metadata


def _read_header(path: Path) -> TensorHeader:
    """Read the header of a file of ours; InputError that says which file it is, where it is none."""
    try:
        header = read_header(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): give a converted encoder") from error
    except BrokenFileError as error:
        kind = describe_kind(path)
        if kind.startswith(("a damaged", "an empty")):
            raise _damaged(path) from error
        raise InputError(f"{path}: {kind}, not a converted encoder: give one") from error
    if header.metadata.get("format") != FORMAT:
        kind = describe_kind(path)
        advice = ": run `python -m weights_convert` on it first" if "another program" in kind else ""
        raise InputError(f"{path}: {kind}, not a converted encoder{advice}")
    if header.metadata.get("version") != VERSION:
        raise InputError(
            f"{path}: version {header.metadata.get('version')} of the format, and this program reads "
            f"{VERSION}: convert it again"
        )
    return header


def _read_tensors(path: Path, header: TensorHeader) -> Iterator[tuple[str, np.ndarray]]:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            file.seek(header.start)
            for name, entry in header.entries.items():
                # Read, not mapped: the pages of a mapped file would count as memory a second time.
                tensor = np.fromfile(file, _DTYPES[entry.dtype], prod(entry.shape))
                yield name, tensor.reshape(entry.shape)
                digest.update(tensor.view(np.uint8).data)
            if file.read(1) or digest.hexdigest() != header.metadata.get("sha256"):
                raise _damaged(path)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> InputError:
    return InputError(f"{path}: damaged or cut short: make it again, or delete it and fetch it again")


def _entries(targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    offset = 0
    for name, target in targets.items():
        dtype = np.dtype(target.dtype)
        end = offset + int(np.prod(target.shape)) * dtype.itemsize
        entries[name] = {
            "dtype": _DTYPE_NAMES[dtype],
            "shape": list(target.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    return entries


def _header(metadata: dict[str, str], entries: dict[str, Any]) -> bytes:
    text = json.dumps({"__metadata__": metadata, **entries}).encode()
    # The format wants the tensors to begin at a multiple of 8.
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
