"""One slide, end to end: read, find tissue, tile, encode, factorize, blend, label, write.

``lay_out`` plans a slide, ``encoded`` (or ``kept``) gives its tiles' features, ``segment`` does the rest;
``segment_slide`` is all of it. A worker knows nothing of what runs it. Of the slide it holds a few rows of
tiles; everything it writes appears under its final name only when all of it is there, the record
``NAME.json`` last.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt

from fseg_jax.codebook import Codebook, Provenance
from fseg_jax.encoders.encoder import Encoder, EncoderCard
from fseg_jax.errors import InputError
from fseg_jax.files.claims import partial_folder
from fseg_jax.methods import fseg
from fseg_jax.numerics import kmeans
from fseg_jax.numerics.prefetch import prefetch
from fseg_jax.outputs.colours import default_names, palette
from fseg_jax.outputs.figures import write_areas, write_overlay
from fseg_jax.outputs.geojson import write_geojson
from fseg_jax.outputs.labels import LabelWriter, label_dtype, level_for
from fseg_jax.pipeline.record import Clock, check_outputs, finish, made_with, slide_facts
from fseg_jax.process import Progress
from fseg_jax.slides.reader import Slide, open_slide, read_batches, shape_at, thumbnail
from fseg_jax.slides.tiles import TileGrid, make_grid, tiles_with_tissue
from fseg_jax.slides.tissue import Tissue, tissue_of

_log = logging.getLogger(__name__)

FORMAT = 1  # of the outputs: raised when what they hold changes
FIT_TILES, FIT_TOKENS = 64, 16_384  # of a slide, that its own codebook is fitted on
LABELLED = 4  # tiles upsampled at once: a slide's rows are seldom a multiple of many
FINEST = 4  # times a slide may be enlarged
FIGURE_SIDE = 1600  # pixels of the overlay's longer side

Tile = tuple[int, int]  # row and column in the grid
# From tiles to their features (batch, t, t, c), in batches of one shape; what is over in the last one is 0.
Tokens = Callable[[list[Tile]], Iterator[tuple[list[Tile], Float[jax.Array, "b t t c"]]]]
# The record first: it goes first when outputs are replaced, and comes last.
SUFFIXES = (".json", ".ome.zarr", ".geojson", ".png", ".csv")


@dataclass(frozen=True)
class Settings:
    """How to segment a slide; whatever here affects the result is in its record.

    ``mpp`` is the codebook's, or else the encoder's own; ``tile`` is the encoder's own unless given; ``halo``
    is a fraction of the tile; ``tissue`` is ``"find"``, ``"all"`` or a file; ``k`` clusters are fitted on the
    slide itself where there is no codebook. Features are rounded to ``features`` (``float32`` or
    ``bfloat16``) before they are factorized. ``batch`` tiles go to the encoder at once and ``threads``
    decode: neither affects the result.
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
    features: str = "float32"
    batch: int = 8
    threads: int = 2


@dataclass(frozen=True)
class Plan:
    """A slide laid out: which tiles there are at which resolution, and which of them hold tissue.

    ``slide`` is ``slide_facts``, ``image`` a picture of the whole slide, uint8 (h, w, 3) with pixels of
    ``image_mpp`` µm.
    """

    name: str
    slide: dict[str, Any]
    mpp: float
    grid: TileGrid
    tissue: Tissue
    wanted: Bool[np.ndarray, "rows columns"]
    image: np.ndarray
    image_mpp: float

    def tiles(self) -> list[Tile]:
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
    slide: Slide | str | Path,
    out: str | Path,
    encoder: Encoder,
    codebook: Codebook | None = None,
    settings: Settings | None = None,
    *,
    overwrite: bool = False,
    report: Progress = lambda phase, done, total: None,
) -> dict[str, Any]:
    """Segment a slide into the clusters of a codebook, or of one fitted on itself, and write all outputs to
    a folder.

    ``slide`` is an open slide, or a path that is opened with the settings' ``mpp_override``. Writes
    ``out/NAME.ome.zarr``, ``.geojson``, ``.png``, ``.csv`` and, last, ``.json``, whose content it returns.
    Raises ``InputError``, with nothing written, for anything wrong with what was given, a tile that
    cannot be decoded included.
    """
    settings = settings or Settings()
    if not isinstance(slide, Slide):
        with open_slide(slide, settings.mpp_override) as opened:
            return segment_slide(opened, out, encoder, codebook, settings, overwrite=overwrite, report=report)
    out = Path(out)
    fseg.check(settings.mode, settings.resize)
    card = encoder.card
    if codebook is not None:
        fseg.check_codebook(codebook, encoder)
    paths = output_paths(slide.name, out)
    check_outputs(paths, out, overwrite)
    clock = Clock()
    plan = lay_out(slide, card, settings, codebook)
    clock.lap("tissue")
    with partial_folder(slide.name, out) as folder:
        tokens = encoded(slide, plan, encoder, settings)
        record = segment(plan, tokens, card, codebook, settings, folder, clock, report)
        return finish(folder, record, paths)


