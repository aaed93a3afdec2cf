"""A slide's record: what a result is of, what made it, and what came of it, as it stands in ``NAME.json``.

The record is the last of a slide's outputs to appear: where it is, all are. Keys and their order are those of
the dataclasses' fields; ``to_json`` and ``from_json`` are the one place where they are written and read.
"""

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from fseg_jax.codebook import Codebook
from fseg_jax.encoders.encoder import EncoderCard
from fseg_jax.encoders.kernels.convolution import library_version
from fseg_jax.errors import InputError, OutputError
from fseg_jax.files.exchange import exchange_outputs
from fseg_jax.files.partial_folders import open_partial_folder, recover_outputs
from fseg_jax.files.paths import is_folder, is_there
from fseg_jax.slides.identity import SlideFile, identify
from fseg_jax.slides.reader import Slide
from fseg_jax.versions import find_versions

if TYPE_CHECKING:
    from fseg_jax.outputs.geojson import OutlineFacts

PACKAGES = ("fseg-jax", "jax", "jaxlib", "numpy", "tensorstore")
_LONGEST_SIDE = 1 << 31  # pixels of a slide
_COARSEST_MPP = 1e9

Json = dict[str, Any]  # a JSON object: text keys, and what JSON can hold


@dataclass(frozen=True)
class SlideFacts:
    """Which slide a result is of.

    Attributes:
        path: Its file, or folder.
        identity: Hash of its content (``slides.identity``); None in records of earlier versions.
        format: The reader's name for its format; "" where a record does not say.
        height: Height of the finest level in pixels.
        width: Width of the finest level in pixels.
        mpp: µm per pixel of the finest level.
    """

    path: str
    identity: str | None
    format: str
    height: int
    width: int
    mpp: float

    @property
    def file(self) -> SlideFile:
        """Its path and identity."""
        return SlideFile(self.path, self.identity)

    def to_json(self) -> Json:
        """Give the facts as JSON; an unknown identity is left out."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, value: Any) -> "SlideFacts":
        """Read the facts from JSON.

        Raises:
            LookupError, TypeError, ValueError: Something is missing, or cannot be.
        """
        path, height, width, mpp = (value[key] for key in ("path", "height", "width", "mpp"))
        if not isinstance(path, str):
            raise TypeError("the slide's path is no text")
        for side in (height, width):
            if type(side) is not int or not 0 < side < _LONGEST_SIDE:
                raise ValueError("the slide's size cannot be")
        if type(mpp) not in (int, float) or not 0 < mpp < _COARSEST_MPP:
            raise ValueError("the slide's resolution cannot be")
        return cls(path, value.get("identity"), value.get("format", ""), height, width, mpp)


def slide_facts(slide: Slide) -> SlideFacts:
    """Collect which slide a result is of."""
    return SlideFacts(
        path=str(slide.path),
        identity=identify(slide.path),
        format=slide.format,
        height=slide.height,
        width=slide.width,
        mpp=slide.mpp,
    )


@dataclass(frozen=True)
class MadeWith:
    """What computes a result.

    Attributes:
        versions: Versions of the packages that it depends on, by name.
        device: JAX's name for the kind of processor.
    """

    versions: dict[str, str]
    device: str

    def to_json(self) -> Json:
        """Give it as JSON."""
        return asdict(self)


def made_with() -> MadeWith:
    """Collect the versions of what computes a result, and the device."""
    versions = find_versions(PACKAGES)
    onednn = library_version()
    if onednn is not None:
        versions["onednn"] = onednn
    return MadeWith(versions, jax.devices()[0].device_kind)


@dataclass(frozen=True)
class CodebookFacts:
    """Which codebook a slide was segmented with.

    Attributes:
        k: Clusters.
        hash: SHA-256 of the centres.
        encoder: Name of the encoder that it was made with.
        weights_hash: SHA-256 of that encoder's weights.
        layer: Layer of the encoder.
        mpp: µm per pixel of the tiles that it was made of.
        tiles: How many tiles that were.
        seed: Random seed.
        source: Where the tiles came from, in words.
        fingerprint: The encoder's fingerprint, where its weights have no hash.
    """

    k: int
    hash: str
    encoder: str
    weights_hash: str
    layer: str
    mpp: float | None
    tiles: int | None
    seed: int | None
    source: str
    fingerprint: str


def codebook_facts(codebook: Codebook) -> CodebookFacts:
    """Collect which codebook a slide is segmented with."""
    return CodebookFacts(codebook.k, codebook.hash, **asdict(codebook.provenance))


@dataclass(frozen=True)
class Parameters:
    """The settings that affect a segmentation, as they came to be (``plan.Settings``).

    Attributes:
        mode: ``"fixed"`` or ``"assign"``.
        resize: ``"bilinear"`` or ``"nearest"``.
        concepts: Concepts of each tile; None in the mode ``"fixed"``.
        mpp: Working resolution in µm per pixel.
        tile: Side of a tile in pixels.
        halo: Overlap with the next tile in pixels.
        tissue: ``"find"``, ``"all"``, or the path of a mask or outline.
        smoothing: Standard deviation, in µm, of the Gaussian by which W was averaged; 0: none.
        mixtures: Centres of mixed tokens beside the codebook's.
        seed: Random seed.
        mpp_override: µm per pixel in place of what the slide's file says.
        features: Dtype that features were rounded to.
    """

    mode: str
    resize: str
    concepts: int | None
    mpp: float
    tile: int
    halo: int
    tissue: str
    smoothing: float
    mixtures: int
    seed: int
    mpp_override: float | None
    features: str


@dataclass(frozen=True)
class Provenance:
    """All that affects a segmentation, and what made it.

    Attributes:
        format: Version of the outputs' format.
        method: The method and its source.
        versions: Versions of the packages that it depends on, by name.
        device: JAX's name for the kind of processor.
        slide: The slide.
        encoder: The encoder.
        codebook: The codebook.
        parameters: The settings.
    """

    format: int
    method: str
    versions: dict[str, str]
    device: str
    slide: SlideFacts
    encoder: EncoderCard
    codebook: CodebookFacts
    parameters: Parameters

    def to_json(self) -> Json:
        """Give it as JSON."""
        return {**asdict(self), "slide": self.slide.to_json()}


@dataclass(frozen=True)
class Timing:
    """How long a segmentation took. A cohort's records leave it out, so that two runs give the same bytes.

    Attributes:
        seconds: Seconds by phase.
        tiles_per_second: Tiles a second of the phase ``"segmentation"``.
        finished: When it was finished, ISO 8601 in UTC.
    """

    seconds: dict[str, float]
    tiles_per_second: float
    finished: str

    def to_json(self) -> Json:
        """Give it as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Segmentation:
    """What came of a slide.

    Attributes:
        provenance: All that affects it, and what made it.
        tissue_mm2: Area of all clusters.
        areas_mm2: Area of each cluster, by name.
        uncovered_mm2: Area of tissue where no cluster has any weight.
        tokens_not_converged: Tokens of tissue that the factorization has not converged for.
        tiles: Tiles that hold tissue.
        outlines: How the outlines were made.
        timing: How long it took.
    """

    provenance: Provenance
    tissue_mm2: float
    areas_mm2: dict[str, float]
    uncovered_mm2: float
    tokens_not_converged: int
    tiles: int
    outlines: "OutlineFacts"
    timing: Timing

    def to_json(self) -> Json:
        """Give the record of ``fseg segment`` as JSON, with the timing."""
        return {**self.result_to_json(), **self.timing.to_json()}

    def result_to_json(self) -> Json:
        """Give all but the timing as JSON."""
        return {
            **self.provenance.to_json(),
            "tissue_mm2": self.tissue_mm2,
            "areas_mm2": self.areas_mm2,
            "uncovered_mm2": self.uncovered_mm2,
            "tokens_not_converged": self.tokens_not_converged,
            "tiles": self.tiles,
            "outlines": asdict(self.outlines),
        }


