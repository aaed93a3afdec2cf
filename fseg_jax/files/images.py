"""Open image files with Pillow: raster formats only, of bounded size, with errors of one line.

Pillow knows more formats than it decodes by itself: for some of them it starts an interpreter or another
program. Only those of ``FORMATS`` are tried, whatever a file is called. No other module opens image files.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from fseg_jax.errors import InputError
from fseg_jax.files.kinds import describe_head, is_text
from fseg_jax.files.tiff_pictures import check_picture, is_tiff, read_upright_size

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
MOST_PIXELS = 178_000_000  # of an image that is decoded whole; 534 MB of RGB


def load_image(
    source: Path | BinaryIO,
    what: str = "an image",
    *,
    formats: Sequence[str] = FORMATS,
) -> Image.Image:
    """Decode a whole image, upright as its EXIF orientation says and viewers show it.

    Args:
        source: A file, or an open one.
        what: What is wanted, as a noun with its article, for error messages.
        formats: The formats to accept, in Pillow's words.

    Raises:
        InputError: The file cannot be read, is damaged, of another format, or has too many pixels.
    """
    return _open(source, what, formats, decode=True)


def read_image_size(source: Path) -> tuple[int, int]:
    """Read the (height, width) of an image, upright, from its header.

    Raises:
        InputError: ``load_image`` would refuse the file by its header.
    """
    image = _open(source, "an image", FORMATS, decode=False)
    height, width = image.height, image.width
    if image.format == "TIFF":  # whose size Pillow turns, or not, by its version
        return read_upright_size(source) or (height, width)
    exif = Image.Image.getexif(image)  # a PNG's own decodes the whole image
    is_turned = exif.get(ExifTags.Base.Orientation, 1) >= 5
    return (width, height) if is_turned else (height, width)


def check_depth(path: Path, image: Image.Image) -> None:
    """Raise ``InputError`` where an image's pixels are not of 8 bits, grey or colours."""
    if image.mode not in _EIGHT_BIT_MODES:
        raise InputError(
            f"{path}: its pixels are {image.mode}, not 8-bit grey or RGB; convert it to 8-bit RGB"
        )


def _open(source: Path | BinaryIO, what: str, formats: Sequence[str], *, decode: bool) -> Image.Image:
    name = source if isinstance(source, Path) else "the picture"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes, which are bounded here, and odd metadata
            if isinstance(source, Path) and "TIFF" in formats and is_tiff(source):
                check_picture(source)
            with Image.open(source, formats=list(formats)) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise Image.DecompressionBombError
                if decode:
                    image.load()
                    ImageOps.exif_transpose(image, in_place=True)
                return image
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(
            f"{name}: has too many pixels for {what} that is decoded whole: give one of up to "
            f"{MOST_PIXELS // 1_000_000} million, or a tiled TIFF"
        ) from None
    except UnidentifiedImageError:
        raise InputError(f"{name}: not {what} that can be read: {_describe(source)}") from None
    except Exception as error:  # Pillow's decoders raise anything at all
        # The text of an error of the file system repeats the path.
        reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        raise InputError(
            f"{name}: cannot be read as {what} ({reason.splitlines()[0][:200]}): "
            "convert, repair or replace it"
        ) from None


def _describe(source: Path | BinaryIO) -> str:
    """Describe what a file is that Pillow does not know."""
    if not isinstance(source, Path):
        return "it is damaged, or of a format that is not known"
    with source.open("rb") as file:
        head = file.read(132)
    kind = describe_head(head)
    if kind == "a TIFF image":
        return "it is a TIFF of a kind that Pillow does not read, or damaged"
    if kind in ("a PNG image", "a JPEG image"):
        return f"it begins as {kind}, and is damaged or truncated"
    if not kind and is_text(head):
        kind = "a text file"
    return f"it is {kind}" if kind else "it is of a format that is not known, or damaged"
