"""The label pyramid of a slide: an OME-Zarr 0.5 label image, written in one pass from top to bottom.

It lies in ``labels/fseg`` of the OME-Zarr image that shows the slide (``slide_image``), or stands alone.

Labels are 0 for background and 1…k for clusters: uint8 up to k = 255, uint16 above. Each level is the one
before it, halved by ``halve``; the last level fits in one chunk.
"""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import UInt

from fseg_jax.errors import InputError, OutputError
from fseg_jax.files.futures import wait_for_writes
from fseg_jax.files.zarr import create_array, make_folder_spec, open_array, write_group
from fseg_jax.outputs.colours import make_default_names

CHUNK = 256  # pixels of a chunk's side
SHARD = 1024  # pixels of a shard's side
# A row of shards is in memory while it is filled: where it would be larger than this, shards are less high.
_BAND_BYTES = 6 << 20
_WRITES_AT_ONCE = 4  # shards
LABELS = "fseg"  # the label image of an image's group ``labels``
AnyPath = TypeVar("AnyPath", Path, PurePosixPath)
_STRIP_PIXELS = 1 << 20  # pixels that are halved or counted at once

_RULE = (
    "most frequent label of each 2 x 2 block; where at least half of a block is not background, the most "
    "frequent label that is not background; ties go to the lowest label"
)


