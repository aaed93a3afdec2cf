"""Slides that are read by resolution: any box at any µm per pixel, from the level of the file that fits.

Coordinates are (y, x), sizes (height, width), in pixels of the slide as resampled at the requested mpp. Pixel
(i, j) covers the slide from (i, j) × mpp to (i + 1, j + 1) × mpp µm from its top left corner.
"""

import logging
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, UInt8

from fseg_jax.errors import InputError, first_line
from fseg_jax.files.addresses import locate
from fseg_jax.process import warn_once
from fseg_jax.slides.bounds import Frame, Origin
from fseg_jax.slides.dicom_series import name_series
from fseg_jax.slides.formats import OME_TIFF_SUFFIXES, open_pixels
from fseg_jax.slides.pixels import Box, Pixels, compute_downsamples, is_plausible
from fseg_jax.slides.resampling import Taps, make_taps, resample

_log = logging.getLogger(__name__)
T = TypeVar("T")

# A level that is up to 1 % coarser than asked counts as fine enough: 0.499 µm serves for 0.5 and for 0.495.
_SLACK = 1.01
_MAX_REGION = 2 << 20  # level pixels that are decoded at once; larger boxes are read in parts
_MAX_SIDE = 4_000_000  # pixels of a slide's side: a metre at 0.25 µm
_MAX_PIXELS = 1_000_000_000_000  # pixels of a slide: 250 × 250 mm at 0.25 µm
_MAX_AHEAD = 32 << 20  # bytes of decoded boxes that may wait for the consumer
_SAME_MPP = 0.05  # part by which two statements of a resolution may differ
_BLOCK = 256  # pixels of the side of the blocks of which a thumbnail is read


