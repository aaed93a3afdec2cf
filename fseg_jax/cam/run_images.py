"""Choose the images that a run of the CAM paper learns from, chooses by and is scored on.

A seed splits the dataset three ways, so that no image serves two purposes.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image

from fseg_jax.cam.heat_mapper import cut_into_tiles
from fseg_jax.cam.image_folder import find_images, read_image
from fseg_jax.cam.image_labels import LabelledFolder
from fseg_jax.cam.image_pairs import ImagePair
from fseg_jax.cam.runs import ReproductionSettings, Run
from fseg_jax.errors import InputError
from fseg_jax.files.atomic import replace_atomically
from fseg_jax.slides.masks import read_bright

POSITIVE, NEGATIVE = "polyp", "non-polyp"
SLIVER = (
    0.05  # a tile with a smaller share of mask, but not none, counts as neither class and is never labelled
)


class DatasetSplit(NamedTuple):
    """The images of a dataset by their purpose.

    Attributes:
        development: Images to learn from.
        validation: Images that choose epochs and thresholds.
        test: Images to score on.
    """

    development: list[ImagePair]
    validation: list[ImagePair]
    test: list[ImagePair]


class RunImages(NamedTuple):
    """The images that a classifier may learn from.

    Attributes:
        given: The images with the labels given before spreading.
        truth: The true class of each image, −1 where it is unknown.
    """

    given: LabelledFolder
    truth: Int[np.ndarray, " n"]


def split_dataset(pairs: list[ImagePair], settings: ReproductionSettings) -> DatasetSplit:
    """Draw the test and validation images by the seed.

    Raises ``InputError`` where too few images remain to learn from.
    """
    order = np.random.default_rng(settings.seed).permutation(len(pairs))
    test = round(settings.test * len(pairs))
    if test < 1 or len(pairs) - test - settings.validation < 2:
        raise InputError(
            f"{len(pairs)} images are too few: {test} to score on and {settings.validation} to choose by "
            "leave nothing to learn from"
        )
    parts = np.split(order, [test, test + settings.validation])
    test_pairs, validation, development = ([pairs[i] for i in np.sort(part)] for part in parts)
    return DatasetSplit(development, validation, test_pairs)


def label_tiles(run: Run, split: DatasetSplit, out: Path, seed: int) -> RunImages:
    """Cut images into tiles, in ``tiles-2x2/``, and label 100 + 100 of the development images' tiles (§2)."""
    n = run.cuts
    folder = out / f"tiles-{n}x{n}"
    folder.mkdir(parents=True, exist_ok=True)
    files, truth, held_out = [], [], []
    for pair in (*split.development, *split.validation):
        image, mask = None, read_bright(pair.mask)
        for number, box in enumerate(cut_into_tiles(mask.shape, n)):
            row, column = divmod(number, n)
            path = folder / f"{pair.name.replace('/', '_')}-{row}-{column}.png"
            if not path.exists():
                image = read_image(pair.image) if image is None else image
                with replace_atomically(path) as part:
                    Image.fromarray(image[box]).save(part, format="PNG")
            share = mask[box].mean()
            files.append(path)
            truth.append(-1 if 0 < share < SLIVER else int(share > 0))
            held_out.append(pair in split.validation)
    return _label(files, np.array(truth), np.array(held_out), run.labelled, seed)


def label_whole_images(
    run: Run, split: DatasetSplit, negatives: Path, unlabelled: Path | None, seed: int
) -> RunImages:
    """Label some images with polyps and some without; those of ``unlabelled`` stay without a label."""
    without_polyp = find_images(negatives)
    rng = np.random.default_rng(seed)
    without_polyp = [without_polyp[i] for i in rng.permutation(len(without_polyp))]
    development, validation = ([pair.image for pair in part] for part in split[:2])
    set_aside = min(len(validation), len(without_polyp) // 4)
    files = [*development, *validation, *without_polyp]
    truth = [1] * (len(development) + len(validation)) + [0] * len(without_polyp)
    held_out = [False] * len(development) + [True] * len(validation)
    held_out += [True] * set_aside + [False] * (len(without_polyp) - set_aside)
    if unlabelled is not None:
        known = set(files)
        more = [path for path in find_images(unlabelled) if path not in known]
        files, truth, held_out = files + more, truth + [-1] * len(more), held_out + [False] * len(more)
    return _label(files, np.array(truth), np.array(held_out), run.labelled, seed)


def _label(
    files: list[Path],
    truth: Int[np.ndarray, " n"],
    held_out: Bool[np.ndarray, " n"],
    labelled: int,
    seed: int,
) -> RunImages:
    """Label all held-out images, and ``labelled`` others of each class, drawn by the seed."""
    rng = np.random.default_rng(seed)
    labels = np.where(held_out, truth, -1)
    for c in (0, 1):
        of_class = np.flatnonzero(~held_out & (truth == c))
        labels[rng.permutation(of_class)[:labelled]] = c
    usable = ~(held_out & (truth < 0))  # held-out slivers tell nothing
    files = [file.absolute() for file, keep in zip(files, usable.tolist(), strict=True) if keep]
    folder = Path(os.path.commonpath([path.parent for path in files]))
    given = LabelledFolder(folder, tuple(files), labels[usable], (NEGATIVE, POSITIVE), held_out[usable])
    return RunImages(given, truth[usable])
