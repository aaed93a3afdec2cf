"""Find the images of a folder, read them as RGB, and resize them once.

A resized image is cached in ``$FSEG_CACHE/images/SIDE/HASH.npy``, by the hash of the file's bytes. So an
image that changes is resized again, one that is moved is not, and two programs at once do not disturb each
other.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fseg_jax.errors import InputError
from fseg_jax.files.atomic import replace_atomically
from fseg_jax.files.downloads import find_cache_folder
from fseg_jax.files.images import load_image
from fseg_jax.files.paths import check_folder, list_files
from fseg_jax.process import Progress

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
_CACHE_VERSION = 1  # raised when the same file would be resized to something else

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResizedImages:
    """Images of one size.

    Attributes:
        images: The pixels, ``uint8 (n, side, side, 3)``.
        files: The file of each image.
        unreadable: Files that could not be read, each with the reason.
    """

    images: UInt8[np.ndarray, "n side side 3"]
    files: tuple[Path, ...]
    unreadable: tuple[tuple[Path, str], ...]


def find_images(folder: Path, *, deep: bool = True) -> list[Path]:
    """List the image files of a folder, by default with its subfolders, in the order of their paths.

    Hidden files are left out. Raises ``InputError`` where there is no such folder or no image in it.
    """
    folder = Path(folder)
    check_folder(folder, "give a folder of images")
    images = [
        path
        for path in list_files(folder, deep=deep)
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not images:
        raise InputError(f"{folder}: holds no image ({', '.join(SUFFIXES)})")
    return images


def read_image(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """Read an image as RGB, upright as its camera's tag says.

    Grey is repeated over the channels, transparent pixels lie on black, and 16 bits become 8 by the image's
    own range. Raises ``InputError`` for a file that is no image or is cut short.
    """
    image = load_image(path)
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image).astype(np.float64)
        low, high = float(values.min()), float(values.max())
        grey = (values - low) * (255 / (high - low) if high > low else 0)
        return np.repeat(grey.round().astype(np.uint8)[..., None], 3, axis=-1)
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        black = Image.new("RGBA", layer.size, (0, 0, 0, 255))
        return np.asarray(Image.alpha_composite(black, layer).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def resize_image(image: UInt8[np.ndarray, "height width 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    """Stretch an image to a square of ``side`` pixels, as the paper does, without aliasing."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC, reducing_gap=3.0))


def resize_map(heat: Float[np.ndarray, "h w"], shape: tuple[int, int]) -> Float[np.ndarray, "height width"]:
    """Resize a map bilinearly to ``(height, width)``; pixel centers lie at half pixels."""
    image = Image.fromarray(np.asarray(heat, np.float32))
    return np.asarray(image.resize(shape[::-1], Image.Resampling.BILINEAR))


def resize_images(files: Sequence[Path], side: int, progress: Progress | None = None) -> ResizedImages:
    """Read all images of a list as squares of one side, from the cache where it has them.

    A warning names each unreadable image, which is left out. Raises ``InputError`` where none can be read.
    """
    cache = find_cache_folder() / "images" / str(side)
    images, readable, unreadable = [], [], []
    for done, path in enumerate(files, 1):
        try:
            images.append(_resize_cached(path, side, cache))
            readable.append(path)
        except InputError as error:
            unreadable.append((path, str(error)))
            _LOG.warning("%s; it is left out", error)
        if progress:
            progress("read images", done, len(files))
    if not readable:
        raise InputError(
            f"none of the {len(files)} images can be read, the first because: {unreadable[0][1]}"
            if unreadable
            else "no image is given"
        )
    return ResizedImages(np.stack(images), tuple(readable), tuple(unreadable))


def _resize_cached(path: Path, side: int, cache: Path) -> UInt8[np.ndarray, "side side 3"]:
    try:
        digest = hashlib.sha256(path.read_bytes() + bytes([_CACHE_VERSION])).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): repair or remove it") from error
    entry = cache / f"{digest[:32]}.npy"
    try:
        cached: np.ndarray = np.load(entry, allow_pickle=False)
        if cached.shape == (side, side, 3) and cached.dtype == np.uint8:
            return cached
    except (OSError, ValueError, EOFError):
        pass  # not cached yet, or damaged
    image = resize_image(read_image(path), side)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with replace_atomically(entry) as part, part.open("wb") as file:
            np.save(file, image)
    except (OSError, InputError) as error:
        _LOG.debug("%s is not cached: %s", path, error)  # slower the next time, nothing worse
    return image