def segment(
    plan: Plan,
    tokens: Tokens,
    card: EncoderCard,
    codebook: Codebook | None,
    settings: Settings,
    folder: Path,
    clock: Clock,
    report: Progress = lambda phase, done, total: None,
) -> dict[str, Any]:
    """Segment a slide from its features, write all outputs but the record to a folder, and return that."""
    if codebook is None:
        codebook = fit_codebook(plan, tokens, card, settings, report)
        clock.lap("codebook")
    k, name = codebook.k, plan.name
    names, colours = default_names(k), palette(k)
    provenance = _provenance(plan, card, codebook, settings)
    labels_path = folder / f"{name}.ome.zarr"
    shape = (plan.grid.height, plan.grid.width)
    writer = LabelWriter(labels_path, shape, plan.mpp, k, names=names, colours=colours, provenance=provenance)
    left: Counter[str] = Counter()
    for rows in _label_rows(plan, tokens, card, codebook, settings, report, left):
        writer.append(rows)
    pixels = writer.close()
    clock.lap("segmentation")
    areas = pixels * plan.mpp**2 * 1e-6
    uncovered = left["pixels"] * plan.mpp**2 * 1e-6
    _warn_of_left(plan, left["tokens"], uncovered)
    write_areas(folder / f"{name}.csv", names, pixels, plan.mpp, colours=colours)
    with ThreadPoolExecutor(1, thread_name_prefix="fseg-outlines") as pool:
        drawn = pool.submit(
            write_geojson,
            folder / f"{name}.geojson",
            labels_path,
            slide_mpp=plan.slide["mpp"],
            names=names,
            colours=colours,
        )
        write_overlay(
            folder / f"{name}.png",
            plan.image,
            level_for(labels_path, plan.image.shape[0]),
            names=names,
            colours=colours,
            areas_mm2=areas[1:].tolist(),
            mpp=plan.image_mpp,
            title=f"{name} · {card.name} · k = {k}",
        )
        outlines = drawn.result()
    clock.lap("outputs")
    tiles = int(plan.wanted.sum())
    return {
        **provenance,
        "tissue_mm2": round(float(areas[1:].sum()), 6),
        "areas_mm2": {name: round(float(a), 6) for name, a in zip(names, areas[1:], strict=True)},
        "uncovered_mm2": round(uncovered, 6),
        "tokens_not_converged": left["tokens"],
        "tiles": tiles,
        "outlines": outlines,
        "seconds": clock.laps,
        "tiles_per_second": round(tiles / clock.laps["segmentation"], 2),
    }


def _warn_of_left(plan: Plan, tokens: int, uncovered: float) -> None:
    """Say so where tissue has no label, or one of a solver that had to stop."""
    if uncovered:
        _log.warning(
            "%s: %.3g mm² of tissue have no weight in any cluster, and are background", plan.name, uncovered
        )
    if tokens:
        _log.warning("%s: the factorization of %d tokens of tissue has not converged", plan.name, tokens)


def working_mpp(card: EncoderCard, settings: Settings, codebook: Codebook | None) -> float:
    """The resolution to work at: as set, or the codebook's, or the encoder's own."""
    made_at = codebook.provenance.mpp if codebook else None
    return settings.mpp if settings.mpp is not None else made_at or card.mpp


def warn_of_mpp(name: str, mpp: float, codebook: Codebook | None) -> None:
    """Say so where a codebook was made at another resolution."""
    made_at = codebook.provenance.mpp if codebook else None
    if made_at and abs(mpp - made_at) > 0.01 * made_at:
        _log.warning("%s: the codebook was made at %g µm per pixel, and is used at %g", name, made_at, mpp)


