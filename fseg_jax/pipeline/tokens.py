"""Features of a slide's tiles: encoded from the slide, or read back from where an earlier run kept them.

Segmenting from kept features needs neither the slide nor the encoder, and gives the bytes that a run on the
slide gives. ``NAME.features.zarr`` is a group of ``tokens``, bfloat16 (tiles, t, t, c), a row for each tile
with its halo; ``tiles``, each tile's (row, column); and ``tissue``, ``artefacts`` and ``image`` of the slide.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Float

from fseg_jax.encoders.encoder import Encoder, EncoderCard
from fseg_jax.errors import InputError, OutputError
from fseg_jax.files.futures import wait_for_store
from fseg_jax.files.storage import Storage
from fseg_jax.outputs.rows import RowsWriter, open_rows
from fseg_jax.pipeline.batching import choose_batch, choose_threads
from fseg_jax.pipeline.plan import Plan, Settings, Tile
from fseg_jax.pipeline.slide_facts import SlideFacts
from fseg_jax.slides.reader import Slide, compute_shape, open_slide, read_batches
from fseg_jax.slides.stain_normalization import recolour
from fseg_jax.slides.tiles import TileGrid, make_grid
from fseg_jax.slides.tissue import Tissue

KEPT_FORMAT = 3  # of kept features: raised when what they hold changes
KEPT_SUFFIX = ".features.zarr"
KEPT_DTYPE = "bfloat16"
_HEADERS_AT_ONCE = 8  # slides opened in parallel to read their sizes

# From tiles to their features (batch, t, t, c), in batches of one shape; the last one is padded with zeros.
FeatureSource = Callable[[list[Tile]], Iterator[tuple[list[Tile], Float[jax.Array, "b t t c"]]]]


def encode_tiles(slide: Slide, plan: Plan, encoder: Encoder, settings: Settings) -> FeatureSource:
    """Give features by reading a slide's tiles and encoding them."""

    def encode(tiles: list[Tile]) -> Iterator[tuple[list[Tile], Float[jax.Array, "b t t c"]]]:
        boxes = [plan.grid.locate_tile(*tile) for tile in tiles]
        for batch, images in read_batches(
            slide,
            boxes,
            plan.mpp,
            batch=choose_batch(settings.batch, plan.grid.tile),
            threads=choose_threads(settings.threads),
            recolour=None if plan.gains is None else partial(recolour, gains=plan.gains),
        ):
            features = encoder(jnp.asarray(images))
            yield tiles[batch], _round_and_clear(features, batch.stop - batch.start, settings.features)

    return encode


@partial(jax.jit, static_argnames="dtype")
def _round_and_clear(
    features: Float[jax.Array, "b t t c"], count: jax.Array | int, dtype: str
) -> Float[jax.Array, "b t t c"]:
    """Round features, and set all but the first ``count`` tiles to 0: results must not depend on padding."""
    is_tile = jnp.arange(features.shape[0]) < count
    return jnp.where(is_tile[:, None, None, None], features, 0).astype(dtype)


def not_finite_error(plan: Plan, card: EncoderCard, tile: Tile) -> InputError:
    """Make the error for features of a tile that hold a NaN or an infinity."""
    y, x, *_ = plan.grid.locate_core(*tile)
    return InputError(
        f"{plan.slide.path}: the features of the encoder {card.name!r} hold a NaN or an infinity in "
        f"the tile at y = {y}, x = {x} (at {plan.mpp:g} µm per pixel): its weights are damaged, or its dtype "
        "too narrow"
    )


def open_writer(folder: Path, plan: Plan, card: EncoderCard, features_hash: str, dtype: str) -> RowsWriter:
    """Open the group that keeps a slide's features, tile after tile in the order of the plan.

    ``features_hash`` identifies the settings that features depend on; ``dtype`` is the encoder's.
    """
    tiles = np.array(plan.tiles(), np.int32)
    side = plan.grid.tile // plan.grid.stride
    provenance = {
        "format": KEPT_FORMAT,
        "features_hash": features_hash,
        "dtype": dtype,
        "name": plan.name,
        "slide": plan.slide.to_json(),
        "encoder": card.to_json(),
        "mpp": plan.mpp,
        "grid": asdict(plan.grid),
        "tissue_mpp": plan.tissue.mpp,
        "artefacts_known": plan.tissue.artefacts is not None,
        "image_mpp": plan.image_mpp,
        "gains": plan.gains,
    }
    artefacts = plan.tissue.artefacts
    small_arrays: dict[str, np.ndarray] = {
        "tiles": tiles,
        "tissue": plan.tissue.mask.astype(np.uint8),
        "artefacts": np.zeros(plan.tissue.mask.shape, np.uint8) if artefacts is None else artefacts,
        "image": plan.image,
    }
    shape = (len(tiles), side, side, card.channels)
    path = folder / f"{plan.name}{KEPT_SUFFIX}"
    return RowsWriter(
        path, "tokens", shape, ml_dtypes.bfloat16, small_arrays=small_arrays, provenance=provenance
    )