class LabelPyramid(NamedTuple):
    """A finished label pyramid.

    Attributes:
        levels: A tensorstore (h, w) for each level, finest first.
        mpp: µm per pixel of each level.
        names: Names of the clusters.
        colours: uint8 (k, 3), colours of the clusters.
        provenance: What the labels were made with.
        path: The pyramid's folder.
    """

    levels: tuple[Any, ...]
    mpp: tuple[float, ...]
    names: tuple[str, ...]
    colours: np.ndarray
    provenance: dict[str, Any]
    path: Path

    def read(self, level: int, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray:
        """Read a box of a level: labels 0…k.

        Raises:
            InputError: The level is damaged.
        """
        try:
            labels = np.asarray(self.levels[level][rows, columns].read().result())
        except (OSError, ValueError, RuntimeError) as error:
            message = " ".join(str(error).split(" [")[0].split())
            raise InputError(f"{self._describe_damage(level)} ({message[:200]})") from error
        if labels.size and labels.max() > len(self.names):
            raise InputError(f"{self._describe_damage(level)} (a label {labels.max()} of {len(self.names)})")
        return labels

    def find_level(self, mpp: float) -> int:
        """Find the level whose µm per pixel are nearest to ``mpp``, as a ratio."""
        return int(np.argmin(np.abs(np.log(np.array(self.mpp) / mpp))))

    def _describe_damage(self, level: int) -> str:
        return f"{self.path}: level {level} is damaged: make the labels again"


def choose_label_dtype(k: int) -> np.dtype:
    """Choose the type for labels 0…k: uint8, or uint16 where k > 255."""
    return np.dtype(np.uint8 if k <= 255 else np.uint16)


def halve(labels: np.ndarray) -> np.ndarray:
    """Downsample labels by 2: (h, w) → (⌈h/2⌉, ⌈w/2⌉), by majority, with background no stronger than tissue.

    A 2 × 2 block in which at least half of the pixels are not 0 takes the most frequent label that is not 0,
    in a tie the lowest; other blocks are 0. Blocks at odd edges have fewer pixels.
    """
    h, w = labels.shape
    out = np.empty(((h + 1) // 2, (w + 1) // 2), labels.dtype)
    # Repeating the last row or column doubles each pixel there, which does not change the majority.
    if h % 2 or w % 2:
        labels = np.pad(labels, ((0, h % 2), (0, w % 2)), mode="edge")
    step = max(1, _STRIP_PIXELS // max(1, 4 * out.shape[1]))  # strips that stay in the cache
    for y in range(0, len(out), step):
        _halve_strip(np.ascontiguousarray(labels[2 * y : 2 * (y + step)]), out[y : y + step])
    return out


def _halve_strip(labels: np.ndarray, out: np.ndarray) -> None:
    # Most blocks are of one label. Pixels side by side are looked at as one number of twice the bits.
    bits = 8 * labels.itemsize
    pairs = labels.view(f"u{2 * labels.itemsize}")
    top, bottom = pairs[0::2], pairs[1::2]
    mixed = (top ^ bottom) | (top ^ ((top >> bits) | (top << bits)))
    at = np.flatnonzero(mixed)
    if len(at) > out.size // 8:
        _halve_mixed(labels, out)
        return
    out[:] = labels[0::2, 0::2]
    y, x = np.divmod(at, out.shape[1])
    blocks = np.empty((2, 2 * len(at)), labels.dtype)
    for dy in (0, 1):
        for dx in (0, 1):
            blocks[dy, dx::2] = labels[2 * y + dy, 2 * x + dx]
    halved = np.empty((1, len(at)), labels.dtype)
    _halve_mixed(blocks, halved)
    out[y, x] = halved[0]


def _halve_mixed(labels: np.ndarray, out: np.ndarray) -> None:
    a, b = labels[0::2, 0::2], labels[0::2, 1::2]
    c, d = labels[1::2, 0::2], labels[1::2, 1::2]
    # Sort the four pixels, s0 ≤ s1 ≤ s2 ≤ s3: equal labels are adjacent, and s2 > 0 where half are tissue.
    low, high = np.minimum(a, b), np.maximum(a, b)
    low2, high2 = np.minimum(c, d), np.maximum(c, d)
    s0, s3 = np.minimum(low, low2), np.maximum(high, high2)
    x, y = np.maximum(low, low2), np.minimum(high, high2)
    s1, s2 = np.minimum(x, y), np.maximum(x, y)
    # Later lines overwrite earlier ones, so that the lowest of two labels with two pixels each stays.
    lowest = np.where(s0 > 0, s0, np.where(s1 > 0, s1, s2))
    out[:] = np.where(s2 == s3, s2, lowest)
    np.copyto(out, s1, where=(s1 == s2) & (s1 > 0))
    np.copyto(out, s0, where=(s0 == s1) & (s0 > 0))


def compute_level_shapes(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Compute the (height, width) of every level: ``shape`` is halved until it fits in one chunk."""
    shapes = [shape]
    while max(shapes[-1]) > CHUNK:
        h, w = shapes[-1]
        shapes.append(((h + 1) // 2, (w + 1) // 2))
    return shapes


class _Level:
    """A level that is being written.

    Attributes:
        store: Its tensorstore.
        shape: Its (height, width).
        band: The next row of shards, which is being filled.
        filled: Rows of the band that are filled.
        written: Rows of the level that are written.
    """

    def __init__(self, store: Any, shape: tuple[int, int], dtype: np.dtype, shard_height: int) -> None:
        self.store = store
        self.shape = shape
        self.band = np.empty((min(shard_height, shape[0]), shape[1]), dtype)
        self.filled = 0
        self.written = 0


class LabelWriter:
    """A label pyramid that is being written, with one row of shards of each level in memory.

    The group's metadata are written last, by ``close``, so that no reader takes an interrupted pyramid for a
    finished one.
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
        slide_mpp: float | None = None,
        source: str | None = None,
        sharded: bool = True,
    ) -> None:
        """Make the pyramid's folder.

        Args:
            path: The folder, which must not exist yet.
            shape: (height, width) of the finest level.
            mpp: µm per pixel of the finest level.
            k: Number of clusters.
            names: Names of the clusters; ``make_default_names`` without.
            colours: uint8 (k, 3), colours of the clusters.
            provenance: What the labels are made with, as JSON; it is stored under ``fseg``.
            slide_mpp: µm per pixel of the slide, the centre of whose first pixel is at 0, as OME-Zarr counts;
                None: as the labels'.
            source: Where the image that is labelled lies, from the pyramid's folder; None: there is none.
            sharded: Whether chunks share files of 1024 × 1024 pixels, which a server must read parts of.

        Raises:
            InputError: The folder exists.
            OutputError: The folder cannot be written.
        """
        if min(shape) < 1 or not 1 <= k <= 65535 or not mpp > 0:
            raise ValueError(f"no label image has shape {shape}, k = {k} and mpp = {mpp}")
        self._names = tuple(names) if names is not None else make_default_names(k)
        self._colours = np.asarray(colours)
        if len(self._names) != k or self._colours.shape != (k, 3):
            raise ValueError(f"{k} clusters need {k} names and colours")
        self._path = Path(path).absolute()
        self._mpp, self._k, self._provenance = float(mpp), k, provenance
        self._slide_mpp = self._mpp if slide_mpp is None else float(slide_mpp)
        self._source, self._sharded = source, sharded
        self._dtype = choose_label_dtype(k)
        self._pixels = np.zeros(k + 1, np.int64)
        try:
            self._path.mkdir(parents=True)
        except FileExistsError:
            raise InputError(f"{path} exists already; remove it or write somewhere else") from None
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror})") from None
        self._levels = [self._create_level(i, s) for i, s in enumerate(compute_level_shapes(shape))]

    def _create_level(self, index: int, shape: tuple[int, int]) -> _Level:
        height = SHARD
        while height > CHUNK and height * shape[1] * self._dtype.itemsize > _BAND_BYTES:
            height //= 2
        store = create_array(
            self._path / str(index),
            shape,
            self._dtype,
            (CHUNK, CHUNK),
            shard=(height, SHARD) if self._sharded else None,
            dimension_names=("y", "x"),
        )
        return _Level(store, shape, self._dtype, height)

    def append(self, rows: np.ndarray) -> None:
        """Append rows of the finest level: unsigned integers (n, width), labels 0…k, any n."""
        level = self._levels[0]
        if rows.ndim != 2 or rows.shape[1] != level.shape[1] or rows.dtype.kind not in "ui":
            raise ValueError(f"label rows are (n, {level.shape[1]}) ints, not {rows.shape} {rows.dtype}")
        if len(rows) > level.shape[0] - level.written - level.filled:
            raise ValueError(f"more than the {level.shape[0]} rows of this label image")
        step = max(1, _STRIP_PIXELS // rows.shape[1])
        for y in range(0, len(rows), step):  # few at once: bincount converts them to int64
            counts = np.bincount(rows[y : y + step].ravel(), minlength=self._k + 1)
            if len(counts) > self._k + 1:
                raise ValueError(f"a label of {len(counts) - 1} where k = {self._k}")
            self._pixels += counts
        self._push(0, rows)

    def _push(self, index: int, rows: np.ndarray) -> None:
        """Fill a level's band with rows, and write it whenever it is full."""
        level = self._levels[index]
        while len(rows):
            n = min(len(rows), len(level.band) - level.filled)
            level.band[level.filled : level.filled + n] = rows[:n]
            level.filled += n
            rows = rows[n:]
            if level.filled == len(level.band) or level.written + level.filled == level.shape[0]:
                self._flush(index)

    def _flush(self, index: int) -> None:
        """Write a level's band as whole shards, and halve it for the next level."""
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
        # Bands but the last have an even number of rows, so that no 2 × 2 block is split.
        if index + 1 < len(self._levels):
            self._push(index + 1, halve(band))

    def close(self) -> np.ndarray:
        """Finish the pyramid, and return the pixels of each label in the finest level: int64 (k + 1,).

        Raises:
            ValueError: Rows are missing.
            OutputError: The metadata cannot be written.
        """
        level = self._levels[0]
        if level.written < level.shape[0]:
            raise ValueError(f"{level.written + level.filled} of {level.shape[0]} label rows were given")
        write_group(self._path, self._make_attributes(), ascii_only=True)
        return self._pixels

    def _make_attributes(self) -> dict[str, Any]:
        datasets = [
            {
                "path": str(index),
                "coordinateTransformations": place_level(self._mpp * 2**index, self._slide_mpp),
            }
            for index in range(len(self._levels))
        ]
        axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
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
                "image-label": {
                    **describe_labels(self._names, self._colours),
                    **({} if self._source is None else {"source": {"image": self._source}}),
                },
            },
            "fseg": {**self._provenance, "pixels": self._pixels.tolist()},
        }


def place_level(mpp: float, slide_mpp: float, leading: int = 0) -> list[dict[str, Any]]:
    """Say where the pixels of a level lie on the slide, as OME-Zarr does.

    Args:
        mpp: µm per pixel of the level.
        slide_mpp: µm per pixel of the slide, the centre of whose first pixel is at 0.
        leading: Axes before y and x, such as channels.
    """
    shift = 0.5 * (mpp - slide_mpp)  # from the centre of the slide's first pixel to that of the level's
    transforms: list[dict[str, Any]] = [{"type": "scale", "scale": [1.0] * leading + [mpp] * 2}]
    if shift:
        transforms.append({"type": "translation", "translation": [0.0] * leading + [shift] * 2})
    return transforms


def describe_labels(names: Sequence[str], colours: np.ndarray) -> dict[str, Any]:
    """Describe the colours (k, 3) and names of labels 1…k as OME-Zarr does."""
    colors = [[0, 0, 0, 0], *([*map(int, colour), 255] for colour in colours)]
    return {
        "colors": [{"label-value": label, "rgba": rgba} for label, rgba in enumerate(colors)],
        "properties": [
            {"label-value": label, "class": name} for label, name in enumerate(("background", *names))
        ],
    }


def locate_labels(image: AnyPath) -> AnyPath:
    """Locate the label pyramid of an image's folder."""
    return image / "labels" / LABELS


def _read_attributes(group: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((group / "zarr.json").read_text(encoding="utf-8"))["attributes"]
    return content


def read_level_for(path: str | os.PathLike[str], height: int) -> np.ndarray:
    """Read the coarsest level of a label pyramid that is at least ``height`` pixels high: (h, w)."""
    pyramid = open_labels(path)
    fine = [i for i, level in enumerate(pyramid.levels) if level.shape[0] >= height]
    return pyramid.read(fine[-1] if fine else 0)


def resample_nearest(
    labels: UInt[np.ndarray, "rows columns"], shape: tuple[int, int]
) -> UInt[np.ndarray, "height width"]:
    """Resample labels to a (height, width): each pixel takes the nearest label."""
    y, x = ((np.arange(n) + 0.5) * size / n for n, size in zip(shape, labels.shape, strict=True))
    return np.asarray(labels[y.astype(int)[:, None], x.astype(int)[None]])


def open_labels(path: str | os.PathLike[str]) -> LabelPyramid:
    """Open a finished label pyramid, and read its metadata.

    Args:
        path: Its folder, or that of the image that holds it.

    Raises:
        InputError: There is none, it was never finished, or its metadata contradict each other.
    """
    root = Path(path).absolute()
    try:
        attributes = _read_attributes(root)
        if "image-label" not in attributes["ome"]:
            root = locate_labels(root)
            attributes = _read_attributes(root)
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
        # All sizes follow from the first level's, so that no level is read that is stated larger.
        height, width = levels[0].shape
        shapes = compute_level_shapes((height, width))
        fits = all(
            (level.shape, level.dtype.numpy_dtype) == (shape, choose_label_dtype(k))
            and max(level.chunk_layout.read_chunk.shape) <= CHUNK
            for level, shape in zip(levels, shapes, strict=True)
        )
        counts = attributes["fseg"]["pixels"]
        are_counts = len(counts) == k + 1 and all(type(n) is int and n >= 0 for n in counts)
        has_counts = are_counts and sum(counts) == height * width
        if not (fits and has_counts and colours.shape == (k, 3) and all(0 < m < math.inf for m in mpp)):
            raise ValueError("its metadata contradict each other")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        raise InputError(f"{path} is not a finished label pyramid of fseg") from None
    return LabelPyramid(levels, mpp, names, colours, attributes["fseg"], Path(path))