class Slide:
    """An open slide. Reads are thread-safe; close it, or use it as a context manager.

    Attributes:
        path: The slide's file or folder.
        name: What its outputs are called: ``slide`` for slide.svs, slide.ome.tif, slide.ome.zarr and a folder
            ``slide`` of DICOM files.
        height: Level-0 pixels along y.
        width: Level-0 pixels along x.
        mpp: µm per level-0 pixel.
        format: ``openslide/VENDOR``, ``aperio``, ``wsidicom``, ``tiff``, ``ome-tiff``, ``ome-zarr`` or
            ``image``.
        frame: What its coordinates count from: ``"bounds"`` where it is a part of the file's canvas, the one
            that was scanned; else ``"canvas"``.
        origin: (y, x) of its corner on that canvas, in level-0 pixels.
        series: Which of the file's images it is, where it has several.
    """

    path: Path
    name: str
    height: int
    width: int
    mpp: float
    format: str
    frame: Frame
    origin: Origin
    series: int | None

    def __init__(self, path: Path, pixels: Pixels, mpp: float) -> None:
        self.path = path
        self.name = name_outputs(path)
        self.height, self.width = pixels.shapes[0]
        self.mpp = mpp
        self.format = pixels.format
        self.frame = "canvas" if pixels.origin is None else "bounds"
        self.origin = pixels.origin or (0, 0)
        self.series = pixels.series
        self._pixels = pixels
        self._downsamples = [compute_downsamples(pixels.shapes[0], shape) for shape in pixels.shapes]
        self._warn_lock = threading.Lock()
        self._warned = False

    @property
    def level_mpps(self) -> list[float]:
        """µm per pixel of each level, finest first."""
        return [self.mpp * max(downsamples) for downsamples in self._downsamples]

    def read(
        self, y: int, x: int, height: int, width: int, mpp: float
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Read a box at a resolution, as RGB that must not be written to.

        The coarsest level that is as fine as ``mpp`` is averaged down to it; where the slide itself is
        coarser, it is interpolated linearly and a warning is logged once. A pixel's value does not depend on
        the box it is read in. Pixels past the slide repeat its edge.

        Raises:
            InputError: The file is damaged there.
        """
        if height < 1 or width < 1:
            raise ValueError(f"an empty box: {height} × {width}")
        inside = _clip_box((y, x, height, width), compute_shape(self, mpp))
        return _pad_edges(self._resample(*inside, mpp), y - inside[0], x - inside[1], height, width)

    def _resample(
        self, y: int, x: int, height: int, width: int, mpp: float
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Read a box that is inside the slide, in halves if it is large."""
        level, (scale_y, scale_x) = self._choose_level(mpp)
        if height * width > 1 and height * scale_y * width * scale_x > _MAX_REGION:
            if width == 1 or (height > 1 and height * scale_y >= width * scale_x):
                half = height // 2
                top = self._resample(y, x, half, width, mpp)
                bottom = self._resample(y + half, x, height - half, width, mpp)
                return np.concatenate([top, bottom])
            half = width // 2
            left = self._resample(y, x, height, half, mpp)
            right = self._resample(y, x + half, height, width - half, mpp)
            return np.concatenate([left, right], axis=1)
        region, taps = _find_region(y, x, height, width, (scale_y, scale_x))
        part = self._read_level(level, *region)
        return part if taps is None else resample(part, *taps)

    def _choose_level(self, mpp: float) -> tuple[int, tuple[float, float]]:
        """Choose the level to read for a resolution; return it, and its pixels per output pixel (y, x)."""
        fine = [i for i, down in enumerate(self._downsamples) if self.mpp * max(down) <= mpp * _SLACK]
        if not fine:
            with self._warn_lock:
                if not self._warned:
                    _log.warning(
                        "%s: has %.4g µm per pixel and is read at %.4g; it is interpolated",
                        self.path,
                        self.mpp,
                        mpp,
                    )
                self._warned = True
        level = fine[-1] if fine else 0
        down_y, down_x = self._downsamples[level]
        return level, (_snap_scale(mpp / (self.mpp * down_y)), _snap_scale(mpp / (self.mpp * down_x)))

    def _read_level(
        self, level: int, y: int, x: int, height: int, width: int
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Read a box of a level's own pixels; those past the level repeat its edge."""
        inside = _clip_box((y, x, height, width), self._pixels.shapes[level])
        try:
            pixels = self._pixels.read(level, *inside)
        except (InputError, MemoryError):  # a store that does not answer, a machine that is too small
            raise
        except Exception as error:
            raise self._explain_damage(level, inside[0], inside[1], error) from error
        return _pad_edges(pixels, y - inside[0], x - inside[1], height, width)

    @contextmanager
    def announce(self, boxes: Sequence[Box], mpp: float) -> Iterator[Callable[[int], None]]:
        """Keep the file's tiles that boxes share until all have been read, so that each is decoded once.

        Yields:
            A function to call with the number of each box that has been read.
        """
        level, scale = self._choose_level(mpp)
        shape = compute_shape(self, mpp)
        regions = [_cover(_clip_box(box, shape), scale, self._pixels.shapes[level]) for box in boxes]
        with self._pixels.announce(level, regions) as release:
            yield release

    def read_scanned(self, mpp: float) -> Bool[np.ndarray, "height width"] | None:
        """Tell which pixels of the whole slide, at a resolution, were scanned: by what is at their centres.

        Returns None where all were.

        Raises:
            InputError: The file is damaged.
        """
        level, _ = self._choose_level(max(mpp, self.mpp))
        shape = compute_shape(self, mpp)
        rows, columns = (
            np.minimum((np.arange(n) + 0.5) * (mpp / self.mpp / down), size - 1).astype(int)
            for n, down, size in zip(shape, self._downsamples[level], self._pixels.shapes[level], strict=True)
        )
        side = max(1, int(math.sqrt(_MAX_REGION) * self.mpp * min(self._downsamples[level]) / mpp))
        out = np.ones(shape, bool)

        def read_block(block: tuple[int, int]) -> bool:
            part = tuple(slice(at, at + side) for at in block)
            y, x = rows[part[0]], columns[part[1]]
            scanned = self._read_level_scanned(level, y[0], x[0], y[-1] - y[0] + 1, x[-1] - x[0] + 1)
            if scanned is not None:
                out[part] = scanned[(y - y[0])[:, None], x - x[0]]
            return scanned is not None

        blocks = [(y, x) for y in range(0, shape[0], side) for x in range(0, shape[1], side)]
        if read_block(blocks[0]):
            with _start_threads(min(4, os.cpu_count() or 1)) as pool:
                list(pool.map(read_block, blocks[1:]))
        return None if out.all() else out

    def _read_level_scanned(
        self, level: int, y: int, x: int, height: int, width: int
    ) -> Bool[np.ndarray, "height width"] | None:
        try:
            return self._pixels.read_scanned(level, y, x, height, width)
        except (InputError, MemoryError):
            raise
        except Exception as error:
            raise self._explain_damage(level, y, x, error) from error

    def _explain_damage(self, level: int, y: int, x: int, error: Exception) -> InputError:
        why = "the file is damaged there"
        if isinstance(error, (NotImplementedError, ImportError)):
            why = "its pixels are of a kind that is not read"
        elif isinstance(error, PermissionError):
            why = "look at the permissions"
        elif isinstance(error, OSError) and error.errno:  # decoders state no number
            why = "the disk, or the file system, does not give it: try again"
        return InputError(
            f"{self.path}: cannot be decoded at y = {y}, x = {x} of level {level} "
            f"({first_line(error)}); {why}"
        )

    def close(self) -> None:
        """Release the file."""
        self._pixels.close()

    def __enter__(self) -> "Slide":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_slide(
    path: str | Path,
    mpp_override: float | None = None,
    *,
    frame: Frame = "bounds",
    series: int | None = None,
) -> Slide:
    """Open a slide file, a TIFF, an OME-Zarr folder or an ordinary image.

    Args:
        path: The file or folder; or the address of a TIFF, an .svs or an OME-Zarr, at ``s3://``, ``gs://`` or
            ``https://``.
        mpp_override: µm per level-0 pixel, instead of the file's own, which is the mean of its x and y.
        frame: Of a file that is a scan on a larger canvas: ``"bounds"``, the scan alone, as QuPath shows it,
            or ``"canvas"``, all of it, as OpenSlide's own coordinates count.
        series: Which of the file's images to read, counted from 0 as the file does; None: the largest.

    Raises:
        InputError: The file is missing, damaged or of no readable format; or, without ``mpp_override``, its
            resolution is missing, implausible, or differs by more than 1 % between x and y.
    """
    path = locate(path)
    if mpp_override is not None and not (math.isfinite(mpp_override) and mpp_override > 0):
        raise InputError(f"--mpp-override {mpp_override}: must be a positive number of µm per pixel")
    pixels = open_pixels(path, series, frame)
    try:
        _check_sizes(path, pixels.shapes)
        if mpp_override is not None:
            _warn_if_overridden(path, pixels, mpp_override)
        return Slide(path, pixels, mpp_override or _check_mpp(path, pixels))
    except BaseException:
        pixels.close()
        raise


def compute_shape(slide: Slide, mpp: float) -> tuple[int, int]:
    """Compute a slide's (height, width) in pixels of ``mpp`` µm; the last ones may be covered in part."""
    if not (math.isfinite(mpp) and mpp > 0):
        raise InputError(f"mpp {mpp}: must be a positive number of µm per pixel")
    # Without the tolerance, the rounding of 2220 · 0.499 / 0.499 could add a column.
    scale = slide.mpp / mpp
    return max(1, math.ceil(slide.height * scale - 1e-6)), max(1, math.ceil(slide.width * scale - 1e-6))


class Thumbnail(NamedTuple):
    """The whole slide, small.

    Attributes:
        image: Its pixels.
        mpp: µm per pixel.
    """

    image: UInt8[np.ndarray, "h w 3"]
    mpp: float


def read_thumbnail(slide: Slide, max_side: int) -> Thumbnail:
    """Read the whole slide with no side longer than ``max_side`` pixels.

    Slides smaller than that are read at their own resolution. The slide is read block by block, so that
    memory stays bounded.
    """
    mpp = slide.mpp * max(1.0, max(slide.height, slide.width) / max_side)
    height, width = compute_shape(slide, mpp)
    out = np.empty((height, width, 3), np.uint8)
    boxes = [
        (y, x, min(_BLOCK, height - y), min(_BLOCK, width - x))
        for y in range(0, height, _BLOCK)
        for x in range(0, width, _BLOCK)
    ]
    threads = min(4, os.cpu_count() or 1)
    for (y, x, h, w), block in zip(boxes, prefetch_boxes(slide, boxes, mpp, threads), strict=True):
        out[y : y + h, x : x + w] = block
    return Thumbnail(out, mpp)


def make_picture(slide: Slide, max_side: int, overview: Thumbnail | None) -> Thumbnail:
    """Make a thumbnail to look at: of a finer one, where there is one, which decodes nothing; or read it.

    Where the finer one is a level of the slide as it is, the picture has the pixels that would be read of it.
    """
    mpp = slide.mpp * max(1.0, max(slide.height, slide.width) / max_side)
    scale = 0.0 if overview is None else _snap_scale(mpp / overview.mpp)
    if overview is None or scale < 1:
        return read_thumbnail(slide, max_side)
    height, width = compute_shape(slide, mpp)
    (y, x, *shape), taps = _find_region(0, 0, height, width, (scale, scale))
    pixels = _pad_edges(overview.image, y, x, shape[0], shape[1])
    return Thumbnail(pixels if taps is None else resample(pixels, *taps), mpp)


def prefetch_boxes(slide: Slide, boxes: Iterable[Box], mpp: float, threads: int) -> Iterator[np.ndarray]:
    """Yield ``slide.read(*box, mpp)`` for each (y, x, height, width), in order, decoded ahead in threads.

    At least two boxes per thread are decoded ahead, and more as long as they hold at most 32 MiB. When the
    generator is closed or raises, reads that have not begun are cancelled and the threads joined. What boxes
    share is decoded once if they are in a list.
    """
    yield from _read_ahead(slide, boxes, mpp, threads, lambda number, pixels: pixels)


def _read_ahead(
    slide: Slide,
    boxes: Iterable[Box],
    mpp: float,
    threads: int,
    finish: Callable[[int, np.ndarray], T],
) -> Generator[T, None, None]:
    """Yield what ``finish``, called in the threads, makes of each box's number and pixels."""
    with (
        slide.announce(boxes if isinstance(boxes, Sequence) else (), mpp) as release,
        _start_threads(threads) as pool,
    ):

        def read(number: int, box: Box) -> T:
            result = finish(number, slide.read(*box, mpp))
            if isinstance(boxes, Sequence):
                release(number)
            return result

        waiting: deque[tuple[Future[T], int]] = deque()
        ahead = 0
        for number, box in enumerate(boxes):
            size = 3 * box[2] * box[3]
            while waiting and len(waiting) >= 2 * threads and ahead + size > _MAX_AHEAD:
                future, consumed = waiting.popleft()
                yield future.result()
                ahead -= consumed
            waiting.append((pool.submit(read, number, box), size))
            ahead += size
        while waiting:
            yield waiting.popleft()[0].result()


@contextmanager
def _start_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Start threads; at the end cancel what they have not begun, and join them."""
    pool = ThreadPoolExecutor(max(1, count), thread_name_prefix="fseg-read")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def read_batches(
    slide: Slide,
    boxes: Sequence[Box],
    mpp: float,
    *,
    batch: int,
    threads: int,
    recolour: Callable[[UInt8[np.ndarray, "height width 3"]], UInt8[np.ndarray, "height width 3"]]
    | None = None,
) -> Iterator[tuple[slice, UInt8[np.ndarray, "batch height width 3"]]]:
    """Yield boxes of one size, decoded ahead, as batches of one shape, so that nothing recompiles.

    Each batch comes with the slice of ``boxes`` that it holds. The last one is padded with white boxes. Each
    box passes through ``recolour``, in the thread that read it.
    """
    batches: dict[int, np.ndarray] = {}
    lock = threading.Lock()

    def put(number: int, pixels: np.ndarray) -> None:
        with lock:
            if number // batch not in batches:
                batches[number // batch] = np.empty((batch, *pixels.shape), np.uint8)
        batches[number // batch][number % batch] = pixels if recolour is None else recolour(pixels)

    boxes_read = _read_ahead(slide, boxes, mpp, threads, put)
    try:
        for start in range(0, len(boxes), batch):
            end = min(start + batch, len(boxes))
            for _ in range(end - start):
                next(boxes_read)
            out = batches.pop(start // batch)
            out[end - start :] = 255
            yield slice(start, end), out
    finally:
        boxes_read.close()


def _check_sizes(path: Path, shapes: Sequence[tuple[int, int]]) -> None:
    for height, width in shapes:
        if min(height, width) < 1:
            raise InputError(f"{path}: has a level of {width} × {height} pixels: it is damaged or empty")
        if max(height, width) > _MAX_SIDE or height * width > _MAX_PIXELS:
            raise InputError(
                f"{path}: says that it has {width} × {height} pixels, which is no slide's: it is damaged"
            )
        if height > shapes[0][0] or width > shapes[0][1]:
            raise InputError(
                f"{path}: has a level of {width} × {height} pixels, larger than its first: it is damaged"
            )


def _check_mpp(path: Path, pixels: Pixels) -> float:
    """Return the mean of a file's µm per pixel along y and x; raise ``InputError`` if it is implausible."""
    if pixels.mpp is None:
        raise InputError(
            f"{path}: no resolution (mpp) in the file; give it with --mpp-override, "
            "for example --mpp-override 0.5 for 20×, 0.25 for 40×, or in a manifest's column mpp"
        )
    y, x = pixels.mpp
    if not (is_plausible(y) and is_plausible(x)):
        raise InputError(
            f"{path}: the file says {x:.4g} µm per pixel, which is no scanner's; give it with --mpp-override"
        )
    if abs(y - x) > 0.01 * max(y, x):
        raise InputError(
            f"{path}: the file says {x:.4g} µm per pixel along x and {y:.4g} along y; "
            "give one value for both with --mpp-override"
        )
    return (y + x) / 2


def _warn_if_overridden(path: Path, pixels: Pixels, mpp: float) -> None:
    """Warn of a resolution that takes the place of another, which the file states."""
    if pixels.mpp is None or not all(map(is_plausible, pixels.mpp)):
        return
    stated = sum(pixels.mpp) / 2
    if abs(stated - mpp) > _SAME_MPP * stated:
        warn_once(
            f"{path}: the file says {stated:.4g} µm per pixel, and {mpp:.4g} is taken in its place, as "
            "--mpp-override or the manifest's column mpp says"
        )


def name_outputs(path: Path) -> str:
    """Name a slide's outputs: the file's name without its suffixes; of DICOM, what ``name_series`` says."""
    if series := name_series(path):
        return series
    name = path.name
    for suffix in (*OME_TIFF_SUFFIXES, ".ome.zarr", ".ome.ozx"):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return path.stem


def _find_region(
    y: int, x: int, height: int, width: int, scale: tuple[float, float]
) -> tuple[Box, tuple[Taps, Taps] | None]:
    """Find the box of a level that a box at a resolution is made of, and how: None where as it is.

    The box may reach past the level by a pixel or two.
    """
    if scale == (1, 1):
        return (y, x, height, width), None
    rows, columns = make_taps(y, height, scale[0]), make_taps(x, width, scale[1])
    return (rows.first, columns.first, rows.length, columns.length), (rows, columns)


def _cover(box: Box, scale: tuple[float, float], shape: tuple[int, int]) -> Box:
    """Find the box of a level of a shape that covers a box at a resolution."""
    y, x, height, width = box
    y0, x0 = math.floor(y * scale[0]), math.floor(x * scale[1])
    y1, x1 = math.ceil((y + height) * scale[0]), math.ceil((x + width) * scale[1])
    return _clip_box((y0, x0, y1 - y0, x1 - x0), shape)


def _snap_scale(scale: float) -> float:
    """Round a scale that differs from a whole number by rounding errors only."""
    return float(round(scale)) if abs(scale - round(scale)) < 1e-6 * scale else scale


def _clip_box(box: Box, shape: tuple[int, int]) -> Box:
    """Clip a box to an image; of one that lies beside it, the nearest pixels are left."""
    y, x, height, width = box
    y0, y1 = min(max(y, 0), shape[0] - 1), max(min(y + height, shape[0]), 1)
    x0, x1 = min(max(x, 0), shape[1] - 1), max(min(x + width, shape[1]), 1)
    return y0, x0, y1 - y0, x1 - x0


def _pad_edges(pixels: np.ndarray, y: int, x: int, height: int, width: int) -> np.ndarray:
    """Cut the box at (y, x) from an image whose edge pixels repeat without end."""
    if y == x == 0 and pixels.shape[:2] == (height, width):
        return pixels
    top, bottom = max(0, -y), min(height, pixels.shape[0] - y)
    left, right = max(0, -x), min(width, pixels.shape[1] - x)
    if top >= bottom or left >= right:  # the box lies beside the image
        rows = np.clip(np.arange(y, y + height), 0, pixels.shape[0] - 1)
        columns = np.clip(np.arange(x, x + width), 0, pixels.shape[1] - 1)
        return pixels[rows[:, None], columns]
    out = np.empty((height, width, 3), np.uint8)
    out[top:bottom, left:right] = pixels[y + top : y + bottom, x + left : x + right]
    out[top:bottom, :left] = out[top:bottom, left : left + 1]
    out[top:bottom, right:] = out[top:bottom, right - 1 : right]
    out[:top], out[bottom:] = out[top], out[bottom - 1]
    return out
