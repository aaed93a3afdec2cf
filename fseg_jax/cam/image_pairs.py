"""Pair the images of a folder with their masks, by their names."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from fseg_jax.cam.image_folder import find_images, read_image
from fseg_jax.errors import InputError
from fseg_jax.files.paths import check_folder
from fseg_jax.slides.masks import read_bright


class ImagePair(NamedTuple):
    """An image and its mask.

    Attributes:
        name: Path of both below their folders, without suffix.
        image: Path of the image.
        mask: Path of its mask.
    """

    name: str
    image: Path
    mask: Path

    def read(self) -> tuple[UInt8[np.ndarray, "height width 3"], Bool[np.ndarray, "height width"]]:
        """Read the image as RGB, and where its mask is bright."""
        return read_image(self.image), read_bright(self.mask)


def find_pairs(folder: Path) -> list[ImagePair]:
    """List the pairs of a folder in Kvasir-SEG's layout: ``images/`` and ``masks/`` with the same names.

    Suffixes may differ. Raises ``InputError`` where a mask is missing or two files bear one name.
    """
    folder = Path(folder)
    for subfolder in ("images", "masks"):
        check_folder(folder / subfolder, "Kvasir-SEG's layout is images/ and masks/")
    images, masks = (find_by_name(folder / subfolder) for subfolder in ("images", "masks"))
    if missing := sorted(images.keys() - masks.keys()):
        raise InputError(f"{folder}: the image {missing[0]} has no mask ({len(missing)} in all)")
    return [ImagePair(name, path, masks[name]) for name, path in images.items()]


def find_by_name(folder: Path) -> dict[str, Path]:
    """List a folder's images by their paths without suffix.

    Raises ``InputError`` where two files bear one name.
    """
    by_name: dict[str, Path] = {}
    for path in find_images(folder):
        name = name_file(folder, path)
        if name in by_name:
            raise InputError(f"{folder}: two files are called {name}: {by_name[name].name} and {path.name}")
        by_name[name] = path
    return by_name


def name_file(folder: Path, path: Path) -> str:
    """Return a file's path below a folder, without suffix.

    >>> name_file(Path("images"), Path("images/polyp/1.png"))
    'polyp/1'
    """
    return path.relative_to(folder).with_suffix("").as_posix()
