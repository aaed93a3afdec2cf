"""Features of tiles sampled from every slide of a cohort, slide by slide: what a codebook is fitted on.

A folder of features holds ``settings.json``, what all of it was made with, and for each slide a folder
``slides/SLIDE_ID`` that appears whole or not at all: ``features.zarr``, float16 or bfloat16 (rows,
channels), not compressed, since it is read at every step of k-means and hardly shrinks; ``tiles.jpg``, the
tiles in small, so that what a cluster looks like needs no slide; and ``slide.json``, where the tiles lie.
What is there is not done again, whoever made it; folders are filled by any number of workers together.
"""

import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from fseg_jax.cohort.manifest import ManifestSlide
from fseg_jax.cohort.survey import facts_of
from fseg_jax.encoders.encoder import Encoder, EncoderCard
from fseg_jax.errors import InputError, OutputError, first_line
from fseg_jax.files.atomic import replacing
from fseg_jax.files.claims import partial_folder
from fseg_jax.files.futures import wait_for_writes
from fseg_jax.files.images import load_image
from fseg_jax.files.paths import is_folder, is_there
from fseg_jax.files.zarr import create_array, folder_store, open_array
from fseg_jax.outputs.csv_table import csv_text
from fseg_jax.pipeline.embed import tissue_share
from fseg_jax.pipeline.record import made_with, slide_facts
from fseg_jax.slides.identity import is_same
from fseg_jax.slides.reader import Slide, open_slide, read_batches, shape_at
from fseg_jax.slides.tissue import tissue_of

FORMAT = 1  # of the folder: raised when what it holds changes
MIN_TISSUE = 0.25  # of a tile's area
TOKENS = 4  # drawn from each tile, where rows are tokens
PICTURE, ACROSS, QUALITY = 96, 20, 80  # pixels of a tile in small, tiles in a line of them, JPEG's
DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

_log = logging.getLogger(__name__)

_WIDEST = 1 << 16  # channels
_LOOKED_AT_ONCE = 8  # slides

SlideReport = Callable[[int, int, str], None]  # slides done, of how many, which is next


@dataclass(frozen=True)
class FeatureSettings:
    """How to sample slides; all but ``batch`` and ``threads`` affects the result.

    ``tiles`` a slide at most, of ``tile`` pixels (the encoder's stride must divide it; None: 256 or the next
    size below that it does) at ``mpp`` µm, do not overlap, and are drawn from the tissue by the slide's id.
    A row is the average of a tile's tokens (``on="tiles"``, F-SEG §3.3), or one of four drawn from each tile
    (``"tokens"``). ``tissue`` and ``mpp_override`` are for slides whose manifest does not say.
    """

    tiles: int = 200
    tile: int | None = None
    mpp: float = 1.0
    on: str = "tiles"
    tissue: str = "find"
    mpp_override: float | None = None
    dtype: str = "float16"
    batch: int = 8
    threads: int = 2


@dataclass(frozen=True)
class SlideRecord:
    """A slide's place in the rows: ``boxes`` are its tiles' (y, x) in pixels of the settings' mpp; ``rows``
    how many it has; ``per_tile`` rows belong to each tile in turn.
    """

    slide_id: str
    rows: int
    per_tile: int
    boxes: Int[np.ndarray, "t 2"]
    tokens: Int[np.ndarray, "rows 2"] | None


def tile_side(settings: FeatureSettings, card: EncoderCard) -> int:
    """The tile's side for an encoder; InputError if its stride does not divide the one asked for."""
    if settings.tile is None:
        return 256 // card.stride * card.stride
    if settings.tile < card.stride or settings.tile % card.stride:
        near = max(1, round(settings.tile / card.stride)) * card.stride
        raise InputError(
            f"--tile {settings.tile}: must be a multiple of {card.name}'s stride, {card.stride}: try {near}"
        )
    return settings.tile


