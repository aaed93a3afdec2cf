"""The chunks of one level of an OME-Zarr, decoded a few at a time.

A chunk that was never written is what the array's ``fill_value`` says, by the Zarr specifications. But where
nobody chose a value 0 stands there, or nothing, which is no colour of glass: there, a chunk that no channel
has is white, and was not scanned, as in the other formats. Software that leaves out chunks of nothing but 0
leaves out black, which is padding round a scan and no tissue either. A chunk that some channels have is 0 in
the others. Any other ``fill_value`` was chosen, and is shown.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorstore as ts
from jaxtyping import UInt8
from PIL import Image

from fseg_jax.slides.pixels import flatten
from fseg_jax.slides.tile_cache import Tile
from fseg_jax.slides.tile_pyramid import WrittenTiles

_SMALLEST = 256  # pixels of a tile's side: of several chunks, where these are smaller
_AT_ONCE = 32 << 20  # bytes of chunks that are decoded at once
_MOST_TOGETHER = 16
_MOST_LISTED = 1 << 20  # chunks of which it is asked whether each was written
_WHITE = 255


Wait = Callable[[Any], Any]
Area = tuple[slice, slice]  # of y and x


class StoredArray:
    """An array of a Zarr as (y, x, c), whose chunks tensorstore decodes.

    Attributes:
        array: It, as a tensorstore with these axes.
        axes: The axes that it is stored with.
        wait: Waits for an answer of tensorstore.
    """

    def __init__(self, array: ts.TensorStore, axes: Sequence[str], wait: Wait) -> None:
        """Order an array's axes.

        Args:
            array: The array.
            axes: Its axes; those but y, x and c are of one plane.
            wait: Waits for an answer of tensorstore.
        """
        self.axes, self.wait = axes, wait
        for i in reversed([i for i, axis in enumerate(axes) if axis not in "yxc"]):
            array = array[(slice(None),) * i + (0,)]
        order = [axis for axis in axes if axis in "yxc"]
        if "c" not in order:
            array, order = array[..., ts.newaxis], [*order, "c"]
        self.array: Any = array.transpose([order.index("y"), order.index("x"), order.index("c")])

    def begin(self, area: Area) -> Callable[[], UInt8[np.ndarray, "height width channels"]]:
        """Begin to read an area; return a function that waits for it."""
        future = self.array[area].read()
        return lambda: self.wait(future)


class ZarrLevel:
    """One level of a picture, as ``tile_pyramid.TiledLevel`` describes it: a tile is a chunk or several."""

    mapped: np.ndarray | None = None
    samples = 3

    def __init__(self, stored: StoredArray, channels: Sequence[int], *, is_local: bool) -> None:
        """Describe a level.

        Args:
            stored: Its array.
            channels: Those that are grey, or red, green and blue, or these and alpha.
            is_local: Whether the array is on a disk, where a list of its chunks costs little.
        """
        self._stored, self._channels, self._is_local = stored, list(channels), is_local
        array = stored.array
        self.shape = (int(array.shape[0]), int(array.shape[1]))
        self._chunk = tuple(
            max(1, min(int(chunk), side))
            for chunk, side in zip(array.chunk_layout.read_chunk.shape[:2], self.shape, strict=True)
        )
        height, width = (chunk * max(1, -(-_SMALLEST // chunk)) for chunk in self._chunk)
        self.tile = (min(height, self.shape[0]), min(width, self.shape[1]))
        self.rows, self.columns = -(-self.shape[0] // self.tile[0]), -(-self.shape[1] // self.tile[1])
        size = self.tile[0] * self.tile[1] * int(array.shape[2])
        self.together = max(1, min(_MOST_TOGETHER, _AT_ONCE // size))
        fill = array.fill_value
        self._is_white_unwritten = fill is None or not np.any(fill)

    def decode(self, places: Sequence[tuple[int, int]]) -> Iterator[Tile]:
        """Decode the tiles at some rows and columns, all at once; transparent pixels become white."""
        height, width = self.tile
        boxes = [self._find_box(row * height, column * width, self.tile) for row, column in places]
        for box, finish in [(box, self._stored.begin(box)) for box in boxes]:
            yield self._compose(box, finish())

    def _find_box(self, y: int, x: int, side: Sequence[int]) -> Area:
        return slice(y, min(y + side[0], self.shape[0])), slice(x, min(x + side[1], self.shape[1]))

    def _compose(
        self, box: Area, stored: UInt8[np.ndarray, "height width channels"]
    ) -> UInt8[np.ndarray, "height width 3"]:
        height, width, count = stored.shape
        if self._channels == list(range(count)) and count > 1 and stored.flags.c_contiguous:
            pixels = stored
        else:
            chosen = self._channels if len(self._channels) > 1 else 3 * self._channels
            pixels = np.empty((height, width, len(chosen)), np.uint8)
            for i, channel in enumerate(chosen):  # several times as fast as all at once
                pixels[..., i] = stored[..., channel]
        if pixels.shape[2] == 4:
            pixels = flatten(Image.fromarray(pixels))
        return self._show_unwritten(box, stored, pixels) if self._is_white_unwritten else pixels

    def _show_unwritten(
        self,
        box: Area,
        stored: UInt8[np.ndarray, "height width channels"],
        pixels: UInt8[np.ndarray, "height width 3"],
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Show white where chunks of nothing but 0 were never written."""
        top, left = box[0].start, box[1].start
        for y in range(top, box[0].stop, self._chunk[0]):
            for x in range(left, box[1].stop, self._chunk[1]):
                chunk = self._find_box(y, x, self._chunk)
                part = slice(y - top, chunk[0].stop - top), slice(x - left, chunk[1].stop - left)
                if (
                    not (stored[part[0].start, part[1].start].any() or stored[part].any())
                    and self._stored.wait(
                        self._stored.array[chunk].storage_statistics(query_not_stored=True)
                    ).not_stored
                ):
                    pixels = pixels if pixels.flags.writeable else pixels.copy()
                    pixels[part] = _WHITE
        return pixels

    def find_written(self) -> WrittenTiles | None:
        """Find which chunks were written; None where all were, or where it takes long to say.

        It does at an address, and of a million chunks: there, what was never written is white.
        """
        shape = [-(-side // chunk) for side, chunk in zip(self.shape, self._chunk, strict=True)]
        if not (self._is_local and self._is_white_unwritten) or math.prod(shape) > _MOST_LISTED:
            return None
        if self._stored.wait(self._stored.array.storage_statistics(query_fully_stored=True)).fully_stored:
            return None
        written = np.ones(shape, bool)
        for row in range(shape[0]):
            answers = [
                self._stored.array[
                    self._find_box(row * self._chunk[0], column * self._chunk[1], self._chunk)
                ].storage_statistics(query_not_stored=True)
                for column in range(shape[1])
            ]
            written[row] = [not self._stored.wait(answer).not_stored for answer in answers]
        return None if written.all() else WrittenTiles(written, (self._chunk[0], self._chunk[1]))
