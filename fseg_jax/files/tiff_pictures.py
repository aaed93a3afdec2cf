"""What a TIFF holds, and whether it is a picture that is read: 8-bit grey, palette or RGB, of one plane.

The one place that says so, for TIFFs that OpenSlide, tifffile and Pillow read. A fourth sample is opacity
only where the file says so (ExtraSamples 1 or 2); other samples beside red, green and blue are left out.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from jaxtyping import UInt8

from fseg_jax.errors import InputError
from fseg_jax.files.extent import check_extent

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_log = logging.getLogger(__name__)

# Photometric interpretations by their numbers in TIFF.
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _MASK, _YCBCR = 0, 1, 2, 3, 4, 6
_PHOTOMETRIC_NAMES = {
    _WHITE_IS_ZERO: "grey", _BLACK_IS_ZERO: "grey", _RGB: "RGB", _PALETTE: "palette",
    _MASK: "transparency mask", 5: "CMYK", _YCBCR: "YCbCr", 8: "CIELab", 9: "ICCLab", 10: "ITULab",
    32803: "colour filter array", 32844: "LogL", 32845: "LogLuv",
}  # fmt: skip
_YCBCR_TO_RGB = (6, 7, 33003, 33004, 33005, 33007, 34712, 34892, 50001)  # compressions decoded to RGB
_JPEG = (6, 7, 33007, 34892)
_PREMULTIPLIED, _ALPHA = 1, 2  # of ExtraSamples
_ORIENTATION_TAG = 274


def is_tiff(path: Path) -> bool:
    """Return whether a file begins as a TIFF does.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return file.read(4) in TIFF_MAGIC


class Colours(NamedTuple):
    """How the stored samples of a pixel become RGB.

    Attributes:
        samples: Which samples are grey, or red, green and blue.
        table: The RGB of each grey level or palette entry; None where there are three samples.
        alpha: Which sample is opacity, or None.
        premultiplied: Whether colours are multiplied by opacity already.
    """

    samples: tuple[int, ...]
    table: UInt8[np.ndarray, "256 3"] | None = None
    alpha: int | None = None
    premultiplied: bool = False

    @property
    def white(self) -> int:
        """The stored value that is white, or nearest to it: that of pixels that were never written."""
        return 255 if self.table is None else int(self.table.astype(int).sum(axis=1).argmax())


def has_channels(page: Any, pages: int = 1) -> bool:
    """Return whether grey planes that are stored side by side are an image's channels, as of fluorescence.

    Args:
        page: tifffile's page.
        pages: On how many pages the image is.
    """
    keyframe = page.keyframe
    if int(keyframe.photometric) not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO):
        return False
    return pages > 1 or (keyframe.samplesperpixel > 1 and _find_alpha(keyframe) is None)


def check_depth(path: Path, page: Any) -> None:
    """Raise ``InputError`` where a page's samples are not whole numbers of 8 bits."""
    keyframe = page.keyframe
    if keyframe.bitspersample != 8 or keyframe.dtype != np.uint8:
        raise _refuse(path, keyframe)


def read_colours(path: Path, page: Any) -> Colours:
    """Read from a page's tags how its samples become RGB.

    Args:
        path: The file, for error messages.
        page: tifffile's page.

    Raises:
        InputError: The page's pixels are of a kind that is not read.
    """
    keyframe = page.keyframe
    check_depth(path, keyframe)
    photometric, count = int(keyframe.photometric), int(keyframe.samplesperpixel)
    alpha = _find_alpha(keyframe)
    premultiplied = alpha is not None and int(keyframe.extrasamples[alpha - count]) == _PREMULTIPLIED
    is_rgb = photometric == _RGB or (photometric == _YCBCR and int(keyframe.compression) in _YCBCR_TO_RGB)
    if is_rgb and count >= 3:
        return Colours((0, 1, 2), None, alpha, premultiplied)
    if photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _PALETTE) and count == (1 if alpha is None else 2):
        table = _make_table(keyframe)
        if table is not None:
            return Colours((0,), table, alpha, premultiplied)
    raise _refuse(path, keyframe)


def _refuse(path: Path, page: Any) -> InputError:
    return InputError(
        f"{path}: an 8-bit picture, RGB or grey, is required, and the TIFF is {describe_pixels(page)}; "
        "convert it to 8-bit RGB"
    )


def _find_alpha(page: Any) -> int | None:
    """Find the sample that is opacity."""
    first = page.samplesperpixel - len(page.extrasamples)
    kinds = [int(kind) for kind in page.extrasamples]
    return next((first + i for i, kind in enumerate(kinds) if kind in (_PREMULTIPLIED, _ALPHA)), None)


