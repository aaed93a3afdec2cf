"""Masks, read from image files by the values that are stored, block by block.

- TIFFs are read by tifffile: 1 to 64 bits, in strips or tiles, with any compression. Whether 0 is shown as
  black or as white (min-is-black, min-is-white) is ignored. Tiles that were never written are 0. Pages after
  the first must be smaller than it, as a pyramid's are.
- PNG, BMP, WebP and JPEG are read by Pillow: the indices of a palette, grey of 1 to 16 bits, or RGB.

Transparency is ignored. A lossy mask, such as a JPEG, holds noise about its true values, so it marks the
pixels above half, where others mark those that are not 0.

Half is 0.5 for masks of 1 bit and of fractions, 127 for larger values, and 32767 where a value is above 255.
A colour, also one of a palette, counts by its strongest channel. A mask that is not empty but has nothing
above half is an error: its values are labels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from jaxtyping import Bool, Shaped, UInt8

from fseg_jax.errors import InputError, first_line
from fseg_jax.files.images import FORMATS, MOST_PIXELS, load_image
from fseg_jax.files.tiff_pictures import check_codec, is_tiff, read_orientation
from fseg_jax.slides.tiff_tiles import TiffTiles

_BLOCK = 1 << 24  # pixels of a block
_MODES = ("1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBX", "I", "F")
# TIFF's compressions that never change a value, by their numbers.
_LOSSLESS = (1, 2, 3, 4, 5, 8, 32773, 32946, 34661, 34925, 34926, 34933, 50000)
_MAX_BYTES = 3 * MOST_PIXELS  # of a mask that is read whole

Values = Shaped[np.ndarray, "rows width *channels"]


class Mask:
    """An open mask, read in blocks of rows from top to bottom.

    Attributes:
        path: Its file.
        shape: Its (height, width).
        channels: 1, or 3 for colours.
        dtype: The type of its values.
        palette: The colour of each value; None where the file has no palette.
        lossy: Whether compression may have changed values.
    """

    shape: tuple[int, int]
    channels: int
    dtype: np.dtype
    palette: UInt8[np.ndarray, "values 3"] | None = None
    lossy: bool

    def __init__(self, path: Path) -> None:
        self.path = path

    def yield_blocks(self) -> Iterator[tuple[int, Values]]:
        """Yield the first row of each block, and its values, (rows, width) or (rows, width, 3).

        Raises:
            InputError: The file is damaged.
        """
        raise NotImplementedError

    def yield_bright(self) -> Iterator[tuple[int, Bool[np.ndarray, "rows width"]]]:
        """Yield the first row of each block, and where its values are above half.

        Raises:
            InputError: The file is damaged, or, after the last block, all values are below half but not 0.
        """
        half = 127.0 if self.dtype == np.uint8 else self._find_half()
        largest = 0.0
        for y, values in self.yield_blocks():
            strongest = self._reduce_channels(values)
            largest = max(largest, float(strongest.max()))
            yield y, strongest > half
        if 0 < largest <= half:
            raise InputError(
                f"{self.path}: its largest value is {largest:g}: a mask's marks must be above {half:g}, "
                "write 255 there and 0 elsewhere"
            )

    def yield_marked(self) -> Iterator[tuple[int, Bool[np.ndarray, "rows width"]]]:
        """Yield the first row of each block, and where its values are not 0; of a lossy mask, above half."""
        if self.lossy:
            yield from self.yield_bright()
            return
        for y, values in self.yield_blocks():
            marked = (values != 0) & (values == values)  # NaN marks nothing
            yield y, marked if marked.ndim == 2 else marked.any(axis=-1)

    def yield_codes(self) -> Iterator[tuple[int, Shaped[np.ndarray, "rows width"]]]:
        """Yield the first row of each block, and its values as integers; 1 bit becomes 0 and 255.

        Raises:
            InputError: The mask has colours or fractions, or the file is damaged.
        """
        if self.channels != 1 or self.dtype.kind not in "bui":
            channels = f"{self.channels} channel{'s' * (self.channels > 1)}"
            raise InputError(
                f"{self.path}: a mask of {channels} of {self.dtype}, where one of whole numbers is needed"
            )
        for y, values in self.yield_blocks():
            yield y, values * np.uint8(255) if values.dtype == bool else values

    def yield_colours(self) -> Iterator[tuple[int, UInt8[np.ndarray, "rows width 3"]]]:
        """Yield the first row of each block, and its colours; grey becomes RGB.

        Raises:
            InputError: The mask's values cannot be colours, or the file is damaged.
        """
        if self.dtype not in (np.bool_, np.uint8, np.uint16):
            raise InputError(f"{self.path}: a mask of {self.dtype}, where one of colours is needed")
        for y, values in self.yield_blocks():
            yield y, self._convert_to_colours(values)

    def _convert_to_colours(self, values: Values) -> UInt8[np.ndarray, "rows width 3"]:
        if self.palette is not None:
            return np.asarray(self.palette[np.minimum(values, len(self.palette) - 1)])
        if values.dtype == bool:
            values = values * np.uint8(255)
        elif values.dtype == np.uint16:
            values = (values >> 8).astype(np.uint8)
        return values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=-1)

    def _reduce_channels(self, values: Values) -> Shaped[np.ndarray, "rows width"]:
        """Take each pixel's strongest channel."""
        if self.palette is not None:
            values = self._convert_to_colours(values)
        return values if values.ndim == 2 else values.max(axis=-1)

    def _find_half(self) -> float:
        """Find the value that a mark must exceed, from the type and the largest value of the mask."""
        largest = max(
            float(np.nan_to_num(self._reduce_channels(values)).max()) for _, values in self.yield_blocks()
        )
        if self.dtype == np.bool_ or (self.dtype.kind == "f" and largest <= 1):
            return 0.5
        if largest > 65535:
            raise InputError(f"{self.path}: its largest value is {largest:g}: a mask is of 0 and 255")
        return 127 if largest <= 255 else 32767


