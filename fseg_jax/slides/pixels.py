"""The interface of the readers of slide files, and functions that several of them use."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from fseg_jax.slides.bounds import Origin

Box = tuple[int, int, int, int]  # y, x, height, width
ZIP_MAGIC = b"PK\3\4"


class Pixels(Protocol):
    """An open pyramid of 8-bit RGB levels. Several threads may call ``read`` at once.

    Attributes:
        format: ``openslide/VENDOR``, ``aperio``, ``wsidicom``, ``tiff``, ``ome-tiff``, ``ome-zarr`` or
            ``image``.
        shapes: (height, width) of each level, finest first.
        mpp: µm per level-0 pixel along y and x; None where the file states none.
        origin: Where level 0 lies on the file's canvas; None where it is the canvas.
        series: Which of the file's images it is; None where the file has one.
    """

    format: str
    shapes: list[tuple[int, int]]
    mpp: tuple[float, float] | None
    origin: Origin | None
    series: int | None

    def read(
        self, level: int, y: int, x: int, height: int, width: int
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Decode a box that is inside the level. Any exception means that the file is damaged."""

    def announce(self, level: int, boxes: Sequence[Box]) -> AbstractContextManager[Callable[[int], None]]:
        """Keep what boxes inside a level share until each has been read, which the function is told."""

    def read_scanned(
        self, level: int, y: int, x: int, height: int, width: int
    ) -> Bool[np.ndarray, "height width"] | None:
        """Tell which pixels of a box inside the level were scanned; None, for any box, where all were."""

    def close(self) -> None:
        """Release the file."""


class HasNoGaps:
    """A reader of files that hold all of their pixels, or do not say which they lack."""

    def read_scanned(self, level: int, y: int, x: int, height: int, width: int) -> None:
        """Return None: all were scanned."""


class SharesNothing:
    """A reader whose library keeps what it decodes, or that has nothing to decode."""

    @contextmanager
    def announce(self, level: int, boxes: Sequence[Box]) -> Iterator[Callable[[int], None]]:
        """Do nothing."""
        yield lambda number: None


class PlacedPixels:
    """What another reader reads, placed otherwise; who derives from it says where a box is stored."""

    def __init__(self, pixels: Pixels) -> None:
        self._pixels = pixels
        self.format, self.series = pixels.format, pixels.series

    def _find_stored(self, level: int, box: Box) -> Box:
        """Find a box of a level as the other reader counts."""
        raise NotImplementedError

    def _turn(self, part: np.ndarray) -> np.ndarray:
        """Turn a box as it is shown."""
        return part

    def read(
        self, level: int, y: int, x: int, height: int, width: int
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Decode a box of a level."""
        return self._turn(self._pixels.read(level, *self._find_stored(level, (y, x, height, width))))

    def announce(self, level: int, boxes: Sequence[Box]) -> AbstractContextManager[Callable[[int], None]]:
        """Keep what boxes share until each has been read."""
        return self._pixels.announce(level, [self._find_stored(level, box) for box in boxes])

    def read_scanned(
        self, level: int, y: int, x: int, height: int, width: int
    ) -> Bool[np.ndarray, "height width"] | None:
        """Tell which pixels of a box were scanned."""
        scanned = self._pixels.read_scanned(level, *self._find_stored(level, (y, x, height, width)))
        return None if scanned is None else self._turn(scanned)

    def close(self) -> None:
        """Release the file."""
        self._pixels.close()


def flatten(
    rgba: Image.Image, background: tuple[int, int, int] = (255, 255, 255)
) -> UInt8[np.ndarray, "height width 3"]:
    """Lay an RGBA picture over a background colour."""
    alpha = rgba.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return np.asarray(rgba.convert("RGB"))
    ground = Image.new("RGB", rgba.size, background)
    ground.paste(rgba, mask=alpha)
    return np.asarray(ground)


def is_plausible(mpp: float) -> bool:
    """Return whether a number of µm per pixel can be a slide scanner's: 0.05 to 20."""
    return 0.05 <= mpp <= 20


def compute_downsamples(first: tuple[int, int], level: tuple[int, int]) -> tuple[float, float]:
    """Compute the level-0 pixels per pixel of a level, along y and x."""
    downsamples = []
    for full, part in zip(first, level, strict=True):
        ratio = full / part
        whole = round(ratio)
        # 4443 / 2221 is a halving that dropped the odd column, not a scale of 2.00045.
        downsamples.append(float(whole) if full // whole <= part <= -(-full // whole) else ratio)
    return downsamples[0], downsamples[1]
