"""Token features of a slide, kept so that segmenting it again needs neither the slide nor the encoder.

``NAME.features.zarr`` is a group of ``tokens``, bfloat16 (tiles, t, t, c), a row for each tile with its halo,
of which each tile's (row, column) is in ``tiles``; and of the slide ``tissue`` and ``image``, so that what
comes out is what a run on the slide gives, to the last byte.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Float

from fseg_jax.encoders.encoder import EncoderCard
from fseg_jax.errors import InputError
from fseg_jax.files.futures import wait_for_store
from fseg_jax.files.storage import Storage
from fseg_jax.outputs.rows import RowsWriter, open_rows
from fseg_jax.pipeline.segment import Plan, Settings, Tile, Tokens
from fseg_jax.slides.reader import open_slide, shape_at
from fseg_jax.slides.tiles import TileGrid, make_grid
from fseg_jax.slides.tissue import Tissue

FORMAT = 1
SUFFIX = ".features.zarr"
DTYPE = "bfloat16"
_HEADERS_AT_ONCE = 8


def writer(folder: Path, plan: Plan, card: EncoderCard, made: dict[str, Any]) -> RowsWriter:
    """The group that a slide's features go to, tile after tile in the order of the plan."""
    tiles = np.array(plan.tiles(), np.int32)
    side = plan.grid.tile // plan.grid.stride
    provenance = {
        "format": FORMAT,
        **made,
        "name": plan.name,
        "slide": plan.slide,
        "encoder": asdict(card),
        "mpp": plan.mpp,
        "grid": asdict(plan.grid),
        "tissue_mpp": plan.tissue.mpp,
        "image_mpp": plan.image_mpp,
    }
    beside: dict[str, np.ndarray] = {
        "tiles": tiles,
        "tissue": plan.tissue.mask.astype(np.uint8),
        "image": plan.image,
    }
    shape = (len(tiles), side, side, card.channels)
    path = folder / f"{plan.name}{SUFFIX}"
    return RowsWriter(path, "tokens", shape, ml_dtypes.bfloat16, beside=beside, provenance=provenance)


def keeping(tokens: Tokens, kept: RowsWriter) -> Tokens:
    """The same features, written down as they pass."""

    def passing(tiles: list[Tile]) -> Iterator[tuple[list[Tile], Float[jax.Array, "b t t c"]]]:
        for here, features in tokens(tiles):
            kept.append(np.asarray(features)[: len(here)])
            yield here, features

    return passing


def open_kept(storage: Storage, name: str, settings: Settings, features_hash: str) -> tuple[Plan, Tokens]:
    """A slide laid out as it was, and its features from where they are kept.

    Raises ``InputError`` where there are none, or some of other settings.
    """
    where = f"{storage.url}/{name}{SUFFIX}"
    try:
        rows, beside, made = open_rows(
            storage.spec(f"{name}{SUFFIX}"), "tokens", ("tiles", "tissue", "image"), where=where
        )
        same = made["features_hash"] == features_hash
        grid = TileGrid(**made["grid"])
        tissue = Tissue(beside["tissue"].astype(bool), made["tissue_mpp"])
        index = {(int(row), int(column)): i for i, (row, column) in enumerate(beside["tiles"])}
        wanted = np.zeros((grid.rows, grid.columns), bool)
        wanted[tuple(beside["tiles"].T)] = True
        plan = Plan(
            name, made["slide"], made["mpp"], grid, tissue, wanted, beside["image"], made["image_mpp"]
        )
    except (OSError, ValueError, LookupError, TypeError):
        raise InputError(f"{where}: no finished features; run with --keep-features first") from None
    if not same:
        raise InputError(f"{where}: kept with other settings; run with --keep-features again")

    def tokens(tiles: list[Tile]) -> Iterator[tuple[list[Tile], Float[jax.Array, "b t t c"]]]:
        for start in range(0, len(tiles), settings.batch):
            here = tiles[start : start + settings.batch]
            at = [index[tile] for tile in here]
            run = at == list(range(at[0], at[0] + len(at)))
            try:
                part = rows[slice(at[0], at[-1] + 1) if run else at]
                size = math.prod(part.shape) * part.dtype.numpy_dtype.itemsize
                (found,) = wait_for_store(where, part.read(), size=size)
            except (OSError, ValueError, RuntimeError):
                raise InputError(f"{where}: damaged; run with --keep-features again") from None
            out = np.zeros((settings.batch, *found.shape[1:]), found.dtype)
            out[: len(found)] = found
            yield here, jnp.asarray(out)

    return plan, tokens


def at_most(slides: Sequence[tuple[Path, float | None]], card: EncoderCard, settings: Settings) -> int:
    """Bytes of the features of slides (paths, and mpp where it is not the file's), were all of them tissue.

    Only headers are read; what cannot be opened counts nothing.
    """
    tile = settings.tile or card.tile
    side = tile // card.stride

    def one(slide: tuple[Path, float | None]) -> int:
        try:
            with open_slide(*slide) as opened:
                height, width = shape_at(opened, settings.mpp or card.mpp)
        except InputError:
            return 0
        grid = make_grid(height, width, card.stride, tile, settings.halo)
        return grid.rows * grid.columns * side * side * card.channels * 2

    with ThreadPoolExecutor(_HEADERS_AT_ONCE) as pool:
        return sum(pool.map(one, slides))
