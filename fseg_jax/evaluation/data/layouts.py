"""The layouts of datasets that are recognised (F-SEG §3.4): BCSS, WSSS4LUAD, EBHI-Seg, and one's own.

A folder of one's own holds ``images/``, ``masks/`` (same names, any image suffix) and ``dataset.yaml``, whose
form ``dataset_file.py`` gives.
"""

import re
from pathlib import Path

from fseg_jax.errors import InputError
from fseg_jax.evaluation.data.dataset_file import read_description
from fseg_jax.evaluation.data.datasets import Dataset, Pairs, build_dataset
from fseg_jax.evaluation.data.mask_codes import IGNORED, MaskCodes
from fseg_jax.files.paths import check_folder, is_file, is_folder, list_files, report_unreadable

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
BCSS_TEST_INSTITUTES = ("OL", "LL", "E2", "EW", "GM", "S3")


def open_dataset(path: str | Path) -> Dataset:
    """Recognise a folder of images and masks, check every pair, and split the cases.

    Raises:
        InputError: In one line. The layout is not known, ``dataset.yaml`` is wrong, or images and masks do
            not fit: every one without a partner, of another size or with an unknown code is named.
    """
    folder = Path(path)
    check_folder(folder, "give one that holds images and masks")
    try:
        for read in (_read_own, _read_wsss4luad, _read_bcss, _read_ebhi):
            if (dataset := read(folder)) is not None:
                return dataset
    except OSError as error:
        raise report_unreadable(error.filename or folder, error) from None
    raise InputError(
        f"{folder}: neither BCSS (masks/TCGA-…), WSSS4LUAD (2.validation/, 3.testing/) nor EBHI-Seg "
        "(CLASS/images, CLASS/masks): put a dataset.yaml beside images/ and masks/"
    )


def _read_own(folder: Path) -> Dataset | None:
    """Read a folder of one's own, which ``dataset.yaml`` describes."""
    path = folder / "dataset.yaml"
    if not is_file(path):
        return None
    description = read_description(path)
    return build_dataset(
        description.name or folder.name,
        folder,
        description.categories,
        _pair_files(folder / "images", folder / "masks"),
        description.codes,
        find_case=description.find_case,
        is_test=description.is_test if description.test else None,
        mpp=description.mpp,
    )


def _read_bcss(folder: Path) -> Dataset | None:
    """Read BCSS: masks/ of TCGA regions at 0.25 µm per pixel; a case is a patient."""
    images = _first_folder(folder, "images", "rgbs_colorNormalized", "rgbs")
    names = [path.name for path in _image_files(folder / "masks")]
    if images is None or not names or not all(name.startswith("TCGA-") for name in names):
        return None
    codes = {0: IGNORED}
    codes |= {code: category for category, group in enumerate(BCSS_GROUPS.values()) for code in group}
    return build_dataset(
        "BCSS",
        folder,
        tuple(BCSS_GROUPS),
        _pair_files(images, folder / "masks"),
        MaskCodes(codes),
        find_case=lambda name: "-".join(name.split("-")[:3]),
        is_test=lambda name: name.split("-")[1:2] != [] and name.split("-")[1] in BCSS_TEST_INSTITUTES,
        mpp=0.25,
    )


def _read_wsss4luad(folder: Path) -> Dataset | None:
    """Read WSSS4LUAD: its validation patches to learn on, its test patches to test on (§3.4.2).

    The patches do not say whose they are: each is its own case.
    """
    train = _first_folder(folder, "2.validation", "validation", "val")
    test = _first_folder(folder, "3.testing", "testing", "test")
    if train is None or test is None or not is_folder(train / "mask"):
        return None
    pairs: Pairs = {}
    for split in (train, test):
        in_split = _pair_files(split / "img", split / "mask")
        pairs |= {f"{split.name}/{name}": pair for name, pair in in_split.items()}
    return build_dataset(
        "WSSS4LUAD",
        folder,
        ("tumour", "stroma", "normal", "background"),
        pairs,
        MaskCodes({n: n for n in range(4)}),
        is_test=lambda name: name.startswith(f"{test.name}/"),
    )


def _read_ebhi(folder: Path) -> Dataset | None:
    """Read EBHI-Seg: six classes of colon tiles, of which only gland (or lesion) or not is used.

    A file is called GT2012467-1-400-001, GTxc…, GTXC… or GTDC…: the number before the first dash is taken
    for the case whatever the letters, since one number goes with several of them and with several classes.
    Masks that were resized once have values between: gland is above 127.
    """
    layouts = [
        (class_folder, images, masks)
        for class_folder in sorted(folder.iterdir())
        for images, masks in (("images", "masks"), ("image", "label"))
        if is_folder(class_folder / images) and is_folder(class_folder / masks)
    ]
    pairs: Pairs = {}
    for class_folder, images, masks in layouts:
        in_class = _pair_files(class_folder / images, class_folder / masks)
        pairs |= {f"{class_folder.name}/{name}": pair for name, pair in in_class.items()}
    if not pairs or not all(re.match(r"GT[A-Za-z]*\d+-", name.split("/")[1]) for name in pairs):
        return None
    return build_dataset(
        "EBHI-Seg",
        folder,
        ("not gland", "gland"),
        pairs,
        MaskCodes({value: int(value > 127) for value in range(256)}),
        find_case=lambda name: re.sub(r"^GT[A-Za-z]*", "", name.split("/")[1]).split("-")[0],
    )


def _first_folder(folder: Path, *names: str) -> Path | None:
    return next((folder / name for name in names if is_folder(folder / name)), None)


def _image_files(folder: Path) -> list[Path]:
    if not is_folder(folder):
        return []
    files = list_files(folder, deep=False)
    return [path for path in files if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")]


def _pair_files(images: Path, masks: Path) -> Pairs:
    """Pair the files of two folders by their names without suffix."""
    image_of, mask_of = ({path.stem: path for path in _image_files(folder)} for folder in (images, masks))
    return {
        name: (image_of.get(name), mask_of.get(name)) for name in sorted(image_of.keys() | mask_of.keys())
    }
