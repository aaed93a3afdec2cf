"""Codebooks: cluster centres and where they came from, which give F-SEG's concepts their names (§3.2)."""

import hashlib
import io
import json
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open

from fseg_jax.errors import InputError
from fseg_jax.tensors import write_tensors

FORMAT = "fseg-jax-codebook"
SHIPPED = "he-small"  # the codebook that comes with the encoder of that name


@dataclass(frozen=True)
class Provenance:
    """Where centres came from; an empty string or None is unknown, and matches anything."""

    encoder: str = ""
    weights_hash: str = ""
    layer: str = ""
    mpp: float | None = None
    tiles: int | None = None
    seed: int | None = None
    source: str = ""


@dataclass(frozen=True, eq=False)
class Codebook:
    """Centres ``(k, c)``, float32 and non-negative, with their provenance: cluster j + 1 is row j."""

    centers: Float[np.ndarray, "k c"]
    provenance: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        centers = np.asarray(self.centers, np.float32)
        if centers.ndim != 2 or 0 in centers.shape:
            raise InputError(f"codebook: centres have the shape {centers.shape}; (k, channels) is needed")
        if not np.isfinite(centers).all():
            raise InputError("codebook: the centres hold a NaN or an infinity")
        # As the authors' code does: averages of non-negative features are negative only by rounding.
        object.__setattr__(self, "centers", np.maximum(centers, 0))

    @property
    def k(self) -> int:
        return self.centers.shape[0]

    @property
    def channels(self) -> int:
        return self.centers.shape[1]

    @property
    def hash(self) -> str:
        """SHA-256 of the centres, shape and values."""
        return hashlib.sha256(repr(self.centers.shape).encode() + self.centers.tobytes()).hexdigest()

    @classmethod
    def load(cls, path: str | Path, k: int | None = None) -> "Codebook":
        """Read the codebook of k clusters from a file of ours, or from the authors' joblib file; ``he-small``
        is the one that comes with that encoder.

        ``k`` may be left out where the file holds one. Raises ``InputError`` that names what the file holds.
        """
        books = load_all(path)
        held = ", ".join(str(n) for n in sorted(books))
        if k is None:
            if len(books) > 1:
                raise InputError(f"{path}: holds codebooks of k = {held}; choose one with --k")
            return next(iter(books.values()))
        if k not in books:
            raise InputError(f"{path}: no codebook of k = {k} in it; it holds k = {held}")
        return books[k]

    def check(self, encoder: str, channels: int, weights_hash: str = "") -> None:
        """Raise ``InputError`` unless the codebook was made with this encoder, width and weights."""
        theirs = self.provenance
        if theirs.encoder and theirs.encoder != encoder:
            raise InputError(
                f"the codebook was made with the encoder {theirs.encoder!r}, not with {encoder!r}: "
                f"use --encoder {theirs.encoder} or another codebook"
            )
        if self.channels != channels:
            raise InputError(
                f"the codebook's centres are {self.channels} wide, the features of the encoder {encoder!r} "
                f"{channels}: it was made with another encoder"
            )
        if theirs.weights_hash and weights_hash and theirs.weights_hash != weights_hash:
            raise InputError(
                f"the codebook was made with other weights of {encoder!r} "
                f"({theirs.weights_hash[:12]}…, here {weights_hash[:12]}…)"
            )


def load_all(path: str | Path) -> dict[int, Codebook]:
    """Read every codebook of a file, by k: ours (safetensors), or the authors' (joblib, ``{k: (k, c)}``)."""
    path = shipped() if str(path) == SHIPPED else Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such codebook file")
    if path.suffix in (".joblib", ".pkl", ".pickle"):
        return import_joblib(path)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InputError(f"{path}: a safetensors file, but no codebook of fseg_jax")
            provenance = Provenance(**json.loads(metadata["provenance"]))
            names = list(file.keys())
            books = {int(name): Codebook(file.get_tensor(name), provenance) for name in names}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a readable codebook ({_line(error)})") from error
    if wrong := [k for k, book in books.items() if book.k != k]:
        raise InputError(f"{path}: the codebook called {wrong[0]} has {books[wrong[0]].k} centres")
    return books


