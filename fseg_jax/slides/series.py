"""The choice among the images of a file that has several: a macro, a label, scenes."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fseg_jax.errors import InputError
from fseg_jax.process import warn_once

_LIKE = 0.5  # of the largest image's area: one with as much may as well be what is wanted
_SAME_MPP = 0.01  # relative difference
_PREVIEWS = ("label", "macro", "thumbnail", "overview", "preview", "map")
_LISTED = 8


class FileImage(NamedTuple):
    """One image of a file.

    Attributes:
        number: How the file counts it, from 0; what ``--series`` names.
        name: Its name; empty where there is none.
        shape: (height, width) of its finest level.
        mpp: µm per pixel along y and x; None where the file states none.
    """

    number: int
    name: str
    shape: tuple[int, int]
    mpp: tuple[float, float] | None

    def __str__(self) -> str:
        """Describe the image as a message lists it."""
        name = f" {self.name!r}" if self.name else ""
        return f"{self.number}{name} ({self.shape[1]} × {self.shape[0]})"


def choose_image(path: Path, images: Sequence[FileImage], series: int | None) -> int:
    """Choose the image with the number ``series``, or else the first of the largest; return its index.

    Where the choice is not plain, since another image is at least half as large or has the same resolution,
    a warning is logged that names the others.

    Raises:
        InputError: No image has the number.
    """
    if series is not None:
        for index, image in enumerate(images):
            if image.number == series:
                return index
        raise InputError(f"{path}: --series {series}: there is no such image; it has {_list(images)}")
    areas = [image.shape[0] * image.shape[1] for image in images]
    index = areas.index(max(areas))
    chosen = images[index]
    others = [
        image
        for image, area in zip(images, areas, strict=True)
        if image is not chosen
        and not any(word in image.name.lower() for word in _PREVIEWS)
        and (area >= _LIKE * areas[index] or _has_same_mpp(image, chosen))
    ]
    if others:
        warn_once(
            f"{path}: has several images: {chosen} is read, and not {_list(others)}; "
            "--series takes another by its number"
        )
    return index


def refuse_series(path: Path, series: int | None) -> None:
    """Raise ``InputError`` where a number of an image is given for a file that has only one."""
    if series:
        raise InputError(f"{path}: --series {series}: the file has a single image; leave the option out")


def _has_same_mpp(image: FileImage, chosen: FileImage) -> bool:
    if image.mpp is None or chosen.mpp is None:
        return False
    return abs(image.mpp[0] - chosen.mpp[0]) <= _SAME_MPP * chosen.mpp[0]


def _list(images: Sequence[FileImage]) -> str:
    return ", ".join(map(str, images[:_LISTED])) + ", …" * (len(images) > _LISTED)
