"""Images with ground truth (F-SEG §3.4): BCSS, WSSS4LUAD, EBHI-Seg, and any folder of images and masks.

``open_dataset`` recognises which of them a folder is. Every mask is read once and checked against its image;
images are read when they are needed. Truth is ``uint8 (height, width)``: category indices, or ``IGNORED``.

A folder of one's own holds ``images/``, ``masks/`` (same names, any image suffix) and ``dataset.yaml``, whose
form ``dataset_file.py`` gives.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from fseg_jax.errors import InputError
from fseg_jax.evaluation.data.dataset_file import IGNORED, UNKNOWN, read_description
from fseg_jax.files.images import load_image, read_image_size
from fseg_jax.files.paths import check_folder, is_file, is_folder, list_files, report_unreadable
from fseg_jax.slides.masks import Mask, check_size, open_mask

TEST_SHARE = 1 / 3  # of the cases, where a dataset has no split of its own
_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")

# The codes 1 to 21 of BCSS, as its repository's meta/gtruth_codes.tsv gives them (PathologyDataScience/BCSS),
# in the five groups of its challenge's baseline (bcsegmentation.grand-challenge.org/Baseline, after Amgad et
# al. 2019), which the paper names. "Other" is all that remains, as kaiko-ai's eva reads that page; some leave
# out 7, exclude, and 15, undetermined. 0, outside the annotated region, is ignored: its README asks for that.
BCSS_GROUPS: dict[str, dict[int, str]] = {
    "tumour": {1: "tumor", 19: "angioinvasion", 20: "dcis"},
    "stroma": {2: "stroma"},
    "inflammatory": {3: "lymphocytic_infiltrate", 10: "plasma_cells", 11: "other_immune_infiltrate"},
    "necrosis": {4: "necrosis_or_debris"},
    "other": {
        5: "glandular_secretions",
        6: "blood",
        7: "exclude",
        8: "metaplasia_NOS",
        9: "fat",
        12: "mucoid_material",
        13: "normal_acinus_or_duct",
        14: "lymphatics",
        15: "undetermined",
        16: "nerve",
        17: "skin_adnexa",
        18: "blood_vessel",
        21: "other",
    },
}
# The institutes that the same baseline keeps for testing, the second field of a TCGA barcode: 45 of the 151
# regions, by the repository's roiBounds.csv.
BCSS_TEST = ("OL", "LL", "E2", "EW", "GM", "S3")


class Item(NamedTuple):
    """An image with its mask: ``split`` is "train" or "test", ``size`` (height, width) in pixels."""

    name: str
    image: Path
    mask: Path
    case: str
    split: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Codes:
    """What a mask's pixels mean: category index or ``IGNORED`` by value, or by colour as 0xRRGGBB.

    A mask is read by ``slides/masks.py``; 1 bit is 0 and 255.
    """

    meaning: Mapping[int, int]
    colours: bool = False

    def read(self, path: Path) -> UInt8[np.ndarray, "height width"]:
        """A mask as category indices; pixels of no known code are ``UNKNOWN``."""
        table = np.full(1 << (24 if self.colours else 16), UNKNOWN, np.uint8)
        for code, category in self.meaning.items():
            table[code] = category
        with open_mask(path, "a mask") as mask:
            check_size(mask)
            out = np.empty(mask.shape, np.uint8)
            for y, raw in self._raw(mask):
                known = (raw >= 0) & (raw < table.size)
                out[y : y + len(raw)] = table[np.where(known, raw, 0)]
                out[y : y + len(raw)][~known] = UNKNOWN
        return out

    def unknown(self, path: Path) -> str:
        """The codes of a mask that mean nothing, for people."""
        found: Counter[int] = Counter()
        with open_mask(path, "a mask") as mask:
            for _, raw in self._raw(mask):
                codes, counts = np.unique(raw, return_counts=True)
                found.update(dict(zip(codes.tolist(), counts.tolist(), strict=True)))
        unknown = sorted(found.keys() - self.meaning.keys())
        shown = [f"#{c:06x}" if self.colours else str(c) for c in unknown[:5]]
        shown = [f"{name} ({found[c]} pixels)" for name, c in zip(shown, unknown, strict=False)]
        return ", ".join(shown) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")

    def _raw(self, mask: Mask) -> Iterator[tuple[int, np.ndarray]]:
        if mask.lossy and (self.colours or not self.meaning.keys() >= set(range(256))):
            raise InputError(
                f"{mask.path}: its compression may have changed its values, which mean something: give a PNG"
            )
        if not self.colours:
            yield from mask.yield_codes()
            return
        for y, rgb in mask.yield_colours():
            red, green, blue = np.moveaxis(rgb.astype(np.int32), -1, 0)
            yield y, red << 16 | green << 8 | blue


@dataclass(frozen=True, eq=False)
class Dataset:
    """Checked pairs of images and masks; ``pixels (items, categories)`` is what each mask holds."""

    name: str
    categories: tuple[str, ...]
    items: tuple[Item, ...]
    codes: Codes
    pixels: Int[np.ndarray, "items categories"]
    mpp: float | None = None

    def image(self, item: Item) -> UInt8[np.ndarray, "height width 3"]:
        """One image as RGB, read now. InputError if it cannot be."""
        return np.asarray(load_image(item.image).convert("RGB"))

    def truth(self, item: Item) -> UInt8[np.ndarray, "height width"]:
        """The categories of one image's pixels, ``IGNORED`` where there is none."""
        return self.codes.read(item.mask)

    def held(self, split: str) -> Int[np.ndarray, " categories"]:
        """Pixels of each category in a split."""
        return self.pixels[[item.split == split for item in self.items]].sum(0)


