"""Every image of a dataset, cut into tiles and encoded once, on disk beside its truth.

Images are worked on at the encoder's resolution, where theirs is known; the truth is then sampled at the
same pixels (nearest). An image larger than a tile is cut into tiles; those at its right and lower edges are
moved back inside it, and pixels that two tiles share count once. A smaller one is a tile by itself, its edges
replicated up to a multiple of the stride, as ``fseg_jax.segment`` does. Nothing is kept in memory but a
batch.

Where tiles have more than three shapes, all but the largest are worked on in one frame that holds them, so
that not every shape compiles anew; ``encode_framed`` sees to it that this changes no features.
"""

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
from fseg_jax.evaluation.data.datasets import IGNORED, Dataset, Item
from fseg_jax.process import Progress

_BATCH_PIXELS = 2**19  # of the images that are encoded or labelled at once


Shape = tuple[int, int]  # in tokens
_SHAPES = 3  # of tiles that are taken as they are


class Frame(NamedTuple):
    """The shape that tiles are worked on in, and whether some of them are smaller."""

    shape: Shape
    shared: bool


class Batch(NamedTuple):
    """``tiles``, by number, of one frame, and more rows where they do not fill a batch: their features
    ``tokens (b, n, c)``, a tile's own rows first and zero beyond, and ``sizes (b, 2)`` in tokens.
    """

    tiles: list[int]
    tokens: Float[np.ndarray, "b n c"]
    sizes: Int[np.ndarray, "b 2"]
    frame: Shape


class Tile(NamedTuple):
    """A tile of image ``item``: its corner in pixels, its size in tokens, its first token on disk."""

    item: int
    y: int
    x: int
    rows: int
    columns: int
    offset: int