class _ImageMask(Mask):
    """A mask that Pillow decodes, whole."""

    def __init__(self, path: Path, what: str) -> None:
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

    def yield_blocks(self) -> Iterator[tuple[int, Values]]:
        rows = max(1, _BLOCK // self.shape[1])
        for y in range(0, self.shape[0], rows):
            yield y, self._values[y : y + rows]


class _TiffMask(Mask):
    """A mask that tifffile decodes, a row of tiles or strips at a time."""

    def __init__(self, path: Path, tiff: Any) -> None:
        super().__init__(path)
        pages: list[Any] = list(tiff.pages)
        page, *others = pages
        if any(
            other.imagelength >= page.imagelength and other.imagewidth >= page.imagewidth for other in others
        ):
            raise InputError(f"{path}: has {len(tiff.pages)} pages: give a mask of one page")
        if page.imagedepth > 1:
            raise InputError(f"{path}: has {page.imagedepth} planes: give a mask of one plane")
        if read_orientation(page) != 1:
            raise InputError(f"{path}: its pixels are stored turned (Orientation): write the mask upright")
        check_codec(path, page)
        self._tiles = TiffTiles(path, [page], blank=0)
        self._tiles.check_extent()
        self.shape, samples, self.dtype = self._tiles.shape, self._tiles.samples, page.dtype
        self.channels = 3 if samples >= 3 else 1
        has_colours = self.channels == 3 and page.photometric in (2, 6) and samples <= 4  # RGB or YCbCr
        if self.dtype.kind not in "buif" or not (has_colours or samples <= 2):
            raise InputError(
                f"{path}: its pixels are {page.dtype} with {samples} channel(s): "
                "give a mask of grey, a palette or RGB"
            )
        if page.photometric == 3 and page.colormap is not None:  # a palette, of 16 bits
            table = np.asarray(page.colormap).T
            self.palette = (table >> 8 if table.dtype.itemsize > 1 else table).astype(np.uint8)
        self.lossy = page.compression not in _LOSSLESS

    def yield_blocks(self) -> Iterator[tuple[int, Values]]:
        tiles = self._tiles
        height = max(1, _BLOCK // self.shape[1]) if tiles.mapped is not None else tiles.tile[0]
        for y in range(0, self.shape[0], height):
            if tiles.mapped is not None:
                values = np.array(tiles.mapped[y : y + height])
            else:
                try:
                    row = [tiles.decode_tile(y // height, column) for column in range(tiles.columns)]
                    rows = min(height, self.shape[0] - y)
                    values = np.concatenate([tile[:rows] for tile in row], axis=1)[:, : self.shape[1]]
                except Exception as error:  # decoders raise anything at all
                    raise InputError(
                        f"{self.path}: cannot be decoded at y = {y} ({first_line(error)}); the mask is "
                        "damaged or truncated"
                    ) from None
            values = values.astype(self.dtype.newbyteorder("="), copy=False)  # fax is decoded to bytes
            yield y, values[..., 0] if self.channels == 1 else values[..., :3]


@contextmanager
def open_mask(path: Path, what: str = "a mask image") -> Iterator[Mask]:
    """Open a mask of any size.

    Args:
        path: Its file.
        what: What is wanted, as a noun with its article, for error messages.

    Raises:
        InputError: The file is no mask, or is damaged.
    """
    try:
        needs_tifffile = is_tiff(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}): give a mask image") from None
    if not needs_tifffile:
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


def read_bright(path: Path) -> Bool[np.ndarray, "height width"]:
    """Read where a mask's values are above half."""
    with open_mask(path) as mask:
        return _join_blocks(mask, mask.yield_bright())


def read_marked(path: Path, what: str = "a mask image") -> Bool[np.ndarray, "height width"]:
    """Read where a mask's values are not 0; of a lossy mask, above half."""
    with open_mask(path, what) as mask:
        return _join_blocks(mask, mask.yield_marked())


def _join_blocks(
    mask: Mask, blocks: Iterator[tuple[int, Bool[np.ndarray, "rows width"]]]
) -> Bool[np.ndarray, "height width"]:
    check_size(mask)
    out = np.empty(mask.shape, bool)
    for y, block in blocks:
        out[y : y + len(block)] = block
    return out


def check_size(mask: Mask) -> None:
    """Raise ``InputError`` where a mask is too large to be read whole."""
    size = mask.shape[0] * mask.shape[1]
    if size > MOST_PIXELS or size * mask.channels * mask.dtype.itemsize > _MAX_BYTES:
        raise InputError(
            f"{mask.path}: the mask is too large, {mask.shape[1]} × {mask.shape[0]} pixels; a coarser one of "
            "up to 12,000 pixels a side will do"
        )


def _is_lossy_webp(path: Path) -> bool:
    """Return whether a WebP file holds a lossy image, by the name of its first image chunk."""
    with path.open("rb") as file:
        file.seek(12)
        while len(head := file.read(8)) == 8:
            if head[:4] in (b"VP8 ", b"VP8L", b"ANMF"):
                return head[:4] != b"VP8L"
            size = int.from_bytes(head[4:], "little")
            file.seek(size + size % 2, 1)
    return True
