"""Masks from image files: the one reader of them, whatever they mean.

A mask is taken by the values that its file stores:

- TIFF, by tifffile: 1 to 64 bits, striped or tiled, with any compression. Whether 0 is shown as black or as
  white is ignored: masks that are min-is-white and min-is-black mean the same. Tiles that were never written
  are 0. Other pages must be smaller than the first, as a pyramid's are.
- PNG, BMP, WebP and JPEG, by Pillow: a palette's indices, grey of 1 to 16 bits, or RGB.

Transparency is ignored. What may have lost values by its compression, as a JPEG has, holds noise about the
true ones: no codes or colours are read from it, and it marks what is above half.

Half is 127, or 32767 where a value is above 255, or 0.5 of 1 bit and of fractions; of colours, and of the
colours of a palette, the strongest channel counts. A mask that holds something, and nothing above half, is an
error: its values are labels.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from fseg_jax.errors import InputError, first_line
from fseg_jax.files.images import FORMATS, MOST_PIXELS, load_image
from fseg_jax.slides.pixels import is_tiff
from fseg_jax.slides.tiff import Pieces

_BLOCK = 1 << 24  # pixels that are looked at together
_MODES = ("1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBX", "I", "F")
_LOSSLESS = (
    1,
    2,
    3,
    4,
    5,
    8,
    32773,
    32946,
    34661,
    34925,
    34926,
    34933,
    50000,
)  # TIFF's compressions that never lose a value
_IMAGE_BYTES = 3 * MOST_PIXELS


class Mask:
    """An open mask: ``shape`` (height, width), its values block by block, and what they can be taken for."""

    shape: tuple[int, int]
    channels: int  # 1, or 3 for colours
    dtype: np.dtype
    palette: np.ndarray | None = None  # uint8 (n, 3): the colours of its values, where it says so
    lossy: bool  # whether values may have changed when it was compressed

    def __init__(self, path: Path):
        self.path = path

    def yield_blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the first row of each block from top to bottom, and its values, (rows, width) or with 3
        channels. ``InputError`` where the file is damaged there.
        """
        raise NotImplementedError

    def yield_bright(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the first row of each block, and where it is above half: bool (rows, width).

        ``InputError`` after the last one where there are values, and none of them is.
        """
        half = 127.0 if self.dtype == np.uint8 else self._find_half()
        largest = 0.0
        for y, values in self.yield_blocks():
            strongest = self._take_strongest(values)
            largest = max(largest, float(strongest.max()))
            yield y, strongest > half
        if 0 < largest <= half:
            raise InputError(
                f"{self.path}: its largest value is {largest:g}: a mask marks by what is above {half:g}, "
                "write 255 there and 0 elsewhere"
            )

    def yield_marked(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the first row of each block, and where anything but 0 is stored, or where it is above half if
        values may have changed: bool (rows, width).
        """
        if self.lossy:
            yield from self.yield_bright()
            return
        for y, values in self.yield_blocks():
            found = (values != 0) & (values == values)  # not a number marks nothing
            yield y, found if found.ndim == 2 else found.any(axis=-1)

    def yield_codes(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the first row of each block, and its whole numbers, (rows, width); 1 bit as 0 and 255."""
        if self.channels != 1 or self.dtype.kind not in "bui":
            channels = f"{self.channels} channel{'s' * (self.channels > 1)}"
            raise InputError(
                f"{self.path}: a mask of {channels} of {self.dtype}, where one of whole numbers is needed"
            )
        for y, values in self.yield_blocks():
            yield y, values * np.uint8(255) if values.dtype == bool else values

    def yield_colours(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the first row of each block, and its colours: uint8 (rows, width, 3); grey is repeated."""
        if self.dtype not in (np.bool_, np.uint8, np.uint16):
            raise InputError(f"{self.path}: a mask of {self.dtype}, where one of colours is needed")
        for y, values in self.yield_blocks():
            yield y, self._to_colours(values)

    def _to_colours(self, values: np.ndarray) -> np.ndarray:
        if self.palette is not None:
            return self.palette[np.minimum(values, len(self.palette) - 1)]
        if values.dtype == bool:
            values = values * np.uint8(255)
        elif values.dtype == np.uint16:
            values = (values >> 8).astype(np.uint8)
        return values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=-1)

    def _take_strongest(self, values: np.ndarray) -> np.ndarray:
        if self.palette is not None:
            values = self._to_colours(values)
        return values if values.ndim == 2 else values.max(axis=-1)

    def _find_half(self) -> float:
        largest = max(
            float(np.nan_to_num(self._take_strongest(values)).max()) for _, values in self.yield_blocks()
        )
        if self.dtype == np.bool_ or (self.dtype.kind == "f" and largest <= 1):
            return 0.5
        if largest > 65535:
            raise InputError(f"{self.path}: its largest value is {largest:g}: a mask is of 0 and 255")
        return 127 if largest <= 255 else 32767


class _ImageMask(Mask):
    """A mask that Pillow decodes."""

    def __init__(self, path: Path, what: str):
        super().__init__(path)
        image = load_image(path, what, formats=[f for f in FORMATS if f != "TIFF"])
        if image.mode in ("CMYK", "YCbCr"):
            image = image.convert("RGB")
        if image.mode not in _MODES and not image.mode.startswith("I;16"):
            raise InputError(f"{path}: its pixels are {image.mode}: give a mask of grey, a palette or RGB")
        values = np.asarray(image)
        if image.mode in ("LA", "PA"):
            values = values[..., 0]
        self._values = values[..., :3] if values.ndim == 3 else values
        if image.mode in ("P", "PA"):
            colours = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
            self.palette = colours if len(colours) else None
        self.shape = (image.height, image.width)
        self.channels = 3 if self._values.ndim == 3 else 1
        self.dtype = self._values.dtype
        self.lossy = image.format in ("JPEG", "MPO") or (image.format == "WEBP" and _is_lossy_webp(path))

    def yield_blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        rows = max(1, _BLOCK // self.shape[1])
        for y in range(0, self.shape[0], rows):
            yield y, self._values[y : y + rows]


class _TiffMask(Mask):
    """A mask that tifffile decodes, a row of tiles or strips at a time."""

    def __init__(self, path: Path, tiff: Any):
        super().__init__(path)
        pages: list[Any] = list(tiff.pages)
        page, *others = pages
        if any(p.imagelength >= page.imagelength and p.imagewidth >= page.imagewidth for p in others):
            raise InputError(f"{path}: has {len(tiff.pages)} pages: give a mask of one page")
        if page.imagedepth > 1:
            raise InputError(f"{path}: has {page.imagedepth} planes: give a mask of one plane")
        self._pieces = Pieces(path, [page], blank=0)
        self._pieces.check_extent()
        self.shape, samples, self.dtype = self._pieces.shape, self._pieces.samples, page.dtype
        self.channels = 3 if samples >= 3 else 1
        coloured = self.channels == 3 and page.photometric in (2, 6) and samples <= 4
        if self.dtype.kind not in "buif" or not (coloured or samples <= 2):
            raise InputError(
                f"{path}: its pixels are {page.dtype} with {samples} channel(s): "
                "give a mask of grey, a palette or RGB"
            )
        if page.photometric == 3 and page.colormap is not None:
            table = np.asarray(page.colormap).T
            self.palette = (table >> 8 if table.dtype.itemsize > 1 else table).astype(np.uint8)
        self.lossy = page.compression not in _LOSSLESS

    def yield_blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        pieces, lock = self._pieces, threading.Lock()
        height = max(1, _BLOCK // self.shape[1]) if pieces.mapped is not None else pieces.tile[0]
        for y in range(0, self.shape[0], height):
            if pieces.mapped is not None:
                values = np.array(pieces.mapped[y : y + height])
            else:
                try:
                    row = [pieces.piece(y // height, column, lock) for column in range(pieces.columns)]
                    rows = min(height, self.shape[0] - y)
                    values = np.concatenate([tile[:rows] for tile in row], axis=1)[:, : self.shape[1]]
                except Exception as error:  # decoders raise anything at all
                    raise InputError(
                        f"{self.path}: cannot be decoded at y = {y} ({first_line(error)}); the mask is "
                        "damaged or truncated"
                    ) from None
            values = values.astype(values.dtype.newbyteorder("="), copy=False)
            yield y, values[..., 0] if self.channels == 1 else values[..., :3]


@contextmanager
def open_mask(path: Path, what: str = "a mask image") -> Iterator[Mask]:
    """Open a mask of any size. Raises ``InputError``, in one line, for a file that is none or is damaged."""
    try:
        tiff = is_tiff(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}): give a mask image") from None
    if not tiff:
        yield _ImageMask(path, what)
        return
    try:
        file = tifffile.TiffFile(path)
    except Exception as error:
        raise InputError(f"{path}: not {what}; the TIFF is damaged: {first_line(error)}") from None
    with file:
        try:
            mask = _TiffMask(path, file)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{path}: not {what}; the TIFF is damaged: {first_line(error)}") from None
        yield mask


def read_bright(path: Path) -> np.ndarray:
    """Read what a mask marks by being above half: bool (height, width)."""
    with open_mask(path) as mask:
        return _gather(mask, mask.yield_bright(), np.dtype(bool))


def read_marked(path: Path, what: str = "a mask image") -> np.ndarray:
    """Read what a mask marks by anything but 0: bool (height, width). Half is the limit in a JPEG."""
    with open_mask(path, what) as mask:
        return _gather(mask, mask.yield_marked(), np.dtype(bool))


def _gather(mask: Mask, blocks: Iterator[tuple[int, np.ndarray]], dtype: np.dtype) -> np.ndarray:
    """All blocks in one array, (height, width)."""
    check_size(mask)
    out = np.empty(mask.shape, dtype)
    for y, block in blocks:
        out[y : y + len(block)] = block
    return out


def check_size(mask: Mask) -> None:
    """Fail where a mask that is to be held whole is too large for it."""
    size = mask.shape[0] * mask.shape[1]
    if size > MOST_PIXELS or size * mask.channels * mask.dtype.itemsize > _IMAGE_BYTES:
        raise InputError(
            f"{mask.path}: the mask is too large, {mask.shape[1]} × {mask.shape[0]} pixels; a coarser one of "
            "up to 12,000 pixels a side will do"
        )


def _is_lossy_webp(path: Path) -> bool:
    """Whether a WebP file holds a lossy picture, by the names of its chunks."""
    with path.open("rb") as file:
        file.seek(12)
        while len(head := file.read(8)) == 8:
            if head[:4] in (b"VP8 ", b"VP8L", b"ANMF"):
                return head[:4] != b"VP8L"
            size = int.from_bytes(head[4:], "little")
            file.seek(size + size % 2, 1)
    return True