def lay_out(slide: Slide, card: EncoderCard, settings: Settings, codebook: Codebook | None) -> Plan:
    """Find a slide's tissue and lay tiles over it. Raises ``InputError`` where there is none."""
    mpp = working_mpp(card, settings, codebook)
    warn_of_mpp(slide.path.name, mpp, codebook)
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
    with ThreadPoolExecutor(1, thread_name_prefix="fseg-picture") as pool:
        picture = pool.submit(thumbnail, slide, FIGURE_SIDE)
        tissue = tissue_of(slide, settings.tissue)
    wanted = tiles_with_tissue(grid, tissue.mask, tissue.mpp, mpp)
    if not wanted.any():
        raise InputError(
            f"{slide.path}: no tissue found; --no-tissue segments everything, --tissue FILE says where it is"
        )
    return Plan(slide.name, slide_facts(slide), mpp, grid, tissue, wanted, *picture.result())


def encoded(slide: Slide, plan: Plan, encoder: Encoder, settings: Settings) -> Tokens:
    """Features of a slide's tiles by reading and encoding them."""

    def tokens(tiles: list[Tile]) -> Iterator[tuple[list[Tile], Float[jax.Array, "b t t c"]]]:
        boxes = [plan.grid.box(*tile) for tile in tiles]
        for here, images in read_batches(
            slide, boxes, plan.mpp, batch=settings.batch, threads=settings.threads
        ):
            features = encoder(jnp.asarray(images))
            yield tiles[here], _settled(features, here.stop - here.start, settings.features)

    return tokens


@partial(jax.jit, static_argnames="dtype")
def _settled(
    features: Float[jax.Array, "b t t c"], filled: jax.Array | int, dtype: str
) -> Float[jax.Array, "b t t c"]:
    """Round features, and set those that only fill a batch to 0: results must not depend on them."""
    there = jnp.arange(features.shape[0]) < filled
    return jnp.where(there[:, None, None, None], features, 0).astype(dtype)


def fit_codebook(
    plan: Plan, tokens: Tokens, card: EncoderCard, settings: Settings, report: Progress
) -> Codebook:
    """Fit k centres on a slide's own tissue tokens: for a slide without a codebook.

    The paper fits on the averages of many tiles a slide over a cohort (§3.3); one slide has too few tiles
    for that, so this fits on tokens: at most 16,384, of at most 64 tiles, drawn by the seed.
    """
    rng = np.random.default_rng(settings.seed)
    tiles = plan.tiles()
    if len(tiles) > FIT_TILES:
        tiles = [tiles[i] for i in sorted(rng.choice(len(tiles), FIT_TILES, replace=False))]
    held: list[np.ndarray] = []
    done = 0
    for here, batch in tokens(tiles):
        for tile, A in zip(here, np.asarray(batch), strict=False):
            held.append(A[plan.core_mask(*tile)])
            if not np.isfinite(A).all():
                raise _not_finite(plan, card, tile)
        done += len(here)
        report("codebook", done, len(tiles))
    X = np.concatenate(held)
    file = Path(plan.slide["path"]).name
    if settings.k > len(X):
        fewer = "" if plan.mpp > 4 * card.mpp else "fewer clusters or "  # so coarse, no k would help
        raise InputError(
            f"--k {settings.k}: {file} has {len(X)} tokens of tissue at {plan.mpp:g} µm per pixel; "
            f"choose {fewer}a finer --mpp"
        )
    # As many as a power of two, where there are plenty: k-means then compiles once for slides of many sizes.
    sample = min(FIT_TOKENS, 1 << (len(X).bit_length() - 1))
    if sample >= max(1024, 4 * settings.k) and sample < len(X):
        X = X[np.sort(rng.choice(len(X), sample, replace=False))]
    result = kmeans.fit(X.astype(np.float32), settings.k, key=jax.random.key(settings.seed))
    if not result.converged:
        _log.warning("%s: k-means has not converged in %d iterations", plan.name, result.iterations)
    # Clusters are numbered from the largest down, which is how their legend reads.
    counts = np.bincount(np.asarray(result.labels), minlength=settings.k)
    centers = np.asarray(result.centers)[np.argsort(-counts, kind="stable")]
    return Codebook(
        centers,
        Provenance(
            encoder=card.name,
            weights_hash=card.weights_hash,
            layer=card.layer,
            mpp=plan.mpp,
            tiles=len(tiles),
            seed=settings.seed,
            source=f"{file} itself, {len(X)} tokens",
        ),
    )


