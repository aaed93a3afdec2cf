"""One slide, end to end: read, find tissue, tile, encode, factorize, blend, label, write.

A worker knows nothing of what runs it. Of the slide it holds a few rows of tiles; everything it writes
appears under its final name only when all of it is there, the record ``NAME.json`` last.
"""

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt

from fseg_jax import kmeans
from fseg_jax.codebook import Codebook, Provenance
from fseg_jax.encoders.encoder import Encoder, EncoderCard
from fseg_jax.errors import InputError
from fseg_jax.methods import fseg
from fseg_jax.outputs.colours import default_names, palette
from fseg_jax.outputs.figures import write_areas, write_overlay
from fseg_jax.outputs.geojson import write_geojson
from fseg_jax.outputs.labels import LabelWriter, label_dtype, open_labels
from fseg_jax.slides.reader import Slide, read_ahead, shape_at, thumbnail
from fseg_jax.slides.tiles import TileGrid, make_grid, tiles_with_tissue
from fseg_jax.slides.tissue import Tissue, find_tissue, load_tissue, whole_slide

_log = logging.getLogger(__name__)

FORMAT = 1  # of the outputs: raised when what they hold changes
FIT_TILES, FIT_TOKENS = 64, 16_384  # of a slide, that its own codebook is fitted on
FINEST = 4  # times a slide may be enlarged
FIGURE_SIDE = 1600  # pixels of the overlay's longer side

Report = Callable[[str, int, int], None]  # what is being done, how many tiles of it are done, of how many
# The record first: it goes first when outputs are replaced, and comes last.
SUFFIXES = (".json", ".ome.zarr", ".geojson", ".png", ".csv")


@dataclass(frozen=True)
class Settings:
    """How to segment a slide; whatever here affects the result is in its record.

    ``mpp`` is the codebook's, or else the encoder's own; ``tile`` is the encoder's own unless given; ``halo``
    is a fraction of the tile; ``tissue`` is ``"find"``, ``"all"`` or a file; ``k`` clusters are fitted on the
    slide itself where there is no codebook. ``batch`` tiles go to the encoder at once and ``threads`` decode:
    neither affects the result.
    """

    k: int = 8
    mode: str = "fixed"
    resize: str = "bilinear"
    concepts: int = fseg.CONCEPTS
    mpp: float | None = None
    tile: int | None = None
    halo: float = 1 / 16
    tissue: str = "find"
    seed: int = 0
    mpp_override: float | None = None
    batch: int = 8
    threads: int = 2


