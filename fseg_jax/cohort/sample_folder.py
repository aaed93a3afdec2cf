"""The folder of samples that a codebook is fitted on: rows of features from tiles of every slide of a cohort.

``settings.json`` states what all samples were made with. A slide has a folder ``slides/SLIDE_ID``, which
appears whole or not at all:

- ``features.zarr``: the rows, float16 or bfloat16 (rows, channels). They are not compressed: they hardly
  shrink, and k-means reads them at every step.
- ``border.zarr``, where there are any: likewise, tokens at the border of tissue, for centres of mixtures.
- ``tiles.jpg``: small pictures of the tiles, so that the card of a codebook needs no slide.
- ``slide.json``: where the tiles lie, and what they were made of (``SlideSample``).

Any number of workers fill one folder together, and what is there is not made again.
"""

import hashlib
import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from fseg_jax.cohort.tile_rows import TOKENS_PER_SLIDE, TOKENS_PER_TILE
from fseg_jax.encoders.encoder import EncoderCard
from fseg_jax.errors import InputError, OutputError, first_line
from fseg_jax.files.atomic import replace_atomically
from fseg_jax.files.futures import wait_for_writes
from fseg_jax.files.partial_folders import open_partial_folder
from fseg_jax.files.paths import is_folder, is_there
from fseg_jax.files.zarr import create_array
from fseg_jax.outputs.codebook_card import RowFacts
from fseg_jax.outputs.csv_table import write_csv
from fseg_jax.pipeline.record import MadeWith
from fseg_jax.pipeline.slide_facts import SlideFacts
from fseg_jax.slides.bounds import Frame

FORMAT = 3  # of the folder: raised when what it holds changes
ROWS, BORDER = "features.zarr", "border.zarr"
THUMBNAIL_SIDE = 96  # pixels of a tile in tiles.jpg
THUMBNAILS_PER_LINE = 20
UNKNOWN = "unknown"  # the hash of the tissue file in samples of earlier versions