def _label_rows(
    plan: Plan,
    tokens: Tokens,
    card: EncoderCard,
    codebook: Codebook,
    settings: Settings,
    report: Progress,
    left: Counter[str],
) -> Iterator[UInt[np.ndarray, "n width"]]:
    """Yield the slide's labels from top to bottom, a row of tiles at a time: made in a thread, beside the
    factorization of the rows below. Counted in ``left`` are the tokens of tissue that have not converged, and
    the pixels of tissue that no cluster has any weight at.
    """
    grid = plan.grid
    centers = jnp.asarray(codebook.centers)
    key = jax.random.key(settings.seed)
    tiles = plan.tiles()
    held: dict[Tile, Float[np.ndarray, "t t k"]] = {}
    done, next_row = 0, 0

    def finished() -> Iterator[Future[UInt[np.ndarray, "n width"]]]:
        """The rows whose tiles, and those of the row below, are all there."""
        nonlocal next_row
        pending = tiles[done][0] if done < len(tiles) else grid.rows + 1
        while next_row < grid.rows and next_row + 1 < pending:
            yield pool.submit(_label_row, plan, dict(held), next_row, codebook.k, settings, left)
            for column in range(grid.columns):
                held.pop((next_row - 1, column), None)
            next_row += 1

    def solved() -> Iterator[tuple[list[Tile], fseg.TileWeights]]:
        for here, features in tokens(tiles):
            yield (
                here,
                fseg.tile_weights(features, centers, key, mode=settings.mode, concepts=settings.concepts),
            )

    def begun() -> Iterator[Future[UInt[np.ndarray, "n width"]]]:
        nonlocal done
        report("segmentation", 0, len(tiles))
        for here, found in prefetch(solved()):
            for tile, weights, fine, done_with in zip(here, *map(np.asarray, found), strict=False):
                if not fine:
                    raise _not_finite(plan, card, tile)
                if not done_with.all():
                    left["tokens"] += int((~done_with & plan.core_mask(*tile)).sum())
                held[tile] = weights
            done += len(here)
            report("segmentation", done, len(tiles))
            yield from finished()
        yield from finished()

    with ThreadPoolExecutor(1, thread_name_prefix="fseg-labels") as pool:
        for labels in prefetch(begun()):
            yield labels.result()


def _label_row(
    plan: Plan,
    held: dict[Tile, Float[np.ndarray, "t t k"]],
    row: int,
    k: int,
    settings: Settings,
    left: Counter[str],
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
    batch = max(1, min(LABELLED, 2**22 // (side * side * k)))

    def labelled() -> Iterator[tuple[Int[np.ndarray, " b"], UInt[jax.Array, "b height width"]]]:
        for start in range(0, len(columns), batch):
            here = columns[start : start + batch]
            blocks = np.zeros((batch, side, side, k), np.float32)
            for i, column in enumerate(here):
                blocks[i] = fseg.blend(held, row, int(column), grid.halo // stride, shape)
            yield here, fseg.block_labels(jnp.asarray(blocks), stride, settings.resize)

    for here, labels in prefetch(labelled()):
        for column, block in zip(here, np.asarray(labels), strict=False):
            _, x, h, w = grid.core(row, int(column))
            tissue = plan.tissue.crop(top, x, h, w, plan.mpp)
            inside = block[:h, :w]
            if not inside.all():
                left["pixels"] += int((tissue & (inside == 0)).sum())
            out[:, x : x + w] = np.where(tissue, inside, 0)
    return out


def _provenance(plan: Plan, card: EncoderCard, codebook: Codebook, settings: Settings) -> dict[str, Any]:
    """All that affects the result, and what made it."""
    grid = plan.grid
    return {
        "format": FORMAT,
        "method": "F-SEG (Gildenblat & Hadar 2024, arXiv 2409.05697)",
        **made_with(),
        "slide": plan.slide,
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
            "features": settings.features,
        },
    }


def _not_finite(plan: Plan, card: EncoderCard, tile: Tile) -> InputError:
    y, x, *_ = plan.grid.core(*tile)
    return InputError(
        f"{plan.slide['path']}: the features of the encoder {card.name!r} hold a NaN or an infinity in "
        f"the tile at y = {y}, x = {x} (at {plan.mpp:g} µm per pixel): its weights are damaged, or its dtype "
        "too narrow"
    )
