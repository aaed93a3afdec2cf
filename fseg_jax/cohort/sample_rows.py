"""Read samples back: rows of many slides as one array for k-means, and the pictures of their tiles."""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from fseg_jax.cohort.sample_folder import (
    BORDER,
    ROWS,
    THUMBNAIL_SIDE,
    make_damage_error,
    read_sample,
    sample_place,
    thumbnail_corner,
)
from fseg_jax.errors import InputError, first_line
from fseg_jax.files.images import load_image
from fseg_jax.files.zarr import make_folder_spec, open_array

_MOST_CHANNELS = 1 << 16
_FRAME_COLOUR = (0, 240, 220)
_SMALLEST_FRAME = 4  # pixels


class SampleRows:
    """The rows of several slides, one below the other, in the order of the slides' ids.

    ``rows[10:20]`` reads a range, as ``kmeans.streaming`` wants it; only that is in memory.

    Or those of their tokens at the border of tissue, which every one of these slides must have.

    Attributes:
        shape: Number of rows and of channels.
        samples: The slides' samples.
        starts: First row of each slide, and the number of all rows.
    """

    def __init__(self, folder: Path, slide_ids: Sequence[str], *, border: bool = False) -> None:
        self.folder = folder
        self.samples = [read_sample(folder, slide_id) for slide_id in sorted(slide_ids)]
        self._counts = [sample.border_rows if border else sample.rows for sample in self.samples]
        self.starts = np.cumsum([0, *self._counts])
        name = BORDER if border else ROWS
        places = [sample_place(folder, sample.slide_id) / name for sample in self.samples]
        futures = [open_array(make_folder_spec(place)) for place in places]
        try:
            self._stores: list[Any] = [future.result() for future in futures]
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"{folder}: a slide's features cannot be read ({first_line(error)})") from error
        for place, count, store in zip(places, self._counts, self._stores, strict=True):
            channels = self._stores[0].shape[-1]
            chunk = prod(store.chunk_layout.read_chunk.shape)
            has_right_shape = store.shape == (count, channels) and channels <= _MOST_CHANNELS
            if not has_right_shape or chunk > prod(store.shape):
                raise make_damage_error(place)
        self.shape = (int(self.starts[-1]), int(self._stores[0].shape[1]))

    def __getitem__(self, rows: slice) -> Float[np.ndarray, "m c"]:
        start, stop, _ = rows.indices(self.shape[0])
        first, last = np.searchsorted(self.starts, (start, stop), side="right") - 1
        reads = []
        for i in range(first, min(int(last) + 1, len(self._stores))):
            low, high = max(start - self.starts[i], 0), min(stop - self.starts[i], self._counts[i])
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

    def find_slides(self, rows: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """Find the index of the slide that each row belongs to."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def read_thumbnails(
        self, rows: Int[np.ndarray, " m"], token_side: float = 0
    ) -> list[UInt8[np.ndarray, "96 96 3"]]:
        """Read the pictures of the tiles that rows belong to.

        Where rows are tokens, a square marks the token; ``token_side`` is its side as a fraction of the
        tile's.
        """
        slides = self.find_slides(rows)
        thumbnails: list[Any] = [None] * len(rows)
        for slide in np.unique(slides):
            sample = self.samples[slide]
            path = sample_place(self.folder, sample.slide_id) / "tiles.jpg"
            strip = np.asarray(load_image(path).convert("RGB"))
            for i in np.flatnonzero(slides == slide):
                row = int(rows[i] - self.starts[slide])
                y, x = thumbnail_corner(int(sample.tiles[row]))
                thumbnails[i] = strip[y : y + THUMBNAIL_SIDE, x : x + THUMBNAIL_SIDE].copy()
                if sample.tokens is not None:
                    _draw_frame(thumbnails[i], sample.tokens[row], token_side)
        return thumbnails


def _draw_frame(
    picture: UInt8[np.ndarray, "96 96 3"], token: Int[np.ndarray, "2"], token_side: float
) -> None:
    side = max(_SMALLEST_FRAME, round(token_side * THUMBNAIL_SIDE))
    y, x = (int(np.clip(round(t * token_side * THUMBNAIL_SIDE), 0, THUMBNAIL_SIDE - side)) for t in token)
    box = picture[y : y + side, x : x + side]
    for edge in (box[0], box[-1], box[:, 0], box[:, -1]):
        edge[:] = _FRAME_COLOUR