def now() -> str:
    """Tell the time as records state it: ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def check_outputs(paths: Sequence[Path], out: Path, overwrite: bool) -> None:
    """Check that outputs can be written, after putting in place what a killed run had finished.

    Args:
        paths: All outputs, the record first.
        out: Their folder.
        overwrite: Whether outputs that exist may be replaced.

    Raises:
        InputError: One of them exists and may not be replaced, or has a name that no file can have.
        OutputError: The folder cannot be written to.
    """
    for path in paths:
        try:
            path.name.encode()
        except UnicodeEncodeError:
            raise InputError(f"{path.name!r}: the slide's name is not UTF-8; rename it") from None
    recover_outputs(paths[0].stem, out)
    existing = [path for path in paths if is_there(path)]
    if existing and not overwrite:
        raise InputError(f"{existing[-1]} exists: choose another folder, or --overwrite")
    if is_there(out) and not is_folder(out):
        raise InputError(f"{out}: is a file; -o names a folder")
    # The nearest folder that exists must let us in; access() alone would say yes to root on a read-only disk.
    parent = next(p for p in (out, *out.absolute().parents) if is_there(p))
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror})") from error


def encode_json(record: Mapping[str, Any]) -> bytes:
    """Encode a record as the bytes of its file."""
    return (json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def finish(folder: Path, record: Mapping[str, Any], paths: Sequence[Path]) -> Json:
    """Write a record, and put all that the folder holds in place of what is there.

    ``paths`` are all outputs, the record first. Returns the record as it is in the file, with the time.
    """
    data = encode_json({**record, "finished": now()})
    (folder / paths[0].name).write_bytes(data)
    exchange_outputs(folder, [path.name for path in paths])
    content: Json = json.loads(data)
    return content


@contextmanager
def together(record: str, out: Path) -> Iterator[Path]:
    """Give a folder for outputs that belong together, and publish them when the block ends well.

    Every file made in it then comes to its place below ``out``, the record last, and what was there under
    these names goes. When the block fails, nothing is changed.
    """
    with open_partial_folder(Path(record).stem, out) as folder:
        yield folder
        names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        exchange_outputs(folder, [record, *sorted(name for name in names if name != record)])


class Clock:
    """Seconds of each phase of a run, by name."""

    def __init__(self) -> None:
        """Start the clock."""
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Note the seconds since the last lap."""
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 3)
        self._last = now
