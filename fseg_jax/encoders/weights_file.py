"""A network's weights as one file of ours: safetensors, keyed by dotted path, that describes and checks
itself.

The metadata say ``format`` and ``version``, the encoder's ``name``, its ``architecture`` (the configuration,
as JSON), ``source_sha256`` (the published file it was made of) and ``sha256``, of the tensors' bytes in the
order of the file. Files are written and read a tensor at a time: neither takes more memory than the weights
themselves.
"""

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from fseg_jax.atomic import replacing
from fseg_jax.encoders.architectures import abstract, described, description, fill
from fseg_jax.encoders.layers import DType, Network
from fseg_jax.errors import InputError

FORMAT, VERSION = "fseg-jax-encoder", "1"

_NAMES = {np.dtype(np.float32): "F32", np.dtype(ml_dtypes.bfloat16): "BF16"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_LARGEST_HEADER = 100_000_000


class Loaded(NamedTuple):
    """A network with its weights, and what its file says of them."""

    network: Network
    metadata: dict[str, str]


def write(
    path: Path,
    config: Any,
    targets: Mapping[str, Any],
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    name: str,
    source_sha256: str,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write an encoder's tensors, given one at a time in the order of ``targets`` (a shape and dtype each).

    ``facts`` are what else the metadata say.

    The file appears whole or not at all. InputError where it cannot be written.
    """
    path = Path(path)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "architecture": description(config),
        "source_sha256": source_sha256,
        "sha256": "0" * 64,
        **(facts or {}),
    }
    entries = _entries(targets)
    digest = hashlib.sha256()
    with replacing(path) as part:
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


def load(path: Path, *, dtype: DType = jnp.float32) -> Loaded:
    """The network that a file of ours describes, with its weights in ``dtype``, checked against the file's
    hash.

    InputError where there is no such file, it is of another format, or its bytes are not those that were
    written.
    """
    path = Path(path)
    metadata = read_metadata(path)
    try:
        config = described(metadata["architecture"])
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(path) from error
    network = fill(abstract(config, dtype=dtype), _tensors(path), what=str(path))
    return Loaded(network, metadata)


def read_metadata(path: Path) -> dict[str, str]:
    """What a file of ours says of itself; InputError where it is not one."""
    with _open(Path(path)) as file:
        header, _ = _read_header(Path(path), file)
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise InputError(f"{path}: not a converted encoder: run `python -m weights_convert` on it first")
    if metadata.get("version") != VERSION:
        raise InputError(
            f"{path}: version {metadata.get('version')} of the format, and this program reads {VERSION}: "
            "convert it again"
        )
    return metadata


def _tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    digest = hashlib.sha256()
    with _open(path) as file:
        header, start = _read_header(path, file)
        metadata = header.pop("__metadata__")
        file.seek(start)
        for name, entry in header.items():
            try:
                dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
                # Not mapped: a mapped file's pages would count as memory a second time.
                tensor = np.fromfile(file, dtype, int(np.prod(shape)))
                yield name, tensor.reshape(shape)
            except (KeyError, ValueError, TypeError) as error:
                raise _damaged(path) from error
            digest.update(tensor.view(np.uint8).data)
        if file.read(1) or digest.hexdigest() != metadata.get("sha256"):
            raise _damaged(path)


def _open(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): give a converted encoder") from error


def _read_header(path: Path, file: Any) -> tuple[dict[str, Any], int]:
    prefix = file.read(8)
    size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 0 < size < _LARGEST_HEADER:
        raise _damaged(path)
    try:
        header = json.loads(file.read(size))
    except ValueError as error:
        raise _damaged(path) from error
    if not isinstance(header, dict):
        raise _damaged(path)
    return header, 8 + size


def _damaged(path: Path) -> InputError:
    return InputError(f"{path}: damaged or cut short: delete it, and convert or fetch it again")


def _entries(targets: Mapping[str, Any]) -> dict[str, Any]:
    entries, offset = {}, 0
    for name, target in targets.items():
        dtype = np.dtype(target.dtype)
        end = offset + int(np.prod(target.shape)) * dtype.itemsize
        entries[name] = {
            "dtype": _NAMES[dtype],
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