def open_dataset(path: str | Path) -> Dataset:
    """Recognise a folder of images and masks, check every pair of it, and split it by case.

    Raises InputError, in one line, for a folder of no known layout, a dataset.yaml that is wrong, and images
    and masks that do not fit: every one that has no partner, another size, or an unknown code is named.
    """
    folder = Path(path)
    check_folder(folder, "give one that holds images and masks")
    try:
        for reader in (_yaml, _wsss4luad, _bcss, _ebhi):
            if (dataset := reader(folder)) is not None:
                return dataset
    except OSError as error:
        raise report_unreadable(error.filename or folder, error) from None
    raise InputError(
        f"{folder}: neither BCSS (masks/TCGA-…), WSSS4LUAD (2.validation/, 3.testing/) nor EBHI-Seg "
        "(CLASS/images, CLASS/masks): put a dataset.yaml beside images/ and masks/"
    )


# ------------------------------------------------------------------------------------------------ layouts


def _bcss(folder: Path) -> Dataset | None:
    """BCSS: masks/ of TCGA regions at 0.25 µm per pixel, a case a patient."""
    images = _first(folder, "images", "rgbs_colorNormalized", "rgbs")
    names = [path.name for path in _files(folder / "masks")]
    if images is None or not names or not all(name.startswith("TCGA-") for name in names):
        return None
    codes = {0: IGNORED}
    codes |= {code: n for n, group in enumerate(BCSS_GROUPS.values()) for code in group}
    return _checked(
        "BCSS",
        folder,
        tuple(BCSS_GROUPS),
        _pairs(images, folder / "masks"),
        Codes(codes),
        case=lambda name: "-".join(name.split("-")[:3]),
        test=lambda name: name.split("-")[1:2] != [] and name.split("-")[1] in BCSS_TEST,
        mpp=0.25,
    )


def _wsss4luad(folder: Path) -> Dataset | None:
    """WSSS4LUAD: its validation patches to learn on, its test patches to test on, as in the paper (§3.4.2).

    The patches do not say whose they are: each is its own case.
    """
    train = _first(folder, "2.validation", "validation", "val")
    test = _first(folder, "3.testing", "testing", "test")
    if train is None or test is None or not is_folder(train / "mask"):
        return None
    pairs: dict[str, tuple[Path | None, Path | None]] = {}
    for split in (train, test):
        pairs |= {f"{split.name}/{name}": p for name, p in _pairs(split / "img", split / "mask").items()}
    return _checked(
        "WSSS4LUAD",
        folder,
        ("tumour", "stroma", "normal", "background"),
        pairs,
        Codes({n: n for n in range(4)}),
        test=lambda name: name.startswith(f"{test.name}/"),
    )


def _ebhi(folder: Path) -> Dataset | None:
    """EBHI-Seg: six classes of colon tiles, of which only gland (or lesion) or not is used.

    A file is called GT2012467-1-400-001, GTxc…, GTXC… or GTDC…: the number before the first dash is taken
    for the case whatever the letters, since one number goes with several of them and with several classes.
    Masks that were resized once have values between: gland is above 127.
    """
    layouts = [
        (d, images, masks)
        for d in sorted(folder.iterdir())
        for images, masks in (("images", "masks"), ("image", "label"))
        if is_folder(d / images) and is_folder(d / masks)
    ]
    pairs: dict[str, tuple[Path | None, Path | None]] = {}
    for d, images, masks in layouts:
        pairs |= {f"{d.name}/{name}": pair for name, pair in _pairs(d / images, d / masks).items()}
    if not pairs or not all(re.match(r"GT[A-Za-z]*\d+-", name.split("/")[1]) for name in pairs):
        return None
    return _checked(
        "EBHI-Seg",
        folder,
        ("not gland", "gland"),
        pairs,
        Codes({value: int(value > 127) for value in range(256)}),
        case=lambda name: re.sub(r"^GT[A-Za-z]*", "", name.split("/")[1]).split("-")[0],
    )