def sample_cohort(
    slides: Sequence[ManifestSlide],
    folder: Path,
    encoder: Encoder,
    settings: FeatureSettings,
    *,
    shard: tuple[int, int] = (0, 1),
    report: SlideReport = lambda done, total, slide_id: None,
) -> dict[str, str]:
    """Sample and encode the slides that the folder does not hold yet; the failures, slide id to reason.

    Slides whose files, tissue or manifest have changed since are sampled again, and it is said why.
    ``shard`` (i, n): every n-th slide from the i-th on, so that n workers do all of them. A slide that fails
    is told, and does not stop the rest; another run tries it again. Raises ``InputError`` where the folder
    was made with other settings, ``OutputError`` where it cannot be written.
    """
    prepare_folder(folder, encoder.card, settings, len(slides))
    mine = slides[shard[0] :: shard[1]]
    with ThreadPoolExecutor(_LOOKED_AT_ONCE, thread_name_prefix="fseg-look") as pool:
        there = list(pool.map(lambda slide: _there(folder, slide, settings), mine))
    todo = [slide for slide, known in zip(mine, there, strict=True) if not known]
    failures = {}
    for i, line in enumerate(todo):
        report(i, len(todo), line.slide_id)
        try:
            with open_slide(line.path, line.mpp or settings.mpp_override) as slide:
                _sample_slide(line, slide, folder, encoder, settings)
        except OutputError:
            raise
        except InputError as error:
            failures[line.slide_id] = str(error)
    report(len(todo), len(todo), "")
    return failures


def prepare_folder(folder: Path, card: EncoderCard, settings: FeatureSettings, slides: int) -> None:
    """Make a folder of features, or check that one was made with these settings."""
    wanted = _facts(card, settings)
    path = folder / "settings.json"
    if is_there(path):
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"{path}: cannot be read ({first_line(error)}); choose another --features"
            ) from error
        if not isinstance(held, dict):
            raise InputError(f"{path}: damaged; choose another --features")
        if different := [name for name in wanted if held.get(name) != wanted[name]]:
            said = ", ".join(f"{n} {held.get(n)!r} there, {wanted[n]!r} here" for n in different)
            raise InputError(
                f"{folder}: features made with other settings ({said}); choose another --features"
            )
        return
    # What another worker, which makes the folder just now, may have put there.
    begun = re.compile(r"slides|settings\.json|\.settings\.json\..*")
    if is_there(folder) and not (
        is_folder(folder) and all(begun.fullmatch(held.name) for held in folder.iterdir())
    ):
        raise InputError(f"{folder}: is something else than a folder of features; choose another --features")
    try:
        (folder / "slides").mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from error
    needed = expected_bytes(slides, card, settings)
    if free < needed:
        raise OutputError(
            f"{folder}: {free / 1e9:.1f} GB are free, and {slides} slides may take {needed / 1e9:.1f} GB; "
            "choose another --features, or fewer --tiles-per-slide"
        )
    with replacing(path) as part:
        part.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")


def expected_bytes(slides: int, card: EncoderCard, settings: FeatureSettings) -> int:
    """What the features of that many slides take at most, pictures included."""
    rows = settings.tiles * (TOKENS if settings.on == "tokens" else 1)
    return slides * (rows * card.channels * 2 + settings.tiles * 3000)


def write_failures(folder: Path, failures: dict[str, str], share: str = "") -> None:
    """Write ``failures.csv``, slide id and reason, of a share of the slides or all of them, or remove what is
    no longer true.
    """
    path = folder / f"failures{share}.csv"
    if not failures:
        path.unlink(missing_ok=True)
        return
    rows = [{"slide_id": name, "reason": reason} for name, reason in failures.items()]
    with replacing(path) as part:
        part.write_text(csv_text(("slide_id", "reason"), rows), encoding="utf-8")