def shipped() -> Path:
    """Where the codebook of ``he-small`` lies, which comes with the program."""
    return Path(str(resources.files("fseg_jax.encoders") / "he_small_codebook.safetensors"))


def save_all(path: str | Path, books: Mapping[int, Codebook]) -> None:
    """Write codebooks of one provenance and several k to one safetensors file, atomically."""
    path = Path(path)
    origins = {book.provenance for book in books.values()}
    if len(origins) != 1:
        raise InputError(f"{path}: the codebooks of one file must have one provenance")
    metadata = {"format": FORMAT, "version": "1", "provenance": json.dumps(vars(origins.pop()))}
    write_tensors(path, {str(k): book.centers for k, book in sorted(books.items())}, metadata)


def import_joblib(path: str | Path, provenance: Provenance | None = None) -> dict[int, Codebook]:
    """Read the authors' published centres, a joblib file of ``{k: float (k, c)}``, without running anything
    in it.

    The reader can construct numpy arrays and plain containers and nothing else: a pickle that names anything
    else is refused with an ``InputError`` before it runs.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if data[:1] == b"x" or data[:2] in (b"\x1f\x8b", b"BZ") or data[:6] == b"\xfd7zXZ\x00":
        raise InputError(f"{path}: the joblib file is compressed; save it again with compress=0")
    try:
        content = _ArrayUnpickler(io.BytesIO(data)).load()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can raise almost anything
        raise InputError(f"{path}: not a readable joblib file of centres ({_line(error)})") from error
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: a joblib file of centres holds a dict of k → array")
    provenance = provenance or Provenance(source=path.name)
    books = {}
    for k, centers in content.items():
        fits = isinstance(k, int | np.integer) and isinstance(centers, np.ndarray) and centers.ndim == 2
        if not fits or centers.shape[0] != k or centers.dtype.kind != "f":
            raise InputError(f"{path}: the entry {k!r} is not a float array of {k!r} centres")
        books[int(k)] = Codebook(centers, provenance)
    return books


class _ArrayWrapper:
    """Stands in for ``joblib.numpy_pickle.NumpyArrayWrapper``: the array's bytes follow it in the stream."""


class _ArrayUnpickler(pickle._Unpickler):
    """An unpickler that constructs numpy arrays and plain containers, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("joblib.numpy_pickle", "NumpyArrayWrapper"):
            return _ArrayWrapper
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise InputError(
            f"names {module}.{name}, which a file of centres has no need of: refused, nothing was run"
        )

    def load_build(self) -> None:
        super().load_build()  # type: ignore[misc]
        if isinstance(self.stack[-1], _ArrayWrapper):  # type: ignore[attr-defined]
            self.stack[-1] = self._array(vars(self.stack[-1]))  # type: ignore[attr-defined]

    def _array(self, wrapper: dict[str, Any]) -> np.ndarray:
        dtype, shape = np.dtype(wrapper["dtype"]), tuple(int(n) for n in wrapper["shape"])
        if dtype.hasobject or any(n < 0 for n in shape):
            raise InputError("holds an array of objects: refused, nothing was run")
        read = self._file_read  # type: ignore[attr-defined]
        if wrapper.get("numpy_array_alignment_bytes") is not None:
            (padding,) = struct.unpack("B", read(1))
            read(padding)
        size = dtype.itemsize * int(np.prod(shape, dtype=object))
        data = read(size)
        if len(data) != size:
            raise InputError("the file is truncated")
        if wrapper.get("order") == "F":
            return np.frombuffer(data, dtype).reshape(shape[::-1]).T
        return np.frombuffer(data, dtype).reshape(shape)

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    dispatch[pickle.BUILD[0]] = load_build


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