def keep_features(source: FeatureSource, writer: RowsWriter) -> FeatureSource:
    """Give the same features, and write them down as they pass."""

    def pass_on(tiles: list[Tile]) -> Iterator[tuple[list[Tile], Float[jax.Array, "b t t c"]]]:
        for batch, features in source(tiles):
            writer.append(np.asarray(features)[: len(batch)])
            yield batch, features

    return pass_on


class KeptFeatures(NamedTuple):
    """A slide's kept features.

    Attributes:
        plan: The slide, laid out as it was.
        rows: A tensorstore (tiles, t, t, c), a row for each tile, whose values have not been read.
        tiles: int (tiles, 2), the tile (row, column) of each row.
        provenance: What they were made with.
        place: Where they are, for messages.
    """

    plan: Plan
    rows: Any
    tiles: np.ndarray
    provenance: dict[str, Any]
    place: str


def read_kept(storage: Storage, name: str) -> KeptFeatures:
    """Read how a slide's kept features were laid out, and what made them, but no features.

    Raises:
        InputError: There are none, or they are damaged.
    """
    place = f"{storage.url}/{name}{KEPT_SUFFIX}"
    try:
        rows, arrays, provenance = open_rows(
            storage.make_spec(f"{name}{KEPT_SUFFIX}"),
            "tokens",
            ("tiles", "tissue", "artefacts", "image"),
            where=place,
        )
        grid = TileGrid(**provenance["grid"])
        tissue_tiles = np.zeros((grid.rows, grid.columns), bool)
        tissue_tiles[tuple(arrays["tiles"].T)] = True
        plan = Plan(
            name,
            SlideFacts.from_json(provenance["slide"]),
            provenance["mpp"],
            grid,
            Tissue(
                arrays["tissue"].astype(bool),
                provenance["tissue_mpp"],
                arrays["artefacts"] if provenance["artefacts_known"] else None,
            ),
            tissue_tiles,
            arrays["image"],
            provenance["image_mpp"],
            None if provenance["gains"] is None else (*provenance["gains"],),
        )
        if len(rows.shape) != 4 or rows.shape[0] != len(arrays["tiles"]) or "features_hash" not in provenance:
            raise ValueError("its arrays contradict each other")
    except OutputError:  # the store does not answer
        raise
    except (OSError, ValueError, LookupError, TypeError, InputError):
        raise InputError(f"{place}: no finished features; run with --keep-features first") from None
    return KeptFeatures(plan, rows, arrays["tiles"], provenance, place)


def read_rows(kept: KeptFeatures, at: Any) -> np.ndarray:
    """Read rows of kept features: (n, t, t, c).

    Raises:
        InputError: They are damaged.
    """
    try:
        part = kept.rows[at]
        size = math.prod(part.shape) * part.dtype.numpy_dtype.itemsize
        (values,) = wait_for_store(kept.place, part.read(), size=size)
    except (OSError, ValueError, RuntimeError):
        raise InputError(f"{kept.place}: damaged; run with --keep-features again") from None
    return np.asarray(values)


def open_kept(
    storage: Storage, name: str, settings: Settings, features_hash: str
) -> tuple[Plan, FeatureSource]:
    """Open a slide's kept features: the slide laid out as it was, and its features.

    Raises:
        InputError: There are none, or they were kept with other settings.
    """
    kept = read_kept(storage, name)
    if kept.provenance["features_hash"] != features_hash:
        raise InputError(f"{kept.place}: kept with other settings; run with --keep-features again")
    index = {(int(row), int(column)): i for i, (row, column) in enumerate(kept.tiles)}

    def read(tiles: list[Tile]) -> Iterator[tuple[list[Tile], Float[jax.Array, "b t t c"]]]:
        size = choose_batch(settings.batch, kept.plan.grid.tile)
        for start in range(0, len(tiles), size):
            batch = tiles[start : start + size]
            at = [index[tile] for tile in batch]
            is_run = at == list(range(at[0], at[0] + len(at)))
            values = read_rows(kept, slice(at[0], at[-1] + 1) if is_run else at)
            padded = np.zeros((size, *values.shape[1:]), values.dtype)
            padded[: len(values)] = values
            yield batch, jnp.asarray(padded)

    return kept.plan, read


def bound_kept_bytes(
    slides: Sequence[tuple[Path, float | None, int | None]], card: EncoderCard, settings: Settings
) -> int:
    """Bound the bytes of the kept features of slides: their size were all of each slide tissue.

    ``slides`` are paths, each with the µm per pixel to use in place of the file's, and which of its images to
    read. Only headers are read; a slide that cannot be opened counts nothing.
    """
    tile = settings.tile or card.tile
    side = tile // card.stride

    def bound(slide: tuple[Path, float | None, int | None]) -> int:
        path, mpp_override, series = slide
        try:
            with open_slide(path, mpp_override, frame=settings.frame, series=series) as opened:
                height, width = compute_shape(opened, settings.mpp or card.mpp)
        except InputError:
            return 0
        grid = make_grid(height, width, card.stride, tile, settings.halo)
        return grid.rows * grid.columns * side * side * card.channels * 2

    with ThreadPoolExecutor(_HEADERS_AT_ONCE) as pool:
        return sum(pool.map(bound, slides))