class StoredRows:
    """The rows of slides in a folder of features, one below the other, in the order of their ids.

    Read by ranges, as ``kmeans.streaming`` wants them; only what is asked for is in memory.
    """

    def __init__(self, folder: Path, slide_ids: Sequence[str]):
        self.folder = folder
        self.records = [_record(folder, slide_id) for slide_id in sorted(slide_ids)]
        self.starts = np.cumsum([0, *(record.rows for record in self.records)])
        opened = [
            open_array(folder_store(_place(folder, r.slide_id) / "features.zarr")) for r in self.records
        ]
        try:
            self._stores: list[Any] = [future.result() for future in opened]
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"{folder}: a slide's features cannot be read ({first_line(error)})") from error
        for record, store in zip(self.records, self._stores, strict=True):
            width = self._stores[0].shape[-1]
            chunk = prod(store.chunk_layout.read_chunk.shape)
            if store.shape != (record.rows, width) or width > _WIDEST or chunk > prod(store.shape):
                raise _damaged(_place(folder, record.slide_id) / "features.zarr")
        self.shape = (int(self.starts[-1]), self._stores[0].shape[1])

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        first, last = np.searchsorted(self.starts, (start, stop), side="right") - 1
        reads = []
        for i in range(first, min(int(last) + 1, len(self._stores))):
            low, high = max(start - self.starts[i], 0), min(stop - self.starts[i], self.records[i].rows)
            if low < high:
                reads.append(self._stores[i][int(low) : int(high)].read())
        if not reads:
            return np.empty((0, self.shape[1]), self._stores[0].dtype.numpy_dtype)
        try:
            return np.concatenate([read.result() for read in reads])
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{self.folder}: a slide's features are damaged ({first_line(error)}); remove its folder"
            ) from error

    def slide_of(self, rows: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """Which record each row is of."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def pictures(self, rows: Int[np.ndarray, " m"], stride: float = 0) -> list[np.ndarray]:
        """The tiles of some rows in small, uint8 (96, 96, 3); of a token, with a square around it, of which
        ``stride`` is the side as a share of the tile's.
        """
        out: dict[int, np.ndarray] = {}
        owners = self.slide_of(rows)
        for owner in np.unique(owners):
            record = self.records[owner]
            strip = np.asarray(load_image(_place(self.folder, record.slide_id) / "tiles.jpg").convert("RGB"))
            for at in np.flatnonzero(owners == owner):
                row = int(rows[at] - self.starts[owner])
                line, column = divmod(row // record.per_tile, ACROSS)
                y, x = line * PICTURE, column * PICTURE
                picture = strip[y : y + PICTURE, x : x + PICTURE].copy()
                if record.tokens is not None:
                    _frame(picture, record.tokens[row], stride)
                out[int(at)] = picture
        return [out[i] for i in range(len(rows))]


def _frame(picture: np.ndarray, token: np.ndarray, stride: float) -> None:
    side = max(4, round(stride * PICTURE))
    y, x = (int(np.clip(round(t * stride * PICTURE), 0, PICTURE - side)) for t in token)
    box = picture[y : y + side, x : x + side]
    for edge in (box[0], box[-1], box[:, 0], box[:, -1]):
        edge[:] = (0, 240, 220)


def _facts(card: EncoderCard, settings: FeatureSettings) -> dict[str, Any]:
    """All that a folder of features has in common, with its hash."""
    facts = {
        "format": FORMAT,
        "encoder": card.name,
        "weights_hash": card.weights_hash,
        "layer": card.layer,
        "channels": card.channels,
        **{k: v for k, v in asdict(settings).items() if k not in ("batch", "threads")},
        "tile": tile_side(settings, card),
        "min_tissue": MIN_TISSUE,
    }
    return {**facts, "hash": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}


def _place(folder: Path, slide_id: str) -> Path:
    return folder / "slides" / slide_id


def _said(line: ManifestSlide, settings: FeatureSettings) -> dict[str, Any]:
    """What the manifest says of a slide that its features depend on."""
    return {"mpp": line.mpp or settings.mpp_override, "tissue": line.tissue or settings.tissue}


def _there(folder: Path, line: ManifestSlide, settings: FeatureSettings) -> bool:
    """Whether a slide has been sampled, as the manifest has it now, and all of that is there."""
    place = _place(folder, line.slide_id)
    if not (place / "slide.json").exists():
        return False
    reason = _outdated(place, line, settings)
    if reason:
        _log.warning("%s: %s; sampled again", line.slide_id, reason)
    return not reason


def _outdated(place: Path, line: ManifestSlide, settings: FeatureSettings) -> str:
    """Why what is there of a slide is not to be used any more; empty where it is."""
    try:
        held = _read_record(place)
    except InputError:
        return "its record is damaged"
    if not all((place / part).exists() for part in ("features.zarr/zarr.json", "tiles.jpg")):
        return "some of its features are gone"
    if (now := _said(line, settings)) != held["said"]:
        return f"sampled when the manifest said {held['said']}, and now it says {now}"
    if held.get("tissue_sha256", tissue := _tissue_hash(now["tissue"])) != tissue:
        return "its tissue file is another one"
    file = facts_of(line)
    return "the file at its path is another one" if file and not is_same(held["slide"], file) else ""


def _tissue_hash(tissue: str) -> str | None:
    """SHA-256 of the file that says where tissue is; None where none does, or it cannot be read."""
    if tissue in ("find", "all"):
        return None
    try:
        return hashlib.sha256(Path(tissue).read_bytes()).hexdigest()
    except OSError:
        return None


def _read_record(place: Path) -> dict[str, Any]:
    """What a slide's folder says of it. Raises ``InputError`` where it does not."""
    path = place / "slide.json"
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        numbers = isinstance(held["rows"], int) and len(held["boxes"]) > 0
        if numbers and isinstance(held["slide"]["path"], str) and {"said", "tokens"} <= held.keys():
            return held
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        pass
    raise _damaged(path)


def _record(folder: Path, slide_id: str) -> SlideRecord:
    place = _place(folder, slide_id)
    held = _read_record(place)
    try:
        tokens = None if held["tokens"] is None else np.asarray(held["tokens"], np.int32).reshape(-1, 2)
        boxes = np.asarray(held["boxes"], np.int32).reshape(-1, 2)
    except (ValueError, TypeError, OverflowError) as error:
        raise _damaged(place / "slide.json") from error
    per_tile, left = divmod(held["rows"], len(boxes))
    if left or not 1 <= per_tile <= TOKENS or (tokens is not None and len(tokens) != held["rows"]):
        raise _damaged(place / "slide.json")
    return SlideRecord(slide_id, held["rows"], per_tile, boxes, tokens)


def _damaged(path: Path) -> InputError:
    return InputError(f"{path}: damaged; remove {path.parent}")


def _generator(slide_id: str) -> np.random.Generator:
    """Chance that depends on the slide's id alone."""
    return np.random.default_rng(list(hashlib.sha256(slide_id.encode()).digest()))


def draw_tiles(slide: Slide, slide_id: str, side: int, settings: FeatureSettings, how: str) -> np.ndarray:
    """The (y, x) of a slide's tiles, int32 (t, 2), drawn by its id from those with tissue."""
    height, width = shape_at(slide, settings.mpp)
    rows, columns = max(1, height // side), max(1, width // side)
    um = side * settings.mpp
    share = tissue_share(tissue_of(slide, how), rows, columns, um, um)
    found = np.argwhere(share >= MIN_TISSUE)
    if not len(found):
        raise InputError(
            f"{slide.path}: no tile of {side} pixels at {settings.mpp:g} µm has {MIN_TISSUE:.0%} of tissue; "
            "--no-tissue takes everything, the manifest's column tissue says where it is"
        )
    if len(found) > settings.tiles:
        drawn = _generator(slide_id).choice(len(found), settings.tiles, replace=False)
        found = found[np.sort(drawn)]
    return (found * side).astype(np.int32)


def _sample_slide(
    line: ManifestSlide, slide: Slide, folder: Path, encoder: Encoder, settings: FeatureSettings
) -> None:
    started = time.perf_counter()
    side = tile_side(settings, encoder.card)
    said = _said(line, settings)
    corners = draw_tiles(slide, line.slide_id, side, settings, said["tissue"])
    grid = side // encoder.card.stride
    tokens = None
    if settings.on == "tokens":
        count = min(TOKENS, grid * grid)
        rng = _generator(line.slide_id)
        flat = np.stack([rng.choice(grid * grid, count, replace=False) for _ in corners])
        tokens = np.stack(np.divmod(flat, grid), -1).astype(np.int32)  # (t, count, 2)
    parts: list[np.ndarray] = []
    lines = -(-len(corners) // ACROSS)
    strip = Image.new("RGB", (ACROSS * PICTURE, lines * PICTURE), "white")
    boxes = [(int(y), int(x), side, side) for y, x in corners]
    for here, images in read_batches(
        slide, boxes, settings.mpp, batch=settings.batch, threads=settings.threads
    ):
        count = here.stop - here.start
        features = np.asarray(encoder(jnp.asarray(images)).astype(jnp.float32))[:count]
        if tokens is None:
            parts.append(features.mean((1, 2)))
        else:
            at = tokens[here]
            parts.append(
                features[np.arange(count)[:, None], at[..., 0], at[..., 1]].reshape(-1, features.shape[-1])
            )
        for i in range(count):
            row, column = divmod(here.start + i, ACROSS)
            small = Image.fromarray(images[i]).resize((PICTURE, PICTURE), Image.Resampling.BOX)
            strip.paste(small, (column * PICTURE, row * PICTURE))
    X = _stored(np.concatenate(parts), settings.dtype, slide, encoder.card)
    record = {
        "slide_id": line.slide_id,
        "rows": len(X),
        "said": said,
        "tissue_sha256": _tissue_hash(said["tissue"]),
        "boxes": corners.tolist(),
        "tokens": None if tokens is None else tokens.reshape(-1, 2).tolist(),
        "slide": slide_facts(slide).to_json(),
        **made_with().to_json(),
        "seconds": round(time.perf_counter() - started, 3),
    }
    place = _place(folder, line.slide_id)
    _write(place, X, strip, record, again=bool(_outdated(place, line, settings)))


def _stored(X: Float[np.ndarray, "m c"], dtype: str, slide: Slide, card: EncoderCard) -> np.ndarray:
    if not np.isfinite(X).all():
        raise InputError(
            f"{slide.path}: the features of the encoder {card.name!r} hold a NaN or an infinity: its weights "
            "are damaged, or its dtype too narrow"
        )
    with np.errstate(over="ignore"):
        narrow = X.astype(DTYPES[dtype])
    small = float(ml_dtypes.finfo(DTYPES[dtype]).smallest_normal)
    if not np.isfinite(narrow.astype(np.float32)).all() or 0 < np.abs(X).max() < small:
        raise InputError(
            f"{slide.path}: features of up to {np.abs(X).max():.3g} do not fit in {dtype}: choose --store "
            "bfloat16"
        )
    return narrow


def _write(place: Path, X: np.ndarray, strip: Image.Image, record: dict[str, Any], again: bool) -> None:
    """Write a slide's folder beside its name and rename it; if another worker was first, its is as good,
    but for one that was there before and is to be made again.
    """
    with partial_folder(place.name, place.parent) as part:
        whole = part / "slide"
        whole.mkdir()
        array = create_array(
            whole / "features.zarr",
            X.shape,
            X.dtype,
            X.shape,
            compress=False,
            store_zeros=True,
            error_path=place,
        )
        wait_for_writes(place, array.write(X))
        strip.save(whole / "tiles.jpg", quality=QUALITY)
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
        (whole / "slide.json").write_text(text + "\n", encoding="utf-8")
        if again and place.exists():
            place.rename(part / "outdated")
        if not place.exists():
            try:
                whole.rename(place)
            except OSError:
                if not (place / "slide.json").exists():
                    raise
