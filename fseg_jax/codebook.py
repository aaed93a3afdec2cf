"""Read, check and write codebooks: cluster centres that name F-SEG's concepts (§3.2), and their origin."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Float

from fseg_jax.errors import InputError, first_line
from fseg_jax.files.array_pickle import unpickle_arrays
from fseg_jax.files.kinds import CODEBOOK, describe_kind, suggest_names
from fseg_jax.files.paths import is_file
from fseg_jax.files.tensor_reader import BrokenFileError, Tensors, open_tensors
from fseg_jax.files.tensor_writer import write_tensors

FORMAT = CODEBOOK
VERSIONS = ("1", "2", "3")  # of the file: 2 with mixtures, 3 of normalized stains; what is older refuses it
MIXTURES = "mixtures"  # the entry of the file that holds them
SHIPPED = "he-small"  # the codebook that comes with the encoder of that name
# The codebooks that come with the program; the second is of finer tokens, at 0.67 µm per pixel.
SHIPPED_FILES = {
    SHIPPED: "he_small_codebook.safetensors",
    "he-small-fine": "he_small_fine_codebook.safetensors",
}


@dataclass(frozen=True)
class Provenance:
    """Where centres came from; an empty string or None is unknown, and matches anything.

    Attributes:
        encoder: Name of the encoder.
        weights_hash: SHA-256 of the encoder's weights.
        layer: Layer of the encoder.
        mpp: µm per pixel of the tiles.
        tiles: Number of tiles that the centres were fitted on.
        seed: Random seed.
        source: Where the tiles came from, in words.
        fingerprint: The encoder's fingerprint (``encoders/fingerprint.py``), where its weights have no hash.
        stain_normalization: Whether the tiles had the colours of a standard stain.
    """

    encoder: str = ""
    weights_hash: str = ""
    layer: str = ""
    mpp: float | None = None
    tiles: int | None = None
    seed: int | None = None
    source: str = ""
    fingerprint: str = ""
    stain_normalization: bool = False

    def __post_init__(self) -> None:
        if self.fingerprint and not re.fullmatch("[0-9a-f]{64}", self.fingerprint):
            raise ValueError("a fingerprint is 64 hexadecimal digits")
        if not isinstance(self.stain_normalization, bool):
            raise ValueError("stain_normalization is true or false")


@dataclass(frozen=True, eq=False)
class Codebook:
    """Cluster centres and where they came from.

    Attributes:
        centers: The centres, float32 and non-negative; cluster j + 1 is row j.
        provenance: Where they came from.
        mixtures: Centres of tokens that see glass or two tissues, float32 and non-negative: they take part in
            the factorization of slides and name no cluster. None: there are none, as in the paper.
    """

    centers: Float[np.ndarray, "k c"]
    provenance: Provenance = field(default_factory=Provenance)
    mixtures: Float[np.ndarray, "m _"] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "centers", _check_centers(self.centers, "centres"))
        if self.mixtures is None:
            return
        object.__setattr__(self, "mixtures", _check_centers(self.mixtures, "mixtures"))
        if self.mixtures.shape[1] != self.channels:
            raise InputError(
                f"codebook: the mixtures are {self.mixtures.shape[1]} wide, the centres {self.channels}"
            )

    @property
    def k(self) -> int:
        """The number of centres."""
        return int(self.centers.shape[0])

    @property
    def channels(self) -> int:
        """The width of a centre."""
        return int(self.centers.shape[1])

    @property
    def hash(self) -> str:
        """SHA-256 of the centres, and of the mixtures if there are any: shapes and values."""
        digest = hashlib.sha256(repr(self.centers.shape).encode() + self.centers.tobytes())
        if self.mixtures is not None:
            digest.update(MIXTURES.encode() + repr(self.mixtures.shape).encode() + self.mixtures.tobytes())
        return digest.hexdigest()

    @classmethod
    def load(cls, path: str | Path, k: int | None = None) -> "Codebook":
        """Read one codebook of a file (``load_all``); ``k`` may be left out where the file holds only one.

        Raises:
            InputError: The file holds no codebook, none of k clusters, or several to choose from.
        """
        books = load_all(path)
        listed = ", ".join(str(n) for n in sorted(books))
        if k is None:
            if len(books) > 1:
                raise InputError(f"{path}: holds codebooks of k = {listed}; choose one with --k")
            return next(iter(books.values()))
        if k not in books:
            raise InputError(f"{path}: no codebook of k = {k} in it; it holds k = {listed}")
        return books[k]

    def check(self, encoder: str, channels: int, weights_hash: str = "") -> None:
        """Check that the codebook fits an encoder.

        Raises:
            InputError: It was made with another encoder, another number of channels or other weights.
        """
        origin = self.provenance
        if origin.encoder and origin.encoder != encoder:
            raise InputError(
                f"the codebook was made with the encoder {origin.encoder!r}, not with {encoder!r}: "
                f"use --encoder {origin.encoder} or another codebook"
            )
        if self.channels != channels:
            raise InputError(
                f"the codebook's centres are {self.channels} wide, the features of the encoder {encoder!r} "
                f"{channels}: it was made with another encoder"
            )
        if origin.weights_hash and weights_hash and origin.weights_hash != weights_hash:
            raise InputError(
                f"the codebook was made with other weights of {encoder!r} "
                f"({origin.weights_hash[:12]}…, here {weights_hash[:12]}…)"
            )


def _check_centers(centers: Float[np.ndarray, "k c"], what: str) -> Float[np.ndarray, "k c"]:
    """Check centres, or what else is called so, and return them as float32, non-negative.

    Raises:
        InputError: They have no rows, are not finite, or of a size that float32 does not hold.
    """
    values = np.asarray(centers)
    with np.errstate(over="ignore", under="ignore"):
        narrow = values.astype(np.float32)
    if narrow.ndim != 2 or 0 in narrow.shape:
        raise InputError(f"codebook: {what} have the shape {narrow.shape}; (k, channels) is needed")
    if not np.isfinite(values).all():
        raise InputError(f"codebook: the {what} hold a NaN or an infinity")
    vanished = (narrow.max(1) < np.finfo(np.float32).tiny) & (values.max(1) > 0)
    if not np.isfinite(narrow).all() or vanished.any():
        size = np.abs(values).max()
        raise InputError(f"codebook: float32 does not hold {what} of such a size ({size:.3g}): scale them")
    # Averages of non-negative features are negative only by rounding. The authors' code does the same.
    return np.maximum(narrow, 0)


def load_all(path: str | Path) -> dict[int, Codebook]:
    """Read all codebooks of a file, by k.

    The file is safetensors as ``save_all`` writes it, or joblib as the authors publish it (``{k: (k, c)}``).
    ``he-small`` and ``he-small-fine`` stand for the codebooks that come with that encoder.

    Raises:
        InputError: The file cannot be read, is damaged, or holds no codebook.
    """
    path = find_shipped_codebook(str(path)) if str(path) in SHIPPED_FILES else Path(path)
    if not is_file(path):
        near = suggest_names(str(path), list(SHIPPED_FILES))
        raise InputError(
            f"{path}: no such codebook file; {near.strip() or 'give one from fseg fit, or he-small'}"
        )
    if path.suffix in (".joblib", ".pkl", ".pickle"):
        return import_joblib(path)
    try:
        with open_tensors(path) as file:
            if file.header.metadata.get("format") != FORMAT:
                raise InputError(f"{path}: {describe_kind(path)}, not a codebook")
            if file.header.metadata.get("version", "1") not in VERSIONS:
                raise InputError(f"{path}: a codebook of a later version: update fseg-jax to read it")
            provenance = Provenance(**json.loads(file.header.metadata["provenance"]))
            _check_provenance(provenance)
            mixtures = _read_floats(file, MIXTURES) if MIXTURES in file.header.entries else None
            books = {
                int(name): Codebook(_read_floats(file, name), provenance, mixtures)
                for name in file.header.entries
                if name != MIXTURES
            }
    except BrokenFileError as error:
        kind = describe_kind(path)
        fault = f"damaged ({error})" if kind.startswith("a damaged") else f"{kind}, not a codebook"
        raise InputError(f"{path}: {fault}: give one from fseg fit or fseg codebook import") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable codebook ({first_line(error)})") from error
    if not books:
        raise InputError(f"{path}: holds no codebook: make it again with fseg fit")
    if wrong := [k for k, book in books.items() if book.k != k]:
        raise InputError(f"{path}: the codebook called {wrong[0]} has {books[wrong[0]].k} centres")
    return books


def find_shipped_codebook(name: str) -> Path:
    """Find the file of a codebook that comes with the program."""
    return Path(str(resources.files("fseg_jax.encoders") / SHIPPED_FILES[name]))


def save_all(path: str | Path, books: Mapping[int, Codebook]) -> None:
    """Write codebooks of one provenance, with the same mixtures, and several k to one safetensors file.

    The file appears whole or not at all.

    Raises:
        InputError: The codebooks differ in provenance or mixtures.
    """
    path = Path(path)
    origins = {book.provenance for book in books.values()}
    if len(origins) != 1:
        raise InputError(f"{path}: the codebooks of one file must have one provenance")
    mixtures = next(iter(books.values())).mixtures
    if not all(_are_same(mixtures, book.mixtures) for book in books.values()):
        raise InputError(f"{path}: the codebooks of one file must have the same mixtures")
    origin = dict(vars(origins.pop()))
    if not origin["fingerprint"]:  # as earlier versions, which know no fingerprints, wrote it
        origin = {name: value for name, value in origin.items() if name != "fingerprint"}
    version = VERSIONS[0] if mixtures is None else VERSIONS[1]
    if origin["stain_normalization"]:
        version = VERSIONS[2]
    else:  # as earlier versions, which know none, wrote it
        del origin["stain_normalization"]
    metadata = {"format": FORMAT, "version": version, "provenance": json.dumps(origin)}
    tensors = {str(k): book.centers for k, book in sorted(books.items())}
    write_tensors(path, tensors if mixtures is None else {**tensors, MIXTURES: mixtures}, metadata)


def _are_same(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    """Whether two arrays are equal, or neither is there."""
    if first is None or second is None:
        return first is second
    return np.array_equal(first, second)


def import_joblib(path: str | Path, provenance: Provenance | None = None) -> dict[int, Codebook]:
    """Read the authors' published centres, a joblib file of ``{k: float (k, c)}``, without running its code.

    The reader constructs numpy arrays and plain containers only. A pickle that names anything else is refused
    before it runs.

    Raises:
        InputError: The file cannot be read, is damaged, or holds anything else.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if data[:1] == b"x" or data[:2] in (b"\x1f\x8b", b"BZ") or data[:6] == b"\xfd7zXZ\x00":
        raise InputError(f"{path}: the joblib file is compressed; save it again with compress=0")
    try:
        content = unpickle_arrays(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can raise almost anything
        raise InputError(f"{path}: not a readable joblib file of centres ({first_line(error)})") from error
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


def _check_provenance(origin: Provenance) -> None:
    """Check that each fact is of its type and possible.

    Raises:
        ValueError: One is not.
    """
    texts = (origin.encoder, origin.weights_hash, origin.layer, origin.source)
    numbers = [number for number in (origin.mpp, origin.tiles, origin.seed) if number is not None]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("where it came from is no text")
    if not all(isinstance(number, int | float) and 0 <= number < 2**63 for number in numbers):
        raise ValueError("where it came from holds a number that cannot be")
    if origin.mpp is not None and not 1e-6 < origin.mpp < 1e6:
        raise ValueError(f"made at {origin.mpp} µm per pixel")


def _read_floats(file: Tensors, name: str) -> np.ndarray:
    """Read an array. Raises ``ValueError`` where it is not of floats."""
    if file.header.entries[name].dtype not in ("F16", "F32", "F64"):
        raise ValueError(f"{name[:40]}: the centres are no floats")
    return file.get(name)
