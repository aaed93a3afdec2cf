"""A slide's labels from its tiles' features: factorize each tile, blend neighbours, label pixels, row by row.

Of the slide, a few rows of tiles are in memory, on the device (``tile_ring``): what is copied from there is
labels, and of each token the cluster that leads.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt

from fseg_jax.codebook import Codebook
from fseg_jax.encoders.encoder import EncoderCard
from fseg_jax.methods import fseg
from fseg_jax.numerics.prefetch import prefetch
from fseg_jax.numerics.smoothing import PASSES, Likeness, choose_radius, measure_likeness, smooth
from fseg_jax.numerics.typical import find_leaders
from fseg_jax.outputs.labels import choose_label_dtype
from fseg_jax.pipeline.batching import choose_blocks
from fseg_jax.pipeline.plan import Plan, Settings, Tile, choose_mixtures, choose_smoothing
from fseg_jax.pipeline.tile_ring import TileRing
from fseg_jax.pipeline.tokens import FeatureSource, not_finite_error
from fseg_jax.pipeline.typical import TypicalPlaces
from fseg_jax.process import Progress
from fseg_jax.slides.tissue import Tissue


@dataclass
class Shortfall:
    """What a slide's labels lack, counted while they are made.

    Attributes:
        tokens: Tokens of tissue that the factorization has not converged for.
        pixels: Pixels of tissue where no cluster has any weight.
    """

    tokens: int = 0
    pixels: int = 0


def label_rows(
    plan: Plan,
    source: FeatureSource,
    card: EncoderCard,
    codebook: Codebook,
    settings: Settings,
    progress: Progress,
    shortfall: Shortfall,
    typical: TypicalPlaces | None = None,
) -> Iterator[UInt[np.ndarray, "n width"]]:
    """Yield the slide's labels from top to bottom, a row of tiles at a time.

    A thread makes them while the rows below are factorized. Adds to ``shortfall`` and to ``typical``.

    Raises:
        InputError: A feature is not finite.
    """
    grid = plan.grid
    centers = jnp.asarray(codebook.centers)
    mixtures = choose_mixtures(settings, codebook)
    others = None if mixtures is None else jnp.asarray(mixtures)
    key = jax.random.key(settings.seed)
    tiles = plan.tiles()
    tissue = plan.tissue.drop_artefacts() if settings.artefacts == "drop" else plan.tissue
    likeness = measure_likeness(codebook.centers)
    ring = TileRing(plan, codebook.k)
    done, next_row = 0, 0

    def factorize() -> Iterator[tuple[list[Tile], fseg.TileWeights]]:
        for batch, features in source(tiles):
            yield (
                batch,
                fseg.solve_tiles(
                    features,
                    centers,
                    key,
                    mode=settings.mode,
                    concepts=settings.concepts,
                    mixtures=others,
                ),
            )

    def start_finished_rows() -> Iterator[Future[UInt[np.ndarray, "n width"]]]:
        """Start on the rows whose tiles, and those of the row below, are all factorized."""
        nonlocal next_row
        pending = tiles[done][0] if done < len(tiles) else grid.rows + 1
        while next_row < grid.rows and next_row + 1 < pending:
            yield pool.submit(
                _label_row, plan, ring, next_row, tissue, likeness, settings, shortfall, typical
            )
            next_row += 1

    def start_rows() -> Iterator[Future[UInt[np.ndarray, "n width"]]]:
        nonlocal done
        progress("segmentation", 0, len(tiles))
        for batch, result in prefetch(factorize()):
            ring.store(result.W, done)
            for tile, finite, converged in zip(
                batch, np.asarray(result.finite), np.asarray(result.converged), strict=False
            ):
                if not finite:
                    raise not_finite_error(plan, card, tile)
                if not converged.all():
                    shortfall.tokens += int((~converged & plan.core_mask(*tile)).sum())
            done += len(batch)
            progress("segmentation", done, len(tiles))
            yield from start_finished_rows()
        yield from start_finished_rows()

    with ThreadPoolExecutor(1, thread_name_prefix="fseg-labels") as pool:
        for labels in prefetch(start_rows()):
            yield labels.result()


def _label_row(
    plan: Plan,
    ring: TileRing,
    row: int,
    labelled: Tissue,
    likeness: Likeness,
    settings: Settings,
    shortfall: Shortfall,
    typical: TypicalPlaces | None,
) -> UInt[np.ndarray, "n width"]:
    """Label one row of tiles: blended, smoothed, upsampled, and background where there is no tissue."""
    grid = plan.grid
    stride, k = grid.stride, len(likeness.root)
    top, _, height, _ = grid.locate_core(row, 0)
    labels = np.zeros((height, grid.width), choose_label_dtype(k))
    columns = np.flatnonzero(plan.tissue_tiles[row])
    tokens = (-(-height // stride), -(-grid.width // stride))
    leaders, shares = np.zeros(tokens, np.uint16), np.zeros(tokens, np.uint8)
    # Blocks go to the device in batches of one size, bounded so that k × pixels stays small.
    sigma = choose_smoothing(settings, plan.mpp, stride) / (plan.mpp * stride)  # in tokens
    radius = choose_radius(sigma, grid.pitch // stride // PASSES)
    frame = 1 + PASSES * radius
    side = grid.pitch // stride + 2 * frame
    batch = choose_blocks(side * side * k)

    def label_blocks() -> Iterator[tuple[Int[np.ndarray, " b"], tuple[UInt[jax.Array, "b _ _"], ...]]]:
        for start in range(0, len(columns), batch):
            part = columns[start : start + batch]
            W = ring.blend(row, part, batch, frame)
            if radius:
                tissue = np.zeros((batch, side, side), np.float32)
                for i, column in enumerate(part):
                    y, x, *_ = grid.locate_core(row, int(column))
                    tissue[i] = labelled.crop(
                        y // stride - frame, x // stride - frame, side, side, plan.mpp * stride
                    )
                W = smooth(W, jnp.asarray(tissue), likeness, sigma, radius)
            yield part, (fseg.label_pixels(W, stride, settings.resize), *find_leaders(W))

    for part, results in prefetch(label_blocks()):
        for column, block, leader, share in zip(part, *map(np.asarray, results), strict=False):
            _, x, h, w = grid.locate_core(row, int(column))
            y_tokens, x_tokens = -(-h // stride), -(-w // stride)
            at = np.s_[:, x // stride : x // stride + x_tokens]
            leaders[at], shares[at] = leader[:y_tokens, :x_tokens], share[:y_tokens, :x_tokens]
            tissue = labelled.crop(top, x, h, w, plan.mpp)
            inside = block[:h, :w]
            if not inside.all():
                shortfall.pixels += int((tissue & (inside == 0)).sum())
            np.multiply(inside, tissue, out=labels[:, x : x + w])  # thirty times as fast as a where
    if typical is not None:
        typical.append(leaders, shares)
    return labels
