"""Slides with a tumour's mask, as DigestPath lays them out, and how much of each patch is tumour.

DigestPath 2019's tissue segmentation set (Da et al. 2022, Medical Image Analysis, 102485) comes in two
archives: ``tissue-train-pos-v1/`` holds ``NAME.jpg`` beside ``NAME_mask.jpg``, 255 where the lesion is, and
``tissue-train-neg/`` images alone. So public programs read it; the data themselves have not been seen here.
Its JPEGs are of 20× and do not say their µm per pixel: ``--mpp-override 0.5``.

Any folder that holds a mask is one of annotated slides, and each image in it must have its mask; folders
without any are left aside, as the paper leaves the negative slides (SIC, §3.1). Slides may be of every file
format that is read, and so may masks: ``NAME.svs`` with ``NAME_mask.png``. Masks are read by
``slides/masks.py``, those in a scanner's format as slides.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from fseg_jax.errors import InputError
from fseg_jax.files.paths import check_folder, list_files
from fseg_jax.slides.masks import open_mask
from fseg_jax.slides.reader import Slide, name_outputs, open_slide

MASK = "_mask"
_SCANNERS = (".svs", ".ndpi", ".mrxs", ".scn")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", *_SCANNERS)
_STRIP = 1 << 24  # pixels of a mask that are decoded at once
_SHOWN = 5  # problems that are named
_UNIT = 1.0  # a mask is read in its own pixels, whatever they measure


class MaskedSlide(NamedTuple):
    """A slide's file, its mask's, and the name that outputs have."""

    name: str
    image: Path
    mask: Path


def find_slides(folder: Path, mpp_override: float | None = None) -> list[MaskedSlide]:
    """Find all slides with masks in a folder and those below it, by name, and open each to check it.

    Raises InputError, in one line, where there are none, an image has no mask or a mask no image, their sizes
    differ, a mask is not of 0 and 255, one cannot be opened or does not say its µm per pixel, or two have one
    name.
    """
    check_folder(folder, "give one that holds NAME.jpg with NAME_mask.jpg")
    paths = [p for p in list_files(folder) if p.suffix.lower() in _SUFFIXES and p.name[0] != "."]
    masks = {
        p.with_name(name_outputs(p).removesuffix(MASK)): p for p in paths if name_outputs(p).endswith(MASK)
    }
    if not masks:
        raise InputError(
            f"{folder}: no mask in it: put NAME_mask.png (255 where the tumour is) beside each slide NAME.tif"
        )
    annotated = {mask.parent for mask in masks.values()}
    images = [p for p in paths if p.parent in annotated and not name_outputs(p).endswith(MASK)]
    known = {p.with_name(name_outputs(p)) for p in images}
    problems = [f"{mask.name}: a mask without an image" for key, mask in masks.items() if key not in known]
    found: dict[str, MaskedSlide] = {}
    for image in images:
        name = name_outputs(image)
        mask = masks.get(image.with_name(name))
        if mask is None:
            problems.append(f"{image.name}: an image without a mask ({name}{MASK}.png or .jpg)")
        elif name in found:
            problems.append(f"{image}: has the name of {found[name].image}")
        else:
            found[name] = MaskedSlide(name, image, mask)
            problems += _problems(found[name], mpp_override)
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise InputError(
            f"{folder}: {len(problems)} of its slides and masks do not fit, mend or remove them: "
            + "; ".join(problems[:_SHOWN])
            + more
        )
    return sorted(found.values())


def _problems(slide: MaskedSlide, mpp_override: float | None) -> list[str]:
    try:
        with open_slide(slide.image, mpp_override) as opened:
            size = (opened.height, opened.width)
        with _opened(slide.mask) as (shape, strips):
            if shape != size:
                return [f"{slide.name}: image {size[0]} × {size[1]}, mask {shape[0]} × {shape[1]}"]
            for _ in strips:
                pass
    except InputError as error:
        return [str(error)]
    return []


@contextmanager
def _opened(
    path: Path,
) -> Iterator[tuple[tuple[int, int], Iterator[tuple[int, Bool[np.ndarray, "rows width"]]]]]:
    """A mask's (height, width), and from top to bottom the first row of each strip and where it is tumour."""
    if path.suffix.lower() in _SCANNERS:
        with open_slide(path, _UNIT) as slide:
            yield (slide.height, slide.width), _strips(slide)
    else:
        with open_mask(path) as mask:
            yield mask.shape, mask.yield_bright()


def _strips(slide: Slide) -> Iterator[tuple[int, Bool[np.ndarray, "rows width"]]]:
    rows, brightest = max(1, _STRIP // slide.width), 0
    for y in range(0, slide.height, rows):
        part = slide.read(y, 0, min(rows, slide.height - y), slide.width, _UNIT).max(-1)
        brightest = max(brightest, int(part.max()))
        yield y, part > 127
    if 0 < brightest <= 127:
        raise InputError(f"{slide.path}: its largest value is {brightest}: a mask is 255 where the tumour is")


def tumour_share(mask: Path, centers: Float[np.ndarray, "n 2"], side: float) -> Float[np.ndarray, " n"]:
    """Say how much of each patch is tumour, 0…1, of the part of it that lies on the slide.

    ``centers (n, 2)``, (y, x), and ``side`` are in pixels of the mask; a pixel above half is tumour, as a
    JPEG of 0 and 255 has values between. Exact for patches that begin between pixels, too. Only a strip of a
    tiled mask is in memory. Raises InputError where the mask cannot be read.
    """
    with _opened(mask) as ((height, width), strips):
        (ys, row), (xs, column) = (np.unique(axis - side / 2, return_inverse=True) for axis in centers.T)
        (top, bottom), (left, right) = (
            (np.clip(begin, 0, length), np.clip(begin + side, 0, length))
            for begin, length in ((ys, height), (xs, width))
        )
        along = np.empty((height, len(xs)))
        for y, part in strips:
            along[y : y + len(part)] = _between(part, left, right)
    area = _between(along.T, top, bottom).T
    return (area / ((bottom - top)[:, None] * (right - left)))[row, column]


def _between(
    values: Bool[np.ndarray, "m length"] | Float[np.ndarray, "m length"],
    begin: Float[np.ndarray, " k"],
    end: Float[np.ndarray, " k"],
) -> Float[np.ndarray, "m k"]:
    """The sums of rows from each beginning to each end, where parts of a pixel count as parts."""
    table = np.zeros((values.shape[0], values.shape[1] + 1))
    np.cumsum(values, axis=1, out=table[:, 1:])

    def at(position: np.ndarray) -> np.ndarray:
        low = np.minimum(position.astype(int), values.shape[1] - 1)
        return table[:, low] + (position - low) * (table[:, low + 1] - table[:, low])

    return at(end) - at(begin)
