"""A dataset's images cut into tiles and encoded once, on disk beside their truth.

Images are worked on at the encoder's resolution, where theirs is known; the truth is then sampled at the
same pixels (nearest). An image larger than a tile is cut into tiles; those at its right and lower edges are
moved back inside it, and pixels that two tiles share count once. A smaller one is a tile by itself, its edges
replicated up to a multiple of the stride, as ``fseg.segment`` does. Nothing is kept in memory but a batch.

Where tiles have more than three shapes, all but the largest are worked on in one frame that holds them, so
that not every shape compiles anew; ``encode_framed`` makes sure that this changes no features.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from fseg_jax.encoders.encoder import Encoder, EncoderCard, encode_framed
from fseg_jax.errors import InputError
from fseg_jax.evaluation.data.datasets import Dataset, Item
from fseg_jax.evaluation.data.mask_codes import IGNORED
from fseg_jax.process import Progress
from fseg_jax.slides.stain_normalization import NO_GAINS, Gains, measure_gains, recolour

Shape = tuple[int, int]  # (rows, columns), tokens
_BATCH_PIXELS = 2**19  # pixels of the images that are encoded or labelled at once
_PIXELS_MEASURED = 2**16  # of an image, about, of which its stain is measured
_PLAIN_SHAPES = 3  # shapes of tiles up to which each is worked on as it is


class Frame(NamedTuple):
    """The shape that tiles are worked on in."""

    shape: Shape
    shared: bool  # whether some of its tiles are smaller


class Tile(NamedTuple):
    """A tile of an image."""

    item: int  # index of the image
    y: int  # top, pixels
    x: int  # left, pixels
    rows: int  # tokens
    columns: int  # tokens
    offset: int  # of its first token on disk


class Batch(NamedTuple):
    """Tiles of one frame. Where they do not fill the batch, the last one is repeated."""

    tiles: list[int]  # their indices, without repetitions
    tokens: Float[np.ndarray, "b n c"]  # features: a tile's tokens first, zero beyond
    sizes: Int[np.ndarray, "b 2"]  # (rows, columns) of each tile, tokens
    frame: Shape


@dataclass(frozen=True, eq=False)
class EncodedDataset:
    """A dataset's features and truth, tile by tile, as memory-mapped files."""

    card: EncoderCard
    tiles: list[Tile]
    features: Float[np.ndarray, "tokens c"]
    truth: UInt8[np.ndarray, " pixels"]  # stride² pixels a token, tile by tile
    means: Float[np.ndarray, "tiles c"]  # each tile's features averaged over its area (F-SEG §3.3)
    item_of: Int[np.ndarray, " tiles"]  # index of each tile's image
    is_train: Bool[np.ndarray, " tiles"]  # whether each tile is of the training split
    sizes: list[tuple[int, int]]  # (height, width) that each image was worked on at, pixels

    def tokens(self, tile_index: int) -> Float[np.ndarray, "h w c"]:
        """Return the features of one tile."""
        tile = self.tiles[tile_index]
        flat = self.features[tile.offset : tile.offset + tile.rows * tile.columns]
        return flat.reshape(tile.rows, tile.columns, -1)

    def categories(self, tile_index: int) -> UInt8[np.ndarray, "height width"]:
        """Return the truth of one tile's pixels; ``IGNORED`` where another tile counts them."""
        tile, stride = self.tiles[tile_index], self.card.stride
        area = stride * stride
        flat = self.truth[tile.offset * area : (tile.offset + tile.rows * tile.columns) * area]
        return flat.reshape(tile.rows * stride, tile.columns * stride)

    def batches(self, item: int | None = None) -> Iterator[Batch]:
        """Yield the tiles of one frame after the other, of all images or of one.

        All batches of a frame have one shape, so that nothing recompiles.
        """
        frames = assign_frames((tile.rows, tile.columns) for tile in self.tiles)
        tiles_of: dict[Frame, list[int]] = {}
        for index, tile in enumerate(self.tiles):
            tiles_of.setdefault(frames[tile.rows, tile.columns], []).append(index)
        for (shape, _), in_frame in tiles_of.items():
            area = shape[0] * shape[1]
            size = min(len(in_frame), _batch_size(area * self.card.stride**2))
            wanted = [index for index in in_frame if item is None or self.item_of[index] == item]
            for begin in range(0, len(wanted), size):
                yield self._gather(wanted[begin : begin + size], size, shape)

    def sample(self, limit: int, seed: int) -> Float[np.ndarray, "s c"]:
        """Draw at most ``limit`` tokens of the training tiles, as many from each tile."""
        rng = np.random.default_rng(seed)
        training = np.flatnonzero(self.is_train)
        share = max(1, limit // len(training))
        parts = []
        for index in rng.permutation(training)[:limit]:
            tokens = self.tokens(int(index))
            tokens = tokens.reshape(-1, tokens.shape[-1])
            parts.append(tokens[rng.permutation(len(tokens))[:share]])
        return np.concatenate(parts)

    def _gather(self, indices: list[int], size: int, frame: Shape) -> Batch:
        tokens = np.zeros((size, frame[0] * frame[1], self.card.channels), np.float32)
        sizes = np.zeros((size, 2), np.int32)
        for i, index in enumerate(indices + indices[-1:] * (size - len(indices))):
            sizes[i] = rows, columns = self.tiles[index].rows, self.tiles[index].columns
            tokens[i, : rows * columns] = self.tokens(index).reshape(rows * columns, -1)
        return Batch(indices, tokens, sizes, frame)


def encode_dataset(
    dataset: Dataset,
    encoder: Encoder,
    folder: Path,
    *,
    scale: float = 1.0,
    tile: int | None = None,
    stain_normalization: bool | None = None,
    progress: Progress | None = None,
) -> EncodedDataset:
    """Encode every image of a dataset, once, into files in ``folder``.

    Args:
        dataset: Images with truth.
        encoder: What encodes them.
        folder: Where the files ``features`` and ``truth`` are written.
        scale: What the images' sides are multiplied by.
        tile: Side of a tile in pixels, made a multiple of the stride; the encoder's own if it is left out.
        stain_normalization: Whether images get the colours of a standard stain, by the tissue in all images
            of their case; as suits the encoder if it is left out.
        progress: Is told of each image.

    Raises:
        InputError: A tile is smaller than the stride, an image cannot be read, or features are not finite.
    """
    card, stride = encoder.card, encoder.card.stride
    side = (tile or card.tile) // stride * stride
    if side < stride:
        raise InputError(f"--tile {tile}: the encoder {card.name!r} needs {stride} pixels or more")
    sizes = [
        (max(1, round(scale * item.size[0])), max(1, round(scale * item.size[1]))) for item in dataset.items
    ]
    plans = [_plan_tiles(size, side, stride) for size in sizes]
    shapes = [(y.tokens, x.tokens) for plan in plans for y, x in plan]
    count = sum(rows * columns for rows, columns in shapes)
    features = np.memmap(folder / "features", np.float32, "w+", shape=(count, card.channels))
    truth = np.memmap(folder / "truth", np.uint8, "w+", shape=count * stride**2)
    means = np.zeros((len(shapes), card.channels), np.float32)
    queue = _EncodingQueue(dataset, encoder, assign_frames(shapes), features, means)
    if card.stain_normalization if stain_normalization is None else stain_normalization:
        gains = measure_cases(dataset)
    else:
        gains = dict.fromkeys((item.case for item in dataset.items), NO_GAINS)
    tiles: list[Tile] = []
    offset = 0
    for n, (item, size, plan) in enumerate(zip(dataset.items, sizes, plans, strict=True)):
        image, categories = read_resized(dataset, item, size)
        image = recolour(image, gains[item.case])
        for y, x in plan:
            at = Tile(n, y.start, x.start, y.tokens, x.tokens, offset)
            tile_truth = _cut_truth(categories, y, x, stride).reshape(-1)
            truth[offset * stride**2 :][: tile_truth.size] = tile_truth
            part = image[y.start : y.start + y.tokens * stride, x.start : x.start + x.tokens * stride]
            queue.add(len(tiles), at, part)
            tiles.append(at)
            offset += y.tokens * x.tokens
        if progress:
            progress(f"encode {card.name}", n + 1, len(dataset.items))
    queue.finish()
    item_of = np.array([at.item for at in tiles])
    is_train = np.array([dataset.items[n].split == "train" for n in item_of])
    return EncodedDataset(card, tiles, features, truth, means, item_of, is_train, sizes)


def measure_cases(dataset: Dataset) -> dict[str, Gains]:
    """Measure the gains that give each case the colours of a standard stain, on all its images."""
    pixels: dict[str, list[UInt8[np.ndarray, "n 3"]]] = {}
    for item in dataset.items:
        image = dataset.read_image(item)
        step = max(1, math.isqrt(image.shape[0] * image.shape[1] // _PIXELS_MEASURED))
        pixels.setdefault(item.case, []).append(image[::step, ::step].reshape(-1, 3))
    return {case: measure_gains(np.concatenate(parts)) for case, parts in pixels.items()}


class _Waiting(NamedTuple):
    """A tile that waits for its batch: its number among all tiles, and its pixels, padded to its frame."""

    number: int
    tile: Tile
    pixels: UInt8[np.ndarray, "height width 3"]


class _EncodingQueue:
    """Tiles that wait until a batch of their frame is full; it is then encoded into ``features``."""

    def __init__(
        self,
        dataset: Dataset,
        encoder: Encoder,
        frames: dict[Shape, Frame],
        features: Float[np.ndarray, "tokens c"],
        means: Float[np.ndarray, "tiles c"],
    ):
        self._dataset, self._encoder, self._frames = dataset, encoder, frames
        self._features, self._means = features, means
        self._waiting: dict[Frame, list[_Waiting]] = {}
        self._compiled: set[Frame] = set()  # frames of which a full batch was encoded

    def add(self, number: int, tile: Tile, pixels: UInt8[np.ndarray, "height width 3"]) -> None:
        """Queue a tile, its edges replicated to fill its frame, and encode the batch if it is full."""
        frame = self._frames[tile.rows, tile.columns]
        height, width = (tokens * self._encoder.card.stride for tokens in frame.shape)
        padding = [(0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0)]
        waiting = self._waiting.setdefault(frame, [])
        waiting.append(_Waiting(number, tile, np.pad(pixels, padding, mode="edge")))
        if len(waiting) == _batch_size(height * width):
            self._encode(frame, len(waiting))
            self._compiled.add(frame)

    def finish(self) -> None:
        """Encode all that wait. Only a frame that has a program for full batches fills them."""
        for frame, waiting in list(self._waiting.items()):
            full = _batch_size(frame.shape[0] * frame.shape[1] * self._encoder.card.stride**2)
            self._encode(frame, full if frame in self._compiled else len(waiting))

    def _encode(self, frame: Frame, size: int) -> None:
        card = self._encoder.card
        batch = self._waiting.pop(frame)
        padded = batch + batch[-1:] * (size - len(batch))
        images = jnp.asarray(np.stack([waiting.pixels for waiting in padded]))
        if frame.shared:
            tokens = np.array([(each.tile.rows, each.tile.columns) for each in padded], np.int32)
            grids = np.asarray(encode_framed(self._encoder, images, tokens * card.stride))
        else:
            grids = np.asarray(self._encoder(images))
        for (number, tile, _), grid in zip(batch, grids, strict=False):
            features = grid[: tile.rows, : tile.columns]
            if not np.isfinite(features).all():
                name = self._dataset.items[tile.item].name
                raise InputError(
                    f"{name}: the features of {card.name!r} hold a NaN or an infinity: remove it"
                )
            end = tile.offset + tile.rows * tile.columns
            self._features[tile.offset : end] = features.reshape(-1, card.channels)
            self._means[number] = features.mean((0, 1))


def assign_frames(shapes: Iterable[Shape]) -> dict[Shape, Frame]:
    """Assign a frame to each shape of tiles.

    With three shapes or fewer each is its own frame. With more, all but the largest share one.
    """
    distinct = sorted(set(shapes))
    largest = (max(rows for rows, _ in distinct), max(columns for _, columns in distinct))
    others = [shape for shape in distinct if shape != largest]
    if len(distinct) <= _PLAIN_SHAPES:
        return {shape: Frame(shape, False) for shape in distinct}
    shared = Frame((max(rows for rows, _ in others), max(columns for _, columns in others)), True)
    return {largest: Frame(largest, False)} | dict.fromkeys(others, shared)


def read_resized(
    dataset: Dataset, item: Item, size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "height width 3"], UInt8[np.ndarray, "height width"]]:
    """Read an image and its truth, and resize them to a height and width: Lanczos, and nearest."""
    image, categories = dataset.read_image(item), dataset.read_truth(item)
    if image.shape[:2] == size:
        return image, categories
    resized = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))
    rows, columns = (
        ((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(size, categories.shape, strict=True)
    )
    return resized, categories[rows[:, None], columns[None]]


class _Span(NamedTuple):
    """A tile along one axis."""

    start: int  # first pixel
    tokens: int  # length
    counted: int  # pixels at its start that the tile before it counts


def _plan_tiles(size: tuple[int, int], side: int, stride: int) -> list[tuple[_Span, _Span]]:
    """Cut an image of ``size`` pixels into tiles of ``side`` pixels: their spans along y and x."""

    def spans(length: int) -> list[_Span]:
        if length <= side:
            return [_Span(0, -(-length // stride), 0)]
        starts = [*range(0, length - side, side), length - side]
        ends = [0, *(start + side for start in starts[:-1])]
        return [
            _Span(start, side // stride, end - start if end else 0)
            for start, end in zip(starts, ends, strict=True)
        ]

    return [(y, x) for y in spans(size[0]) for x in spans(size[1])]


def _cut_truth(
    categories: UInt8[np.ndarray, "height width"], y: _Span, x: _Span, stride: int
) -> UInt8[np.ndarray, "_ _"]:
    """Cut a tile's truth: ``IGNORED`` beyond the image, and where the tile before counts the pixel."""
    tile_truth = np.full((y.tokens * stride, x.tokens * stride), IGNORED, np.uint8)
    inside = categories[y.start : y.start + y.tokens * stride, x.start : x.start + x.tokens * stride]
    height, width = inside.shape
    tile_truth[y.counted : height, x.counted : width] = inside[y.counted :, x.counted :]
    return tile_truth


def _batch_size(pixels: int) -> int:
    return max(1, _BATCH_PIXELS // pixels)