@dataclass(frozen=True)
class _Plan:
    """A slide laid out: which tiles there are at which resolution, and which of them hold tissue."""

    slide: Slide
    mpp: float
    grid: TileGrid
    tissue: Tissue
    wanted: Bool[np.ndarray, "rows columns"]

    def tiles(self) -> list[tuple[int, int]]:
        return [(int(r), int(c)) for r, c in np.argwhere(self.wanted)]

    def core_mask(self, row: int, column: int) -> Bool[np.ndarray, "h w"]:
        """Which tokens of a whole tile lie in its core, on the slide and on tissue (by their centres)."""
        grid = self.grid
        stride = grid.stride
        side = grid.tile // stride
        y, x, height, width = grid.core(row, column)
        out = np.zeros((side, side), bool)
        h, w, begin = -(-height // stride), -(-width // stride), grid.halo // stride
        tokens = self.tissue.crop(y // stride, x // stride, h, w, self.mpp * stride)
        out[begin : begin + h, begin : begin + w] = tokens
        return out


def output_paths(name: str, out: Path) -> list[Path]:
    """Everything that ``segment_slide`` writes for a slide of this name, its record first."""
    return [out / f"{name}{suffix}" for suffix in SUFFIXES]


def segment_slide(
    slide: Slide,
    out: Path,
    encoder: Encoder,
    codebook: Codebook | None = None,
    settings: Settings | None = None,
    *,
    overwrite: bool = False,
    report: Report = lambda phase, done, total: None,
) -> dict[str, Any]:
    """Segment a slide into the clusters of a codebook, or of one fitted on itself, and write all outputs to
    a folder.

    Writes ``out/NAME.ome.zarr``, ``.geojson``, ``.png``, ``.csv`` and, last, ``.json``, whose content it
    returns. Raises ``InputError``, with nothing written, for anything wrong with what was given, a tile that
    cannot be decoded included.
    """
    settings = settings or Settings()
    fseg.check(settings.mode, settings.resize)
    card = encoder.card
    if codebook is not None:
        codebook.check(card.name, card.channels, card.weights_hash)
    check_outputs(slide.name, out, overwrite)
    clock = _Clock()
    plan = _plan(slide, card, settings, codebook)
    clock.lap("tissue")
    if codebook is None:
        codebook = fit_codebook(plan, encoder, settings, report)
        clock.lap("codebook")
    new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{slide.name}.", suffix=".partial", dir=out))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from error
    try:
        k = codebook.k
        names, colours = default_names(k), palette(k)
        provenance = _provenance(plan, encoder, codebook, settings)
        labels_path = folder / f"{slide.name}.ome.zarr"
        shape = (plan.grid.height, plan.grid.width)
        writer = LabelWriter(
            labels_path, shape, plan.mpp, k, names=names, colours=colours, provenance=provenance
        )
        for rows in _label_rows(plan, encoder, codebook, settings, report):
            writer.append(rows)
        pixels = writer.close()
        clock.lap("segmentation")
        outlines = write_geojson(
            folder / f"{slide.name}.geojson", labels_path, slide_mpp=slide.mpp, names=names, colours=colours
        )
        write_areas(folder / f"{slide.name}.csv", names, pixels, plan.mpp, colours=colours)
        areas = pixels * plan.mpp**2 * 1e-6
        image, image_mpp = thumbnail(slide, FIGURE_SIDE)
        write_overlay(
            folder / f"{slide.name}.png",
            image,
            _level_for(labels_path, image.shape[0]),
            names=names,
            colours=colours,
            areas_mm2=areas[1:].tolist(),
            mpp=image_mpp,
            title=f"{slide.name} · {card.name} · k = {k}",
        )
        clock.lap("outputs")
        tiles = int(plan.wanted.sum())
        record = {
            **provenance,
            "tissue_mm2": round(float(areas[1:].sum()), 6),
            "areas_mm2": {name: round(float(a), 6) for name, a in zip(names, areas[1:], strict=True)},
            "tiles": tiles,
            "outlines": outlines,
            "seconds": clock.laps,
            "tiles_per_second": round(tiles / clock.laps["segmentation"], 2),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (folder / f"{slide.name}.json").write_text(text, encoding="utf-8")
        _publish(folder, slide.name, out)
        return json.loads(text)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if new:  # nothing is left of a failure, not even an empty folder
            with suppress(OSError):
                out.rmdir()


def check_outputs(name: str, out: Path, overwrite: bool) -> None:
    """Raise ``InputError`` if the outputs of a slide exist and may not be replaced, or cannot be written."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name!r}: the slide's name is not UTF-8; rename it") from None
    existing = [path for path in output_paths(name, out) if path.exists()]
    if existing and not overwrite:
        raise InputError(f"{existing[-1]} exists: choose another folder, or --overwrite")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; -o names a folder")
    # The nearest folder that exists must let us in; access() alone would say yes to root on a read-only disk.
    parent = next(p for p in (out, *out.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from error


def _publish(folder: Path, name: str, out: Path) -> None:
    """Move finished outputs to their names: a record that is replaced goes first, the new one comes last."""
    for path in output_paths(name, out):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for path in reversed(output_paths(name, out)):
        (folder / path.name).replace(path)


def _plan(slide: Slide, card: EncoderCard, settings: Settings, codebook: Codebook | None) -> _Plan:
    made_at = codebook.provenance.mpp if codebook else None
    mpp = settings.mpp if settings.mpp is not None else made_at or card.mpp
    if made_at and abs(mpp - made_at) > 0.01 * made_at:
        _log.warning(
            "%s: the codebook was made at %g µm per pixel, and is used at %g", slide.path.name, made_at, mpp
        )
    height, width = shape_at(slide, mpp)
    if mpp < slide.mpp / FINEST:
        raise InputError(
            f"--mpp {mpp:g}: {slide.path.name} has {slide.mpp:.4g} µm per pixel, and there is nothing to see "
            f"below {slide.mpp / FINEST:.3g}"
        )
    tile = card.tile if settings.tile is None else settings.tile
    grid = make_grid(height, width, card.stride, tile, settings.halo)
    if settings.mode == "assign":
        fseg.check_concepts(settings.concepts, (tile // card.stride) ** 2)
    if settings.tissue == "find":
        tissue = find_tissue(slide)
    elif settings.tissue == "all":
        tissue = whole_slide(slide)
    else:
        tissue = load_tissue(settings.tissue, slide)
    wanted = tiles_with_tissue(grid, tissue.mask, tissue.mpp, mpp)
    if not wanted.any():
        raise InputError(
            f"{slide.path}: no tissue found; --no-tissue segments everything, --tissue FILE says where it is"
        )
    return _Plan(slide, mpp, grid, tissue, wanted)


def _batches(
    plan: _Plan, tiles: list[tuple[int, int]], settings: Settings
) -> Iterator[tuple[list[tuple[int, int]], np.ndarray]]:
    """Read tiles ahead in threads, and yield them in batches of one shape, the last padded with blank
    tiles."""
    side = plan.grid.tile
    images = read_ahead(plan.slide, (plan.grid.box(r, c) for r, c in tiles), plan.mpp, settings.threads)
    try:
        for start in range(0, len(tiles), settings.batch):
            here = tiles[start : start + settings.batch]
            batch = np.full((settings.batch, side, side, 3), 255, np.uint8)
            for i, _ in enumerate(here):
                batch[i] = next(images)
            yield here, batch
    finally:
        images.close()  # type: ignore[attr-defined]


def fit_codebook(plan: _Plan, encoder: Encoder, settings: Settings, report: Report) -> Codebook:
    """Fit k centres on a slide's own tissue tokens: for a slide without a codebook.

    The paper fits on the averages of many tiles a slide over a cohort (§3.3); one slide has too few tiles
    for that, so this fits on tokens: at most 16,384, of at most 64 tiles, drawn by the seed.
    """
    rng = np.random.default_rng(settings.seed)
    tiles = plan.tiles()
    if len(tiles) > FIT_TILES:
        tiles = [tiles[i] for i in sorted(rng.choice(len(tiles), FIT_TILES, replace=False))]
    tokens: list[np.ndarray] = []
    done = 0
    for here, batch in _batches(plan, tiles, settings):
        features = np.asarray(encoder(jnp.asarray(batch)))
        for tile, A in zip(here, features, strict=False):
            tokens.append(A[plan.core_mask(*tile)])
            if not np.isfinite(A).all():
                raise _not_finite(plan, encoder, tile)
        done += len(here)
        report("codebook", done, len(tiles))
    X = np.concatenate(tokens)
    if settings.k > len(X):
        raise InputError(
            f"--k {settings.k}: {plan.slide.path.name} has {len(X)} tokens of tissue at {plan.mpp:g} µm per "
            "pixel; choose fewer clusters or a finer --mpp"
        )
    # As many as a power of two, where there are plenty: k-means then compiles once for slides of many sizes.
    sample = min(FIT_TOKENS, 1 << (len(X).bit_length() - 1))
    if sample >= max(1024, 4 * settings.k) and sample < len(X):
        X = X[np.sort(rng.choice(len(X), sample, replace=False))]
    result = kmeans.fit(X.astype(np.float32), settings.k, key=jax.random.key(settings.seed))
    # Clusters are numbered from the largest down, which is how their legend reads.
    counts = np.bincount(np.asarray(result.labels), minlength=settings.k)
    centers = np.asarray(result.centers)[np.argsort(-counts, kind="stable")]
    card = encoder.card
    return Codebook(
        centers,
        Provenance(
            encoder=card.name,
            weights_hash=card.weights_hash,
            layer=card.layer,
            mpp=plan.mpp,
            tiles=len(tiles),
            seed=settings.seed,
            source=f"{plan.slide.path.name} itself, {len(X)} tokens",
        ),
    )


def _label_rows(
    plan: _Plan, encoder: Encoder, codebook: Codebook, settings: Settings, report: Report
) -> Iterator[UInt[np.ndarray, "n width"]]:
    """Yield the slide's labels from top to bottom, a row of tiles at a time."""
    grid = plan.grid
    centers = jnp.asarray(codebook.centers)
    key = jax.random.key(settings.seed)
    tiles = plan.tiles()
    held: dict[tuple[int, int], Float[np.ndarray, "t t k"]] = {}
    done, next_row = 0, 0

    def finished() -> Iterator[UInt[np.ndarray, "n width"]]:
        """The rows whose tiles, and those of the row below, are all there."""
        nonlocal next_row
        pending = tiles[done][0] if done < len(tiles) else grid.rows + 1
        while next_row < grid.rows and next_row + 1 < pending:
            yield _label_row(plan, held, next_row, codebook.k, settings)
            for column in range(grid.columns):
                held.pop((next_row - 1, column), None)
            next_row += 1

    report("segmentation", 0, len(tiles))
    for here, batch in _batches(plan, tiles, settings):
        W, finite = fseg.tile_weights(
            encoder(jnp.asarray(batch)), centers, key, mode=settings.mode, concepts=settings.concepts
        )
        for tile, weights, fine in zip(here, np.asarray(W), np.asarray(finite), strict=False):
            if not fine:
                raise _not_finite(plan, encoder, tile)
            held[tile] = weights
        done += len(here)
        report("segmentation", done, len(tiles))
        yield from finished()
    yield from finished()


def _label_row(
    plan: _Plan,
    held: dict[tuple[int, int], Float[np.ndarray, "t t k"]],
    row: int,
    k: int,
    settings: Settings,
) -> UInt[np.ndarray, "n width"]:
    """The labels of one row of tiles: blended, upsampled, and background where there is no tissue."""
    grid = plan.grid
    stride = grid.stride
    top, _, height, _ = grid.core(row, 0)
    out = np.zeros((height, grid.width), label_dtype(k))
    columns = np.flatnonzero(plan.wanted[row])
    shape = (-(-grid.height // stride), -(-grid.width // stride))
    # Blocks go to the device in batches of one size, bounded so that k × pixels stays small.
    side = grid.pitch // stride + 2
    batch = max(1, min(settings.batch, 2**22 // (side * side * k)))
    for start in range(0, len(columns), batch):
        here = columns[start : start + batch]
        blocks = np.zeros((batch, side, side, k), np.float32)
        for i, column in enumerate(here):
            blocks[i] = fseg.blend(held, row, int(column), grid.halo // stride, shape)
        labels = np.asarray(fseg.block_labels(jnp.asarray(blocks), stride, settings.resize))
        for column, block in zip(here, labels, strict=False):
            _, x, h, w = grid.core(row, int(column))
            tissue = plan.tissue.crop(top, x, h, w, plan.mpp)
            out[:, x : x + w] = np.where(tissue, block[:h, :w], 0)
    return out


def _level_for(labels_path: Path, height: int) -> UInt[np.ndarray, "h w"]:
    """The coarsest level of a label pyramid that is as fine as a picture of this height."""
    levels = open_labels(labels_path).levels
    fine = [level for level in levels if level.shape[0] >= height] or levels[:1]
    return fine[-1].read().result()


def _provenance(plan: _Plan, encoder: Encoder, codebook: Codebook, settings: Settings) -> dict[str, Any]:
    """All that affects the result, and what made it."""
    slide, grid, card = plan.slide, plan.grid, encoder.card
    return {
        "format": FORMAT,
        "method": "F-SEG (Gildenblat & Hadar 2024, arXiv 2409.05697)",
        "versions": {name: version(name) for name in ("fseg-jax", "jax", "jaxlib", "numpy", "tensorstore")},
        "device": jax.devices()[0].device_kind,
        "slide": {
            "path": str(slide.path),
            "format": slide.format,
            "height": slide.height,
            "width": slide.width,
            "mpp": slide.mpp,
        },
        "encoder": asdict(card),
        "codebook": {"k": codebook.k, "hash": codebook.hash, **asdict(codebook.provenance)},
        "parameters": {
            "mode": settings.mode,
            "resize": settings.resize,
            "concepts": settings.concepts if settings.mode == "assign" else None,
            "mpp": plan.mpp,
            "tile": grid.tile,
            "halo": grid.halo,
            "tissue": settings.tissue,
            "seed": settings.seed,
            "mpp_override": settings.mpp_override,
        },
    }


def _not_finite(plan: _Plan, encoder: Encoder, tile: tuple[int, int]) -> InputError:
    y, x, *_ = plan.grid.core(*tile)
    return InputError(
        f"{plan.slide.path}: the features of the encoder {encoder.card.name!r} hold a NaN or an infinity in "
        f"the tile at y = {y}, x = {x} (at {plan.mpp:g} µm per pixel): its weights are damaged, or its dtype "
        "too narrow"
    )


class _Clock:
    """Seconds since the last lap, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 3)
        self._last = now