SampleUnit = Literal["tiles", "tokens"]
StoredDtype = Literal["float16", "bfloat16"]
DTYPES: dict[StoredDtype, np.dtype[Any]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
SMALLEST_NORMAL: dict[StoredDtype, float] = {"float16": 2.0**-14, "bfloat16": 2.0**-126}

_JPEG_QUALITY = 80
_THUMBNAIL_BYTES = 3000  # of one tile, at most
_NO_EFFECT = ("batch", "threads")  # settings that change nothing in the samples


@dataclass(frozen=True)
class SampleSettings:
    """How to sample slides; all settings but ``batch`` and ``threads`` affect the result.

    Attributes:
        tiles: Largest number of tiles of a slide. They do not overlap.
        tile: Side of a tile in pixels, a multiple of the encoder's stride; None: ``tile_side`` chooses.
        mpp: Resolution in µm per pixel.
        on: What a row is: the average of a tile's tokens (F-SEG §3.3), or a token (``tile_rows``).
        min_tissue: Smallest share of tissue in a tile that is sampled.
        pure: Whether rows are of tokens deep in tissue (``tile_rows``), with others at its border besides;
            otherwise, as in the paper, of any.
        tissue: Where the tissue is, for slides whose manifest does not say: "find", "all" or a file.
        stain_normalization: Whether the encoder sees the colours of a standard stain; None: as suits it.
        mpp_override: µm per pixel of slides whose manifest does not say.
        frame: What coordinates count from, where a file is a scan on a larger canvas (``slides.bounds``).
        series: Which image of a file to read, for slides whose manifest does not say; None: the largest.
        dtype: Number type in which rows are stored.
        batch: Number of images that go through the encoder at once; None: by the device (``batching``).
        threads: Number of threads that decode images; None: by the device.
    """

    tiles: int = 200
    tile: int | None = None
    mpp: float = 1.0
    on: SampleUnit = "tiles"
    min_tissue: float = 0.5
    pure: bool = True
    tissue: str = "find"
    stain_normalization: bool | None = None
    mpp_override: float | None = None
    frame: Frame = "bounds"
    series: int | None = None
    dtype: StoredDtype = "float16"
    batch: int | None = None
    threads: int | None = None


@dataclass(frozen=True)
class ManifestFacts:
    """What a slide's sample depends on in the manifest.

    Attributes:
        mpp: µm per pixel, instead of what the file says; None: the file says it.
        tissue: "find", "all" or a file.
        series: Which of the file's images; None: the largest.
    """

    mpp: float | None
    tissue: str
    series: int | None


@dataclass(frozen=True)
class SlideSample:
    """A slide's sample, as ``slide.json`` states it.

    Attributes:
        slide_id: The slide.
        rows: Number of rows of features.
        manifest: What the manifest said of the slide.
        tissue_sha256: Hash of the tissue file; None: there is none.
        boxes: Corners (y, x) of the tiles, in pixels of the settings' mpp.
        tiles: The index of each row's tile.
        tokens: Where rows are tokens, the (y, x) of each in its tile's grid.
        stride: Pixels of a token's side; None in samples of earlier versions.
        facts: What is known of each row.
        border_rows: Number of tokens at the border of tissue.
        slide: The slide.
        made_with: Versions and device that computed the features.
        seconds: Time that it took.
    """

    slide_id: str
    rows: int
    manifest: ManifestFacts
    tissue_sha256: str | None
    boxes: Int[np.ndarray, "t 2"]
    tiles: Int[np.ndarray, " rows"]
    tokens: Int[np.ndarray, "rows 2"] | None
    stride: int | None
    facts: RowFacts
    border_rows: int
    slide: SlideFacts
    made_with: MadeWith
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``slide.json``."""
        return {
            "slide_id": self.slide_id,
            "rows": self.rows,
            "said": asdict(self.manifest),
            "tissue_sha256": self.tissue_sha256,
            "boxes": self.boxes.tolist(),
            "tiles": self.tiles.tolist(),
            "tokens": None if self.tokens is None else self.tokens.tolist(),
            "stride": self.stride,
            **{name: np.round(values, 3).tolist() for name, values in self.facts._asdict().items()},
            "border_rows": self.border_rows,
            "slide": self.slide.to_json(),
            **self.made_with.to_json(),
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, content: Any, slide_id: str) -> "SlideSample":
        """Read the content of ``slide.json``; any error but ``InputError`` means that it is damaged."""
        rows, tokens = content["rows"], content["tokens"]
        sample = cls(
            slide_id=slide_id,
            rows=rows,
            manifest=ManifestFacts(
                content["said"]["mpp"], content["said"]["tissue"], content["said"].get("series")
            ),
            tissue_sha256=content.get("tissue_sha256", UNKNOWN),
            boxes=np.asarray(content["boxes"], np.int32).reshape(-1, 2),
            tiles=np.asarray(content["tiles"], np.int32),
            tokens=None if tokens is None else np.asarray(tokens, np.int32).reshape(-1, 2),
            stride=content.get("stride"),
            facts=RowFacts(*(np.asarray(content[name], np.float64) for name in RowFacts._fields)),
            border_rows=content["border_rows"],
            slide=SlideFacts.from_json(content["slide"]),
            made_with=MadeWith(content.get("versions", {}), content.get("device", "")),
            seconds=content.get("seconds", 0.0),
        )
        if not all(isinstance(count, int) and count >= 0 for count in (rows, sample.border_rows)) or not rows:
            raise ValueError("there are no rows, or no number of them")
        if any(column.shape != (rows,) or not np.isfinite(column).all() for column in sample.facts):
            raise ValueError("there is not a fact for each row")
        if sample.tiles.shape != (rows,) or not np.isin(sample.tiles, np.arange(len(sample.boxes))).all():
            raise ValueError("there is not a tile for each row")
        if sample.tokens is not None and len(sample.tokens) != rows:
            raise ValueError("there is not a token for each row")
        if not (sample.stride is None or (type(sample.stride) is int and 0 < sample.stride < 1 << 16)):
            raise ValueError("the tokens have no side")
        return sample


def tile_side(settings: SampleSettings, card: EncoderCard) -> int:
    """Return the side of a tile in pixels: as set, or the largest multiple of the stride up to 256.

    Raises ``InputError`` where the encoder's stride does not divide the side that is set.
    """
    if settings.tile is None:
        return 256 // card.stride * card.stride
    if settings.tile < card.stride or settings.tile % card.stride:
        near = max(1, round(settings.tile / card.stride)) * card.stride
        raise InputError(
            f"--tile {settings.tile}: must be a multiple of {card.name}'s stride, {card.stride}: try {near}"
        )
    return settings.tile


def sample_place(folder: Path, slide_id: str) -> Path:
    """Return the folder of a slide's sample."""
    return folder / "slides" / slide_id


def thumbnail_corner(tile: int) -> tuple[int, int]:
    """Return where ``tiles.jpg`` has the picture of a tile, as (y, x).

    >>> thumbnail_corner(21)
    (96, 96)
    """
    line, column = divmod(tile, THUMBNAILS_PER_LINE)
    return line * THUMBNAIL_SIDE, column * THUMBNAIL_SIDE


def is_normalized(settings: SampleSettings, card: EncoderCard) -> bool:
    """Tell whether stains are normalized: as set, or as suits the encoder."""
    wanted = settings.stain_normalization
    return card.stain_normalization if wanted is None else wanted


def estimate_bytes(slides: int, card: EncoderCard, settings: SampleSettings) -> int:
    """Return how many bytes the samples of that many slides take at most, pictures included."""
    tokens = max(TOKENS_PER_SLIDE, settings.tiles * TOKENS_PER_TILE)
    rows = (tokens if settings.on == "tokens" else settings.tiles) + (tokens if settings.pure else 0)
    return slides * (rows * card.channels * 2 + settings.tiles * _THUMBNAIL_BYTES)


def prepare_folder(folder: Path, card: EncoderCard, settings: SampleSettings, slides: int) -> None:
    """Make a folder of samples, or check that an existing one was made with these settings.

    Raises:
        InputError: The folder is something else, damaged, or of other settings.
        OutputError: It cannot be written, or the disk has too little room for that many slides.
    """
    facts = _settings_to_json(card, settings)
    path = folder / "settings.json"
    if is_there(path):
        _check_settings(folder, facts)
        return
    # Another worker may be making the folder at this moment.
    expected = re.compile(r"slides|settings\.json|\.settings\.json\..*")
    if is_there(folder) and not (
        is_folder(folder) and all(expected.fullmatch(entry.name) for entry in folder.iterdir())
    ):
        raise InputError(f"{folder}: is something else than a folder of features; choose another --features")
    try:
        (folder / "slides").mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from error
    needed = estimate_bytes(slides, card, settings)
    if free < needed:
        raise OutputError(
            f"{folder}: {free / 1e9:.1f} GB are free, and {slides} slides may take {needed / 1e9:.1f} GB; "
            "choose another --features, or fewer --tiles-per-slide"
        )
    with replace_atomically(path) as part:
        part.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def read_settings(folder: Path) -> dict[str, Any]:
    """Read ``settings.json``. Raises ``InputError`` where it cannot be read."""
    path = folder / "settings.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: cannot be read ({first_line(error)}); choose another --features"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: damaged; choose another --features")
    return content


def _check_settings(folder: Path, facts: dict[str, Any]) -> None:
    content = read_settings(folder)
    if different := [name for name in facts if content.get(name) != facts[name]]:
        told = [name for name in different if name != "hash"] or different  # it tells nothing but that
        listed = ", ".join(f"{name} {content.get(name)!r} there, {facts[name]!r} here" for name in told)
        raise InputError(f"{folder}: features made with other settings ({listed}); choose another --features")


def _settings_to_json(card: EncoderCard, settings: SampleSettings) -> dict[str, Any]:
    """Return the content of ``settings.json``, with its hash."""
    facts = {
        "format": FORMAT,
        "encoder": card.name,
        "weights_hash": card.weights_hash,
        "layer": card.layer,
        "channels": card.channels,
        **{name: value for name, value in asdict(settings).items() if name not in _NO_EFFECT},
        "tile": tile_side(settings, card),
        "stain_normalization": is_normalized(settings, card),
    }
    return {**facts, "hash": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}


def has_sample(folder: Path, slide_id: str) -> bool:
    """Whether a slide has been sampled."""
    return (sample_place(folder, slide_id) / "slide.json").exists()


def is_whole(folder: Path, sample: SlideSample) -> bool:
    """Whether a sample still has its features and its pictures."""
    parts = [f"{ROWS}/zarr.json", "tiles.jpg", *([f"{BORDER}/zarr.json"] if sample.border_rows else [])]
    return all((sample_place(folder, sample.slide_id) / part).exists() for part in parts)


def read_sample(folder: Path, slide_id: str) -> SlideSample:
    """Read ``slide.json`` of a slide. Raises ``InputError`` where it is damaged or cannot be read."""
    path = sample_place(folder, slide_id) / "slide.json"
    try:
        return SlideSample.from_json(json.loads(path.read_text(encoding="utf-8")), slide_id)
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError, ArithmeticError):
        raise make_damage_error(path) from None