def _yaml(folder: Path) -> Dataset | None:
    """A folder of one's own, which dataset.yaml describes."""
    path = folder / "dataset.yaml"
    if not is_file(path):
        return None
    described = read_description(path)
    return _checked(
        described.name or folder.name,
        folder,
        described.categories,
        _pairs(folder / "images", folder / "masks"),
        Codes(described.meaning, described.colours),
        case=described.case_of,
        test=described.is_test if described.test else None,
        mpp=described.mpp,
    )


# ----------------------------------------------------------------------------------------- pairs and splits


def _first(folder: Path, *names: str) -> Path | None:
    return next((folder / name for name in names if is_folder(folder / name)), None)


def _files(folder: Path) -> list[Path]:
    if not is_folder(folder):
        return []
    files = list_files(folder, deep=False)
    return [path for path in files if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")]


def _pairs(images: Path, masks: Path) -> dict[str, tuple[Path | None, Path | None]]:
    left, right = ({path.stem: path for path in _files(folder)} for folder in (images, masks))
    return {name: (left.get(name), right.get(name)) for name in sorted(left.keys() | right.keys())}


def by_case(cases: list[str]) -> list[bool]:
    """Which items are of the test split: a third of the cases, rounded, those whose names hash highest.

    The same for every order of the items and on every machine; no case is on both sides.
    """
    ranked = sorted(
        set(cases), key=lambda case: hashlib.sha256(case.encode("utf-8", "surrogateescape")).hexdigest()
    )
    test = set(ranked[len(ranked) - max(1, round(TEST_SHARE * len(ranked))) :])
    return [case in test for case in cases]


def _checked(
    name: str,
    folder: Path,
    categories: tuple[str, ...],
    pairs: dict[str, tuple[Path | None, Path | None]],
    codes: Codes,
    *,
    case: Callable[[str], str] = str,
    test: Callable[[str], bool] | None = None,
    mpp: float | None = None,
) -> Dataset:
    """Look at every pair, name all that do not fit, and split what does."""
    if not pairs:
        raise InputError(f"{folder}: no images in it: put them into images/, and their masks into masks/")
    problems: list[str] = []
    found: list[tuple[str, Path, Path, tuple[int, int]]] = []
    pixels: list[np.ndarray] = []
    for key, (image, mask) in pairs.items():
        if image is None or mask is None:
            lacks = "a mask without an image" if image is None else "an image without a mask"
            problems.append(f"{key}: {lacks}")
            continue
        try:
            size = read_image_size(image)
            truth = codes.read(mask)
        except InputError as error:
            problems.append(str(error))
            continue
        if truth.shape != size:
            problems.append(f"{key}: image {size[0]} × {size[1]}, mask {truth.shape[0]} × {truth.shape[1]}")
            continue
        counts = np.bincount(truth.reshape(-1), minlength=256)
        if counts[UNKNOWN]:
            problems.append(f"{key}: unknown code {codes.unknown(mask)}")
            continue
        found.append((key, image, mask, size))
        pixels.append(counts[: len(categories)])
    if problems:
        raise InputError(
            f"{folder}: {len(problems)} of {len(pairs)} images and masks do not fit, mend or remove them: "
            + "; ".join(problems)
        )
    cases = [case(key) for key, *_ in found]
    tests = [test(key) for key, *_ in found] if test else by_case(cases)
    torn = {c for c, t in zip(cases, tests, strict=True) if t}
    torn &= {c for c, t in zip(cases, tests, strict=True) if not t}
    if torn:
        names = ", ".join(sorted(torn))
        raise InputError(f"{folder}: cases on both sides of the split, mend case or test: {names}")
    if all(tests) or not any(tests):
        which = "training" if all(tests) else "test"
        raise InputError(
            f"{folder}: the {which} split is empty ({len(set(cases))} case(s) in all): change the split, "
            "or add cases"
        )
    items = tuple(
        Item(key, image, mask, c, "test" if t else "train", size)
        for (key, image, mask, size), c, t in zip(found, cases, tests, strict=True)
    )
    return Dataset(name, categories, items, codes, np.stack(pixels).astype(np.int64), mpp)