def describe_pixels(page: Any) -> str:
    """Describe a page's pixels, such as "16-bit grey" or "8-bit, 4 channels without a colour"."""
    bits = page.bitspersample
    depth = f"{'/'.join(map(str, bits)) if isinstance(bits, Sequence) else bits}-bit"
    if page.dtype is not None and page.dtype.kind in "fic":
        depth += {"f": " float", "i": " signed", "c": " complex"}[page.dtype.kind]
    photometric = int(page.photometric)
    if photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) and page.samplesperpixel > 1:
        return f"{depth}, {page.samplesperpixel} channels that are no RGB"
    name = _PHOTOMETRIC_NAMES.get(photometric, f"of photometric interpretation {photometric}")
    if photometric == _YCBCR and page.dtype == np.uint8:
        name += f" with {page.compression.name}"
    return f"{depth} {name}"


def read_orientation(page: Any) -> int:
    """Read how a page is turned: 1 for upright, as EXIF counts, to 8."""
    orientation = int(page.keyframe.tags.valueof(_ORIENTATION_TAG, 1))
    return orientation if 1 <= orientation <= 8 else 1


def is_planar_jpeg(page: Any) -> bool:
    """Return whether each of a page's channels is a JPEG of its own, of grey: red, green and blue are stored.

    Bio-Formats writes them so, and the photometric interpretation YCbCr beside them.
    """
    return page.planarconfig == 2 and int(page.compression) in _JPEG


def check_pages(path: Path, series: Any) -> None:
    """Raise ``InputError`` where an image of a TIFF has several planes, or several pages of one size."""
    several = {
        axis: n for axis, n in zip(series.axes, series.shape, strict=True) if axis not in "YXSC" and n > 1
    }
    if not several:
        return
    if set(several) <= {"I", "Q"}:
        count = int(np.prod(list(several.values())))
        raise InputError(f"{path}: has {count} pages of one size; give a file with one")
    listed = ", ".join(f"{axis}: {n}" for axis, n in several.items())
    raise InputError(f"{path}: has several planes ({listed}); give a file with one plane")


def list_images(tiff: Any) -> list[Any]:
    """List the images of a TIFF, as tifffile's series; masks of transparency, as GDAL adds, are none."""
    return [
        series
        for series in tiff.series
        if {"Y", "X"} <= set(series.axes)
        and not series.keyframe.is_mask
        and int(series.keyframe.photometric) != _MASK
    ]


def check_codec(path: Path, page: Any) -> None:
    """Raise ``InputError`` where nothing here decodes a page's compression."""
    try:
        tifffile.TIFF.DECOMPRESSORS[int(page.compression)]
    except KeyError:
        raise InputError(
            f"{path}: is compressed with {getattr(page.compression, 'name', page.compression)}, which is not "
            "read; convert it"
        ) from None


def check_picture(path: Path) -> None:
    """Check a TIFF that Pillow will decode: its first page, which must be its largest, and a picture.

    Grey of more than 8 bits and fractions pass. A TIFF that tifffile cannot parse is left to Pillow.

    Raises:
        InputError: The TIFF is damaged or truncated, or more, or something else, than Pillow reads of it.
    """
    try:
        with tifffile.TiffFile(path) as tiff:
            first: Any = tiff.pages[0]
            check_extent(path, first)
            images = list_images(tiff)
            image = max(images, key=lambda image: image.keyframe.imagelength * image.keyframe.imagewidth)
            if image.keyframe.imagelength * image.keyframe.imagewidth > first.imagelength * first.imagewidth:
                raise InputError(f"{path}: its largest image is not its first; give a file with one image")
            check_pages(path, images[0])
            if len(images[0].pages) > 1 or has_channels(first):
                raise InputError(f"{path}: its channels are stored one by one; convert it to RGB")
            if first.samplesperpixel > 1 or int(first.photometric) == _PALETTE:
                read_colours(path, first)
    except InputError:
        raise
    except Exception as error:
        _log.debug("%s: is not checked: %s", path, error)


def read_upright_size(path: Path) -> tuple[int, int] | None:
    """Read the (height, width) of a TIFF's first page, upright; return None where it cannot be parsed."""
    try:
        with tifffile.TiffFile(path) as tiff:
            page: Any = tiff.pages[0]
            height, width = int(page.imagelength), int(page.imagewidth)
            return (width, height) if read_orientation(page) >= 5 else (height, width)
    except Exception:
        return None


def _make_table(page: Any) -> UInt8[np.ndarray, "256 3"] | None:
    """Make the table from a grey level, or a palette's index, to RGB; None without a palette of 256."""
    if int(page.photometric) == _PALETTE:
        palette = np.zeros((0, 0), np.uint16) if page.colormap is None else np.asarray(page.colormap)
        if palette.shape != (3, 256):
            return None
        return np.asarray((palette // 256 if palette.max() > 255 else palette).T.astype(np.uint8))
    grey = np.arange(256, dtype=np.uint8)
    if int(page.photometric) == _WHITE_IS_ZERO:
        grey = grey[::-1]
    return np.repeat(grey[:, None], 3, axis=1)
