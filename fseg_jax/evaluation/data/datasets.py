"""Images with ground truth: what a dataset is, how its pairs are checked, and how its cases are split.

Every mask is read once and checked against its image. Images are read when they are needed. The truth is
``uint8 (height, width)``: category indices, or ``IGNORED``.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from fseg_jax.errors import InputError
from fseg_jax.evaluation.data.mask_codes import UNKNOWN, MaskCodes
from fseg_jax.files.images import check_depth, load_image, read_image_size

Split = Literal["train", "test"]
Pairs = dict[str, tuple[Path | None, Path | None]]  # image and mask by name; None where one is missing
TEST_SHARE = 1 / 3  # of the cases, where a dataset has no split of its own


class Item(NamedTuple):
    """An image with its mask."""

    name: str
    image: Path
    mask: Path
    case: str  # what the image is of, a patient as a rule: a case is on one side of the split only
    split: Split
    size: tuple[int, int]  # (height, width), pixels


@dataclass(frozen=True, eq=False)
class Dataset:
    """Pairs of images and masks that were checked."""

    name: str
    categories: tuple[str, ...]
    items: tuple[Item, ...]
    codes: MaskCodes  # what the pixels of a mask mean
    pixels: Int[np.ndarray, "items categories"]  # how many pixels of each category each mask has
    mpp: float | None = None  # µm per pixel; None where it is unknown

    def read_image(self, item: Item) -> UInt8[np.ndarray, "height width 3"]:
        """Read one image as RGB.

        Raises:
            InputError: The file cannot be read.
        """
        image = load_image(item.image)
        check_depth(item.image, image)
        return np.asarray(image.convert("RGB"))

    def read_truth(self, item: Item) -> UInt8[np.ndarray, "height width"]:
        """Read the category of each pixel of one image, ``IGNORED`` where it has none."""
        return self.codes.read(item.mask)

    def count_pixels(self, split: Split) -> Int[np.ndarray, " categories"]:
        """Count the pixels of each category in a split."""
        return np.asarray(self.pixels[[item.split == split for item in self.items]].sum(0))


class _CheckedPair(NamedTuple):
    name: str
    image: Path
    mask: Path
    size: tuple[int, int]
    pixels: Int[np.ndarray, " categories"]


def build_dataset(
    name: str,
    folder: Path,
    categories: tuple[str, ...],
    pairs: Pairs,
    codes: MaskCodes,
    *,
    find_case: Callable[[str], str] = str,
    is_test: Callable[[str], bool] | None = None,
    mpp: float | None = None,
) -> Dataset:
    """Check every pair of images and masks, and split them by case.

    Args:
        name: What the dataset is called.
        folder: Where it lies, for messages.
        categories: The categories' names, by index.
        pairs: Paths of image and mask by name.
        codes: What the pixels of a mask mean.
        find_case: Tells the case from a pair's name; each pair is its own case if it is left out.
        is_test: Whether a pair's name is of the test split; a third of the cases if it is left out.
        mpp: µm per pixel, where it is known.

    Raises:
        InputError: There is no pair, some do not fit (all of them are named), or a split is empty.
    """
    if not pairs:
        raise InputError(f"{folder}: no images in it: put them into images/, and their masks into masks/")
    checked = _check_pairs(folder, pairs, codes, len(categories))
    cases = [find_case(pair.name) for pair in checked]
    tests = [is_test(pair.name) for pair in checked] if is_test else split_by_case(cases)
    _check_split(folder, cases, tests)
    items = tuple(
        Item(pair.name, pair.image, pair.mask, case, "test" if test else "train", pair.size)
        for pair, case, test in zip(checked, cases, tests, strict=True)
    )
    pixels = np.stack([pair.pixels for pair in checked]).astype(np.int64)
    return Dataset(name, categories, items, codes, pixels, mpp)


def split_by_case(cases: list[str]) -> list[bool]:
    """Choose the test split: a third of the cases, rounded, those whose names hash highest.

    Returns whether each item is of the test split. It is the same for every order of the items and on every
    machine, and no case is on both sides.
    """
    ranked = sorted(
        set(cases), key=lambda case: hashlib.sha256(case.encode("utf-8", "surrogateescape")).hexdigest()
    )
    test = set(ranked[len(ranked) - max(1, round(TEST_SHARE * len(ranked))) :])
    return [case in test for case in cases]


def _check_pairs(folder: Path, pairs: Pairs, codes: MaskCodes, categories: int) -> list[_CheckedPair]:
    """Check all pairs, and raise one ``InputError`` that names those that do not fit."""
    checked: list[_CheckedPair] = []
    problems: list[str] = []
    for name, (image, mask) in pairs.items():
        if image is None or mask is None:
            lacks = "a mask without an image" if image is None else "an image without a mask"
            problems.append(f"{name}: {lacks}")
            continue
        try:
            pair = _check_pair(name, image, mask, codes, categories)
        except InputError as error:
            problems.append(str(error))
        else:
            checked.append(pair)
    if problems:
        raise InputError(
            f"{folder}: {len(problems)} of {len(pairs)} images and masks do not fit, mend or remove them: "
            + "; ".join(problems)
        )
    return checked


def _check_pair(name: str, image: Path, mask: Path, codes: MaskCodes, categories: int) -> _CheckedPair:
    """Check that a mask has its image's size and known codes only, and count its categories."""
    size = read_image_size(image)
    truth = codes.read(mask)
    if truth.shape != size:
        raise InputError(f"{name}: image {size[0]} × {size[1]}, mask {truth.shape[0]} × {truth.shape[1]}")
    counts = np.bincount(truth.reshape(-1), minlength=256)
    if counts[UNKNOWN]:
        raise InputError(f"{name}: unknown code {codes.describe_unknown(mask)}")
    return _CheckedPair(name, image, mask, size, counts[:categories])


def _check_split(folder: Path, cases: list[str], tests: list[bool]) -> None:
    """Raise ``InputError`` if a case is on both sides of the split, or a side is empty."""
    in_test = {case for case, test in zip(cases, tests, strict=True) if test}
    in_training = {case for case, test in zip(cases, tests, strict=True) if not test}
    if on_both := in_test & in_training:
        names = ", ".join(sorted(on_both))
        raise InputError(f"{folder}: cases on both sides of the split, mend case or test: {names}")
    if not in_test or not in_training:
        empty = "training" if in_test else "test"
        raise InputError(
            f"{folder}: the {empty} split is empty ({len(set(cases))} case(s) in all): change the split, "
            "or add cases"
        )