@dataclass(frozen=True, eq=False)
class Encoded:
    """A dataset's features and truth, tile by tile, as memory-mapped files.

    ``features (tokens, c)`` and ``truth (tokens · stride²)``; ``means (tiles, c)``, the spatial average of
    each tile's features (global average pooling, F-SEG §3.3); ``of`` the item and ``train`` the split of each
    tile; ``sizes`` the height and width that each item was worked on at.
    """

    card: EncoderCard
    tiles: list[Tile]
    features: Float[np.ndarray, "tokens c"]
    truth: UInt8[np.ndarray, " pixels"]
    means: Float[np.ndarray, "tiles c"]
    of: Int[np.ndarray, " tiles"]
    train: Bool[np.ndarray, " tiles"]
    sizes: list[tuple[int, int]]

    def tokens(self, t: int) -> Float[np.ndarray, "h w c"]:
        tile = self.tiles[t]
        flat = self.features[tile.offset : tile.offset + tile.rows * tile.columns]
        return flat.reshape(tile.rows, tile.columns, -1)

    def categories(self, t: int) -> UInt8[np.ndarray, "height width"]:
        tile, stride = self.tiles[t], self.card.stride
        area = stride * stride
        flat = self.truth[tile.offset * area : (tile.offset + tile.rows * tile.columns) * area]
        return flat.reshape(tile.rows * stride, tile.columns * stride)

    def batches(self, item: int | None = None) -> Iterator[Batch]:
        """Tiles of one frame at a time, of all images or one; the last batch is padded by repetition, so that
        nothing recompiles.
        """
        frames = frames_of((tile.rows, tile.columns) for tile in self.tiles)
        members: dict[Frame, list[int]] = {}
        for t, tile in enumerate(self.tiles):
            members.setdefault(frames[tile.rows, tile.columns], []).append(t)
        for (shape, _), tiles in members.items():
            area = shape[0] * shape[1]
            size = min(len(tiles), _batch(area * self.card.stride**2))
            wanted = [t for t in tiles if item is None or self.of[t] == item]
            for begin in range(0, len(wanted), size):
                chosen = wanted[begin : begin + size]
                tokens = np.zeros((size, area, self.card.channels), np.float32)
                sizes = np.zeros((size, 2), np.int32)
                for i, t in enumerate(chosen + chosen[-1:] * (size - len(chosen))):
                    sizes[i] = rows, columns = self.tiles[t].rows, self.tiles[t].columns
                    tokens[i, : rows * columns] = self.tokens(t).reshape(rows * columns, -1)
                yield Batch(chosen, tokens, sizes, shape)

    def sample(self, most: int, seed: int) -> Float[np.ndarray, "s c"]:
        """At most so many tokens of the training tiles, as many of each tile, drawn by the seed."""
        rng = np.random.default_rng(seed)
        chosen = np.flatnonzero(self.train)
        share = max(1, most // len(chosen))
        drawn = []
        for t in rng.permutation(chosen)[:most]:
            tokens = self.tokens(int(t))
            tokens = tokens.reshape(-1, tokens.shape[-1])
            drawn.append(tokens[rng.permutation(len(tokens))[:share]])
        return np.concatenate(drawn)


def encode(
    dataset: Dataset,
    encoder: Encoder,
    folder: Path,
    *,
    scale: float = 1.0,
    tile: int | None = None,
    report: Progress | None = None,
) -> Encoded:
    """Encode every image of a dataset, once, into files in ``folder``.

    ``scale`` is what images are resized by; ``tile`` the side of a tile in pixels (the encoder's own), made a
    multiple of the stride. Raises InputError for an image that cannot be read, and for features that are not
    finite.
    """
    card = encoder.card
    side = (tile or card.tile) // card.stride * card.stride
    if side < card.stride:
        raise InputError(f"--tile {tile}: the encoder {card.name!r} needs {card.stride} pixels or more")
    sizes = [
        (max(1, round(scale * item.size[0])), max(1, round(scale * item.size[1]))) for item in dataset.items
    ]
    plans = [_cut(size, side, card.stride) for size in sizes]
    tokens = sum(rows * columns for plan in plans for (_, rows, _), (_, columns, _) in plan)
    features = np.memmap(folder / "features", np.float32, "w+", shape=(tokens, card.channels))
    truth = np.memmap(folder / "truth", np.uint8, "w+", shape=tokens * card.stride**2)
    tiles: list[Tile] = []
    frames = frames_of((rows, columns) for plan in plans for (_, rows, _), (_, columns, _) in plan)
    waiting: dict[Frame, list[tuple[Tile, np.ndarray]]] = {}
    means = np.zeros((sum(len(plan) for plan in plans), card.channels), np.float32)
    place: dict[int, int] = {}  # of a tile's first token: its number

    def flush(frame: Frame, size: int) -> None:
        batch = waiting.pop(frame)
        padded = batch + batch[-1:] * (size - len(batch))
        images = jnp.asarray(np.stack([image for _, image in padded]))
        if frame.shared:
            of_tiles = np.array([(at.rows, at.columns) for at, _ in padded], np.int32)
            grid = np.asarray(encode_framed(encoder, images, of_tiles * card.stride))
        else:
            grid = np.asarray(encoder(images))
        for (at, _), found in zip(batch, grid, strict=False):
            own = found[: at.rows, : at.columns]
            if not np.isfinite(own).all():
                name = dataset.items[at.item].name
                raise InputError(
                    f"{name}: the features of {card.name!r} hold a NaN or an infinity: remove it"
                )
            features[at.offset : at.offset + at.rows * at.columns] = own.reshape(-1, card.channels)
            means[place[at.offset]] = own.mean((0, 1))

    offset = 0
    full: set[Frame] = set()
    for n, (item, size, plan) in enumerate(zip(dataset.items, sizes, plans, strict=True)):
        image, categories = working(dataset, item, size)
        for (y, rows, fresh_y), (x, columns, fresh_x) in plan:
            at = Tile(n, y, x, rows, columns, offset)
            place[offset] = len(tiles)
            tiles.append(at)
            height, width = rows * card.stride, columns * card.stride
            inside = image[y : y + height, x : x + width]
            own = np.full((height, width), IGNORED, np.uint8)
            seen = categories[y : y + height, x : x + width]
            own[fresh_y : seen.shape[0], fresh_x : seen.shape[1]] = seen[fresh_y:, fresh_x:]
            truth[offset * card.stride**2 :][: own.size] = own.reshape(-1)
            offset += rows * columns
            frame = frames[rows, columns]
            tall, wide = (side * card.stride for side in frame.shape)
            padding = [(0, tall - inside.shape[0]), (0, wide - inside.shape[1]), (0, 0)]
            waiting.setdefault(frame, []).append((at, np.pad(inside, padding, mode="edge")))
            if len(waiting[frame]) == _batch(tall * wide):
                flush(frame, _batch(tall * wide))
                full.add(frame)
        if report:
            report(f"encode {card.name}", n + 1, len(dataset.items))
    for frame in list(waiting):  # a frame that filled no batch has no program to reuse
        most = _batch(frame.shape[0] * frame.shape[1] * card.stride**2)
        flush(frame, most if frame in full else len(waiting[frame]))
    of = np.array([t.item for t in tiles])
    train = np.array([dataset.items[n].split == "train" for n in of])
    return Encoded(card, tiles, features, truth, means, of, train, sizes)


def frames_of(shapes: Iterable[Shape]) -> dict[Shape, Frame]:
    """The frame of each shape of tiles: itself, or where there are more than three, one for all but the
    largest.
    """
    distinct = sorted(set(shapes))
    largest = (max(rows for rows, _ in distinct), max(columns for _, columns in distinct))
    others = [shape for shape in distinct if shape != largest]
    if len(distinct) <= _SHAPES:
        return {shape: Frame(shape, False) for shape in distinct}
    one = Frame((max(rows for rows, _ in others), max(columns for _, columns in others)), True)
    return {largest: Frame(largest, False)} | dict.fromkeys(others, one)


def working(dataset: Dataset, item: Item, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """An image and its truth at the height and width that are worked on."""
    image, categories = dataset.image(item), dataset.truth(item)
    if image.shape[:2] == size:
        return image, categories
    resized = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))
    rows, columns = (
        ((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(size, categories.shape, strict=True)
    )
    return resized, categories[rows[:, None], columns[None]]


def _cut(
    size: tuple[int, int], side: int, stride: int
) -> list[tuple[tuple[int, int, int], tuple[int, int, int]]]:
    """Where tiles lie: along each axis (first pixel, tokens, how many pixels the tile before has counted)."""

    def along(length: int) -> list[tuple[int, int, int]]:
        if length <= side:
            return [(0, -(-length // stride), 0)]
        starts = [*range(0, length - side, side), length - side]
        seen = [0, *(start + side for start in starts[:-1])]
        return [
            (start, side // stride, end - start) if end else (0, side // stride, 0)
            for start, end in zip(starts, seen, strict=True)
        ]

    return [(y, x) for y in along(size[0]) for x in along(size[1])]


def _batch(pixels: int) -> int:
    return max(1, _BATCH_PIXELS // pixels)
