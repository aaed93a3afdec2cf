"""Slides with masks of the tumour, as DigestPath lays them out, and the share of tumour in each patch.

DigestPath 2019's tissue segmentation set (Da et al. 2022, Medical Image Analysis, 102485) comes in two
archives: ``tissue-train-pos-v1/`` holds ``NAME.jpg`` beside ``NAME_mask.jpg``, 255 where the lesion is, and
``tissue-train-neg/`` images alone. So public programs read it; the data themselves have not been seen here.
Its JPEGs are of 20× and do not say their µm per pixel: ``--mpp-override 0.5``.

In a folder that holds a mask, each image must have its mask. Folders without masks are left out, as the paper
leaves out the negative slides (SIC, §3.1). Slides and masks may be of every file format that is read:
``NAME.svs`` with ``NAME_mask.png``. Masks are read by ``slides/masks.py``, whatever their suffix.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from fseg_jax.errors import InputError
from fseg_jax.files.paths import check_folder, list_files
from fseg_jax.slides.bounds import Frame, explain_frame
from fseg_jax.slides.masks import open_mask
from fseg_jax.slides.reader import name_outputs, open_slide

MASK_ENDING = "_mask"  # of a mask's name, without suffix
_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"),
    *(".svs", ".ndpi", ".mrxs", ".scn"),
)
_NAMED_PROBLEMS = 5  # problems that a message names


class MaskedSlide(NamedTuple):
    """A slide with its mask."""

    name: str  # of its outputs
    image: Path
    mask: Path


def find_slides(
    folder: Path,
    mpp_override: float | None = None,
    frame: Frame = "bounds",
    series: int | None = None,
) -> list[MaskedSlide]:
    """Find all slides with masks in a folder and below it, sorted by name, and open each to check it.

    Raises:
        InputError: In one line. There is no mask, an image has no mask or a mask no image, their sizes
            differ, a mask is not of 0 and 255, a file cannot be opened or does not say its µm per pixel, or
            two slides have the same name.
    """
    check_folder(folder, "give one that holds NAME.jpg with NAME_mask.jpg")
    paths = [p for p in list_files(folder) if p.suffix.lower() in _SUFFIXES and p.name[0] != "."]
    masks = {
        path.with_name(name_outputs(path).removesuffix(MASK_ENDING)): path for path in paths if _is_mask(path)
    }
    if not masks:
        raise InputError(
            f"{folder}: no mask in it: put NAME_mask.png (255 where the tumour is) beside each slide NAME.tif"
        )
    annotated = {mask.parent for mask in masks.values()}
    images = [path for path in paths if path.parent in annotated and not _is_mask(path)]
    known = {path.with_name(name_outputs(path)) for path in images}
    problems = [f"{mask.name}: a mask without an image" for key, mask in masks.items() if key not in known]
    slides: dict[str, MaskedSlide] = {}
    for image in images:
        name = name_outputs(image)
        mask = masks.get(image.with_name(name))
        if mask is None:
            problems.append(f"{image.name}: an image without a mask ({name}{MASK_ENDING}.png or .jpg)")
        elif name in slides:
            problems.append(f"{image}: has the name of {slides[name].image}")
        else:
            slides[name] = MaskedSlide(name, image, mask)
            problems += _list_problems(slides[name], mpp_override, frame, series)
    if problems:
        more = f"; and {len(problems) - _NAMED_PROBLEMS} more" if len(problems) > _NAMED_PROBLEMS else ""
        raise InputError(
            f"{folder}: {len(problems)} of its slides and masks do not fit, mend or remove them: "
            + "; ".join(problems[:_NAMED_PROBLEMS])
            + more
        )
    return sorted(slides.values())


def _is_mask(path: Path) -> bool:
    return name_outputs(path).endswith(MASK_ENDING)


def _list_problems(
    slide: MaskedSlide, mpp_override: float | None, frame: Frame, series: int | None
) -> list[str]:
    """List why a slide and its mask cannot be used: one reason at most."""
    try:
        with open_slide(slide.image, mpp_override, frame=frame, series=series) as opened:
            size, hint = (opened.height, opened.width), explain_frame(opened.frame)
        with open_mask(slide.mask) as mask:
            if mask.shape != size:
                height, width = mask.shape
                return [f"{slide.name}: image {size[0]} × {size[1]}, mask {height} × {width}{hint}"]
            for _ in mask.yield_bright():  # a damaged block raises
                pass
    except InputError as error:
        return [str(error)]
    return []


def measure_tumour(mask: Path, centers: Float[np.ndarray, "n 2"], side: float) -> Float[np.ndarray, " n"]:
    """Measure the share of tumour in each patch, 0…1, of the part of the patch that lies on the slide.

    A pixel above half is tumour, as a JPEG of 0 and 255 has values between. Patches may begin between pixels.
    Only a row of tiles of a tiled mask is in memory.

    Args:
        mask: The mask's file.
        centers: (y, x) of each patch, pixels of the mask.
        side: Side of a patch, pixels of the mask.

    Raises:
        InputError: The mask cannot be read.
    """
    with open_mask(mask) as opened:
        height, width = opened.shape
        (ys, row), (xs, column) = (np.unique(axis - side / 2, return_inverse=True) for axis in centers.T)
        (top, bottom), (left, right) = (
            (np.clip(begin, 0, length), np.clip(begin + side, 0, length))
            for begin, length in ((ys, height), (xs, width))
        )
        in_columns = np.empty((height, len(xs)))  # tumour in each row of pixels, by column of patches
        for y, block in opened.yield_bright():
            in_columns[y : y + len(block)] = _sum_between(block, left, right)
    area = _sum_between(in_columns.T, top, bottom).T
    share = area / ((bottom - top)[:, None] * (right - left))
    return np.asarray(share[row, column])


def _sum_between(
    values: Bool[np.ndarray, "m length"] | Float[np.ndarray, "m length"],
    begin: Float[np.ndarray, " k"],
    end: Float[np.ndarray, " k"],
) -> Float[np.ndarray, "m k"]:
    """Sum each row from each beginning to each end; parts of a pixel count as parts."""
    table = np.zeros((values.shape[0], values.shape[1] + 1))
    np.cumsum(values, axis=1, out=table[:, 1:])

    def sum_to(position: Float[np.ndarray, " k"]) -> np.ndarray:
        low = np.minimum(position.astype(int), values.shape[1] - 1)
        return np.asarray(table[:, low] + (position - low) * (table[:, low + 1] - table[:, low]))

    return np.asarray(sum_to(end) - sum_to(begin))
