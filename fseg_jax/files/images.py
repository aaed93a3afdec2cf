"""Open image files with Pillow: raster formats only, of bounded size, with errors of one line.

Pillow knows more formats than it decodes by itself: for some of them it starts an interpreter or another
program. Only those of ``FORMATS`` are tried, whatever a file is called. No other module opens image files.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from fseg_jax.errors import InputError
from fseg_jax.files.extent import check_first_page

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
MOST_PIXELS = 178_000_000  # of an image that is decoded whole; 534 MB of RGB


def load_image(
    source: Path | BinaryIO,
    what: str = "an image",
    *,
    formats: Sequence[str] = FORMATS,
    upright: bool = False,
) -> Image.Image:
    """Decode a whole image.

    Args:
        source: A file, or an open one.
        what: What is wanted, as a noun with its article, for error messages.
        formats: The formats to accept, in Pillow's words.
        upright: Whether to turn the image as its EXIF orientation says.

    Raises:
        InputError: The file cannot be read, is damaged, of another format, or has too many pixels.
    """
    return _open(source, what, formats, decode=True, upright=upright)


def read_image_size(source: Path) -> tuple[int, int]:
    """Read the (height, width) of an image from its header.

    Raises:
        InputError: ``load_image`` would refuse the file by its header.
    """
    image = _open(source, "an image", FORMATS, decode=False)
    return image.height, image.width


def _open(
    source: Path | BinaryIO, what: str, formats: Sequence[str], *, decode: bool, upright: bool = False
) -> Image.Image:
    name = source if isinstance(source, Path) else "the picture"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes, which are bounded here, and odd metadata
            with Image.open(source, formats=list(formats)) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise Image.DecompressionBombError
                if image.format == "TIFF" and isinstance(source, Path):
                    check_first_page(source)
                if decode:
                    image.load()
                return ImageOps.exif_transpose(image) if upright else image
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(
            f"{name}: has too many pixels for {what} that is decoded whole: give one of up to "
            f"{MOST_PIXELS // 1_000_000} million, or a tiled TIFF"
        ) from None
    except UnidentifiedImageError:
        raise InputError(
            f"{name}: not {what} that can be read; it is damaged, truncated or another format"
        ) from None
    except Exception as error:  # Pillow's decoders raise anything at all
        # The text of an error of the file system repeats the path.
        reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        raise InputError(
            f"{name}: cannot be read as {what} ({reason.splitlines()[0][:200]}): repair or replace it"
        ) from None
