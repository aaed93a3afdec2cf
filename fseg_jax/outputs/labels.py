"""The label pyramid: an OME-Zarr 0.5 label image, written in one pass from top to bottom.

Labels are 0 for background and 1…k for clusters; uint8 up to k = 255, uint16 above. Shapes are (h, w).
Level n is level n − 1 halved by :func:`halve`; the last level fits in one chunk.
"""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fseg_jax.errors import InputError, OutputError
from fseg_jax.files.futures import wait_for_writes
from fseg_jax.files.zarr import create_array, make_folder_spec, open_array, write_group
from fseg_jax.outputs.colours import make_default_names

CHUNK = 256
SHARD = 1024
# A band of shards lies in memory, so a very wide slide gets shards that are less high.
_BAND_BYTES = 6 << 20
_WRITES_AT_ONCE = 4
_STRIP_PIXELS = 1 << 20

_RULE = (
    "most frequent label of each 2 x 2 block; where at least half of a block is not background, the most "
    "frequent label that is not background; ties go to the lowest label"
)


class LabelPyramid(NamedTuple):
    """A finished label pyramid: ``levels[i]`` is a tensorstore (H, W) with pixels of ``mpp[i]`` µm."""

    levels: tuple[Any, ...]
    mpp: tuple[float, ...]
    names: tuple[str, ...]
    colours: np.ndarray
    provenance: dict[str, Any]
    path: Path

    def read(self, level: int, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray:
        """Read a box of a level: labels 0…k. Raises InputError where its data are damaged."""
        try:
            labels = self.levels[level][rows, columns].read().result()
        except (OSError, ValueError, RuntimeError) as error:
            said = " ".join(str(error).split(" [")[0].split())
            raise InputError(f"{self._damaged(level)} ({said[:200]})") from error
        if labels.size and labels.max() > len(self.names):
            raise InputError(f"{self._damaged(level)} (a label {labels.max()} of {len(self.names)})")
        return labels

    def _damaged(self, level: int) -> str:
        return f"{self.path}: level {level} is damaged: make the labels again"


def choose_label_dtype(k: int) -> np.dtype:
    """The type that holds labels 0…k: uint8, or uint16 when k > 255."""
    return np.dtype(np.uint8 if k <= 255 else np.uint16)


def halve(labels: np.ndarray) -> np.ndarray:
    """Shrink labels to half their size without averaging them and without letting tissue lose to background.

    Unsigned (h, w) to the same type (⌈h/2⌉, ⌈w/2⌉). A 2 × 2 block is tissue if at least half of its pixels
    are not 0, and then takes the most frequent label that is not 0, ties going to the lowest label; otherwise
    it is 0. At odd edges only the pixels that exist are asked.
    """
    h, w = labels.shape
    out = np.empty(((h + 1) // 2, (w + 1) // 2), labels.dtype)
    # Repeating the last row or column doubles each vote there, which changes neither the half nor the winner.
    if h % 2 or w % 2:
        labels = np.pad(labels, ((0, h % 2), (0, w % 2)), mode="edge")
    step = max(1, _STRIP_PIXELS // max(1, 4 * out.shape[1]))  # strips that stay in the cache
    for y in range(0, len(out), step):
        _halve_strip(labels[2 * y : 2 * (y + step)], out[y : y + step])
    return out


def _halve_strip(labels: np.ndarray, out: np.ndarray) -> None:
    a, b = labels[0::2, 0::2], labels[0::2, 1::2]
    c, d = labels[1::2, 0::2], labels[1::2, 1::2]
    # Sort the four: zeros come first, equal labels lie side by side, and s2 > 0 says that half are tissue.
    low, high = np.minimum(a, b), np.maximum(a, b)
    low2, high2 = np.minimum(c, d), np.maximum(c, d)
    s0, s3 = np.minimum(low, low2), np.maximum(high, high2)
    x, y = np.maximum(low, low2), np.minimum(high, high2)
    s1, s2 = np.minimum(x, y), np.maximum(x, y)
    # From the weakest claim to the strongest, so that the lowest of equals is written last.
    lowest = np.where(s0 > 0, s0, np.where(s1 > 0, s1, s2))
    out[:] = np.where(s2 == s3, s2, lowest)
    np.copyto(out, s1, where=(s1 == s2) & (s1 > 0))
    np.copyto(out, s0, where=(s0 == s1) & (s0 > 0))


def compute_level_shapes(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """The (height, width) of every level of a pyramid over ``shape``, halved until one chunk holds it."""
    shapes = [shape]
    while max(shapes[-1]) > CHUNK:
        h, w = shapes[-1]
        shapes.append(((h + 1) // 2, (w + 1) // 2))
    return shapes


class _Level:
    """One level while it is written: its array, and the band of shard rows that is being filled."""

    def __init__(self, store: Any, shape: tuple[int, int], dtype: np.dtype, shard_height: int) -> None:
        self.store = store
        self.shape = shape
        self.band = np.empty((min(shard_height, shape[0]), shape[1]), dtype)
        self.filled = 0
        self.written = 0


class LabelWriter:
    """Write a slide's labels as an OME-Zarr 0.5 pyramid, holding only bands of it in memory.

    ``path`` is a folder that does not exist yet; ``shape`` the (height, width) of level 0, whose pixels are
    ``mpp`` µm; ``colours`` uint8 (k, 3); ``names`` of the k clusters; ``provenance``, JSON, goes to the
    metadata under ``fseg``. The group's metadata are written by :meth:`close`, so that an interrupted pyramid
    is none to any reader.
    Raises InputError where the folder exists or cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        shape: tuple[int, int],
        mpp: float,
        k: int,
        *,
        names: Sequence[str] | None,
        colours: np.ndarray,
        provenance: dict[str, Any],
    ) -> None:
        if min(shape) < 1 or not 1 <= k <= 65535 or not mpp > 0:
            raise ValueError(f"no label image has shape {shape}, k = {k} and mpp = {mpp}")
        self._names = tuple(names) if names is not None else make_default_names(k)
        self._colours = np.asarray(colours)
        if len(self._names) != k or self._colours.shape != (k, 3):
            raise ValueError(f"{k} clusters need {k} names and colours")
        self._path = Path(path).absolute()
        self._mpp, self._k, self._provenance = float(mpp), k, provenance
        self._dtype = choose_label_dtype(k)
        self._pixels = np.zeros(k + 1, np.int64)
        try:
            self._path.mkdir(parents=True)
        except FileExistsError:
            raise InputError(f"{path} exists already; remove it or write somewhere else") from None
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror})") from None
        self._levels = [self._create(i, s) for i, s in enumerate(compute_level_shapes(shape))]

    def _create(self, index: int, shape: tuple[int, int]) -> _Level:
        height = SHARD
        while height > CHUNK and height * shape[1] * self._dtype.itemsize > _BAND_BYTES:
            height //= 2
        store = create_array(
            self._path / str(index),
            shape,
            self._dtype,
            (CHUNK, CHUNK),
            shard=(height, SHARD),
            dimension_names=("y", "x"),
        )
        return _Level(store, shape, self._dtype, height)

    def append(self, rows: np.ndarray) -> None:
        """Add the next full-width rows, top to bottom: unsigned ints (n, W) of labels 0…k, any n."""
        level = self._levels[0]
        if rows.ndim != 2 or rows.shape[1] != level.shape[1] or rows.dtype.kind not in "ui":
            raise ValueError(f"label rows are (n, {level.shape[1]}) ints, not {rows.shape} {rows.dtype}")
        if len(rows) > level.shape[0] - level.written - level.filled:
            raise ValueError(f"more than the {level.shape[0]} rows of this label image")
        step = max(1, _STRIP_PIXELS // rows.shape[1])
        for y in range(0, len(rows), step):  # bincount makes int64 of what it is given, so give it little
            counts = np.bincount(rows[y : y + step].ravel(), minlength=self._k + 1)
            if len(counts) > self._k + 1:
                raise ValueError(f"a label of {len(counts) - 1} where k = {self._k}")
            self._pixels += counts
        self._push(0, rows)

    def _push(self, index: int, rows: np.ndarray) -> None:
        level = self._levels[index]
        while len(rows):
            n = min(len(rows), len(level.band) - level.filled)
            level.band[level.filled : level.filled + n] = rows[:n]
            level.filled += n
            rows = rows[n:]
            if level.filled == len(level.band) or level.written + level.filled == level.shape[0]:
                self._flush(index)

    def _flush(self, index: int) -> None:
        """Write the band as whole shards and hand its half to the next level."""
        level = self._levels[index]
        band, top = level.band[: level.filled], level.written
        corners = range(0, level.shape[1], SHARD)
        for first in range(0, len(corners), _WRITES_AT_ONCE):
            futures = [
                level.store[top : top + len(band), x : min(x + SHARD, level.shape[1])].write(
                    band[:, x : x + SHARD]
                )
                for x in corners[first : first + _WRITES_AT_ONCE]
            ]
            wait_for_writes(self._path, *futures)
        level.written += level.filled
        level.filled = 0
        # A band that is not the last has an even number of rows, so no block of four is torn.
        if index + 1 < len(self._levels):
            self._push(index + 1, halve(band))

    def close(self) -> np.ndarray:
        """Finish the pyramid and say how much each label covers: pixels at level 0, int64 (k + 1,).

        Raises ValueError while rows are missing.
        """
        level = self._levels[0]
        if level.written < level.shape[0]:
            raise ValueError(f"{level.written + level.filled} of {level.shape[0]} label rows were given")
        write_group(self._path, self._attributes(), ascii_only=True)
        return self._pixels

    def _attributes(self) -> dict[str, Any]:
        datasets = []
        for index in range(len(self._levels)):
            factor = 2**index
            shift = 0.5 * (factor - 1) * self._mpp  # centre of a coarse pixel among the fine ones
            transforms: list[dict[str, Any]] = [{"type": "scale", "scale": [self._mpp * factor] * 2}]
            if index:
                transforms.append({"type": "translation", "translation": [shift, shift]})
            datasets.append({"path": str(index), "coordinateTransformations": transforms})
        axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
        clear = [{"label-value": 0, "rgba": [0, 0, 0, 0]}]
        shown = [
            {"label-value": label, "rgba": [*map(int, colour), 255]}
            for label, colour in enumerate(self._colours, 1)
        ]
        classes = [
            {"label-value": label, "class": name} for label, name in enumerate(("background", *self._names))
        ]
        return {
            "ome": {
                "version": "0.5",
                "multiscales": [
                    {
                        "name": self._path.name.removesuffix(".ome.zarr"),
                        "axes": axes,
                        "datasets": datasets,
                        "type": "mode",
                        "metadata": {"description": _RULE},
                    }
                ],
                "image-label": {"colors": clear + shown, "properties": classes},
            },
            "fseg": {**self._provenance, "pixels": self._pixels.tolist()},
        }


def read_level_for(path: str | os.PathLike[str], height: int) -> np.ndarray:
    """The coarsest level of a label pyramid that is as fine as a picture ``height`` pixels high: (h, w)."""
    pyramid = open_labels(path)
    fine = [i for i, level in enumerate(pyramid.levels) if level.shape[0] >= height]
    return pyramid.read(fine[-1] if fine else 0)


def open_labels(path: str | os.PathLike[str]) -> LabelPyramid:
    """Open a finished label pyramid for reading; nothing is read but its metadata.

    Raises InputError where there is none, one that was never finished, or one whose metadata contradict each
    other.
    """
    root = Path(path).absolute()
    try:
        attributes = json.loads((root / "zarr.json").read_text(encoding="utf-8"))["attributes"]
        ome = attributes["ome"]
        datasets = ome["multiscales"][0]["datasets"]
        label = ome["image-label"]
        rgb = {c["label-value"]: c["rgba"][:3] for c in label["colors"]}
        classes = {p["label-value"]: p["class"] for p in label["properties"]}
        k = max(rgb)
        names = tuple(str(classes[i]) for i in range(1, k + 1))
        colours = np.array([rgb[i] for i in range(1, k + 1)], np.uint8)
        levels: tuple[Any, ...] = tuple(
            open_array(make_folder_spec(root / d["path"])).result() for d in datasets
        )
        mpp = tuple(float(d["coordinateTransformations"][0]["scale"][0]) for d in datasets)
        # The sizes follow from the first level's, and a level is never read that is larger than they say.
        height, width = levels[0].shape
        shapes = compute_level_shapes((height, width))
        whole = all(
            (level.shape, level.dtype.numpy_dtype) == (shape, choose_label_dtype(k))
            and max(level.chunk_layout.read_chunk.shape) <= CHUNK
            for level, shape in zip(levels, shapes, strict=True)
        )
        counted = len(attributes["fseg"]["pixels"]) == k + 1
        if not (whole and counted and colours.shape == (k, 3) and all(0 < m < math.inf for m in mpp)):
            raise ValueError("its metadata contradict each other")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        raise InputError(f"{path} is not a finished label pyramid of fseg") from None
    return LabelPyramid(levels, mpp, names, colours, attributes["fseg"], Path(path))