def make_damage_error(path: Path) -> InputError:
    """Make the error for a damaged part of a sample."""
    return InputError(f"{path}: damaged; remove {path.parent}")


def write_sample(
    folder: Path,
    sample: SlideSample,
    rows: Float[np.ndarray, "m c"],
    border: Float[np.ndarray, "b c"],
    thumbnails: Image.Image,
    *,
    replace: bool,
) -> None:
    """Write a slide's sample beside its name, and then rename it.

    If another worker was first, its sample is as good and stays, unless ``replace``.
    """
    place = sample_place(folder, sample.slide_id)
    with open_partial_folder(place.name, place.parent) as part:
        new = part / "slide"
        new.mkdir()
        for name, values in ((ROWS, rows), (BORDER, border)):
            if len(values):
                array = create_array(
                    new / name,
                    values.shape,
                    values.dtype,
                    values.shape,
                    compress=False,
                    store_zeros=True,
                    error_path=place,
                )
                wait_for_writes(place, array.write(values))
        thumbnails.save(new / "tiles.jpg", quality=_JPEG_QUALITY)
        text = json.dumps(sample.to_json(), ensure_ascii=False, allow_nan=False)
        (new / "slide.json").write_text(text + "\n", encoding="utf-8")
        if replace and place.exists():
            place.rename(part / "outdated")
        if not place.exists():
            try:
                new.rename(place)
            except OSError:
                if not (place / "slide.json").exists():
                    raise


def write_failures(folder: Path, failures: dict[str, str], share: str = "") -> None:
    """Write ``failures.csv``: id and reason of each slide that failed; remove it where none did.

    ``share`` names the part of the slides that it is about, as ``.0-of-4``; empty: it is about all.
    """
    path = folder / f"failures{share}.csv"
    if not failures:
        path.unlink(missing_ok=True)
        return
    rows = [{"slide_id": name, "reason": reason} for name, reason in failures.items()]
    write_csv(path, ("slide_id", "reason"), rows)
