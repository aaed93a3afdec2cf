"""Folders of images: found in order, read as RGB whatever they are, resized once and kept.

What is resized is kept in ``$FSEG_CACHE/images/SIDE/HASH.npy``, by the hash of the file's bytes and the side:
an image that changes is resized again, one that is moved is not, and two programs at once do not meet.
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fseg_jax.errors import InputError
from fseg_jax.files.atomic import replacing
from fseg_jax.files.downloads import cache_folder
from fseg_jax.files.images import load_image
from fseg_jax.files.paths import check_folder, files_of
from fseg_jax.process import Progress

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
_VERSION = 1  # raised when the same file would be resized to something else

_LOG = logging.getLogger(__name__)


class Resized(NamedTuple):
    """Images of one side, ``uint8 (n, side, side, 3)``, the files they are of, and why others are not among
    them: (file, reason).
    """

    images: np.ndarray
    files: tuple[Path, ...]
    unreadable: tuple[tuple[Path, str], ...]


def find_images(folder: Path, *, deep: bool = True) -> list[Path]:
    """The image files of a folder, of its subfolders too, in the order of their paths.

    Hidden files are left out. Raises ``InputError`` where there is no such folder or no image in it.
    """
    folder = Path(folder)
    check_folder(folder, "give a folder of images")
    found = [
        path
        for path in files_of(folder, deep=deep)
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise InputError(f"{folder}: holds no image ({', '.join(SUFFIXES)})")
    return found


def read_image(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """An image as RGB, turned as its camera says: grey is repeated, what is transparent lies on black, and 16
    bits become 8 by the image's own range.

    Raises ``InputError`` for a file that is no image or is cut short.
    """
    image = load_image(path, upright=True)
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image).astype(np.float64)
        low, high = float(values.min()), float(values.max())
        grey = (values - low) * (255 / (high - low) if high > low else 0)
        return np.repeat(grey.round().astype(np.uint8)[..., None], 3, axis=-1)
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (0, 0, 0, 255))
        return np.asarray(Image.alpha_composite(ground, layer).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def resize_image(image: UInt8[np.ndarray, "height width 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    """An image as a square of ``side`` pixels, stretched as the paper does, without aliasing."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC, reducing_gap=3.0))


def resize_map(heat: Float[np.ndarray, "h w"], shape: tuple[int, int]) -> Float[np.ndarray, "height width"]:
    """A map resized bilinearly to ``(height, width)``, half-pixel centres."""
    found = Image.fromarray(np.asarray(heat, np.float32))
    return np.asarray(found.resize(shape[::-1], Image.Resampling.BILINEAR))


def resized(files: Sequence[Path], side: int, report: Progress | None = None) -> Resized:
    """All images of a list as squares of one side, from the cache where they are there.

    An unreadable image is named in a warning, and left out. Raises ``InputError`` where none can be read.
    """
    folder = cache_folder() / "images" / str(side)
    images, good, bad = [], [], []
    for done, path in enumerate(files, 1):
        try:
            images.append(_one(path, side, folder))
            good.append(path)
        except InputError as error:
            bad.append((path, str(error)))
            _LOG.warning("%s; it is left out", error)
        if report:
            report("read images", done, len(files))
    if not good:
        raise InputError(
            f"none of the {len(files)} images can be read, the first because: {bad[0][1]}"
            if bad
            else "no image is given"
        )
    return Resized(np.stack(images), tuple(good), tuple(bad))


def _one(path: Path, side: int, folder: Path) -> UInt8[np.ndarray, "side side 3"]:
    try:
        digest = hashlib.sha256(path.read_bytes() + bytes([_VERSION])).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): repair or remove it") from error
    kept = folder / f"{digest[:32]}.npy"
    try:
        image = np.load(kept, allow_pickle=False)
        if image.shape == (side, side, 3) and image.dtype == np.uint8:
            return image
    except (OSError, ValueError, EOFError):
        pass  # not there yet, or damaged
    image = resize_image(read_image(path), side)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(kept) as part, part.open("wb") as file:
            np.save(file, image)
    except (OSError, InputError) as error:
        _LOG.debug("%s is not kept: %s", path, error)  # slower the next time, nothing worse
    return image
