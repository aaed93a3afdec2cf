"""How well masks agree with the truth: the measures of the Medico challenge, and two masks that do not look.

Every mean is over images, as in the challenge; what is pooled over all pixels stands beside it. Of an image
without anything to find, an empty mask is right (every score 1) and any other wrong (0). A mask that finds
nothing where there is something has a precision of 0.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from fseg_jax.cam.images import find_images
from fseg_jax.errors import InputError
from fseg_jax.files.paths import check_folder
from fseg_jax.numerics.metrics import RESAMPLES, Interval
from fseg_jax.slides.masks import read_bright

MEASURES = ("accuracy", "jaccard", "dice", "f1", "recall", "precision")
DISC = 0.3  # radius of the centre disc, of the shorter side: about the best one for HyperKvasir's polyps


class Pair(NamedTuple):
    """An image and its mask."""

    name: str
    image: Path
    mask: Path


def open_pairs(folder: Path) -> list[Pair]:
    """A folder in Kvasir-SEG's layout: ``images/`` and ``masks/`` with the same names, whatever their
    suffixes. Raises ``InputError`` where a mask is missing or two files bear one name.
    """
    folder = Path(folder)
    for needed in ("images", "masks"):
        check_folder(folder / needed, "Kvasir-SEG's layout is images/ and masks/")
    images, masks = (_by_name(folder / part) for part in ("images", "masks"))
    if missing := sorted(images.keys() - masks.keys()):
        raise InputError(f"{folder}: the image {missing[0]} has no mask ({len(missing)} in all)")
    return [Pair(name, path, masks[name]) for name, path in images.items()]


def _by_name(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in find_images(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise InputError(f"{folder}: two files are called {name}: {found[name].name} and {path.name}")
        found[name] = path
    return found


class MaskScores(NamedTuple):
    """The measures' means over images, their 95 % bootstrap intervals, and the measures of all pixels
    pooled, each in the order of ``MEASURES``.
    """

    images: int
    mean: tuple[float, ...]
    intervals: tuple[Interval, ...]
    pooled: tuple[float, ...]


def count(
    mask: Bool[np.ndarray, "height width"], truth: Bool[np.ndarray, "height width"]
) -> Int[np.ndarray, "4"]:
    """Pixels that are true positives, false positives, false negatives and true negatives."""
    hit, masked, wanted = (np.count_nonzero(x) for x in (mask & truth, mask, truth))
    return np.array([hit, masked - hit, wanted - hit, truth.size - masked - wanted + hit])


def measure(counts: Int[np.ndarray, "*b 4"]) -> Float[np.ndarray, "*b 6"]:
    """The six measures of counts of pixels, in the order of ``MEASURES``."""
    tp, fp, fn, tn = np.moveaxis(counts.astype(float), -1, 0)
    nothing = tp + fp + fn == 0

    def ratio(a: Any, b: Any) -> Any:
        return np.where(nothing, 1.0, a / np.maximum(b, 1))

    dice = ratio(2 * tp, 2 * tp + fp + fn)
    return np.stack(
        [
            (tp + tn) / np.maximum(tp + fp + fn + tn, 1),
            ratio(tp, tp + fp + fn),
            dice,
            dice,
            ratio(tp, tp + fn),
            ratio(tp, tp + fp),
        ],
        axis=-1,
    )


def score(counts: Int[np.ndarray, "n 4"], seed: int = 0) -> MaskScores:
    """The scores of many images; the intervals resample images."""
    each = measure(counts)
    n = len(each)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    low, high = np.percentile(drawn @ each / n, (2.5, 97.5), axis=0)
    intervals = tuple(Interval(*bounds) for bounds in zip(low.tolist(), high.tolist(), strict=True))
    pooled = measure(counts.sum(0))
    return MaskScores(n, tuple(each.mean(0).tolist()), intervals, tuple(pooled.tolist()))


def everything(shape: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """The baseline that masks all of an image."""
    return np.ones(shape, bool)


def centre_disc(shape: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """The baseline that masks a disc in the middle, without looking."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    middle = ((shape[0] - 1) / 2, (shape[1] - 1) / 2)
    return np.hypot(y - middle[0], x - middle[1]) < DISC * min(shape)


def evaluate_folder(masks: Path, truth: Path, seed: int = 0) -> dict[str, MaskScores]:
    """The scores of a folder of masks, and of the two baselines, against a folder of true ones.

    Files are paired by their paths without suffix. Raises ``InputError`` where a mask has no truth or
    another size.
    """
    found, true = _by_name(Path(masks)), _by_name(Path(truth))
    if missing := sorted(found.keys() - true.keys()):
        raise InputError(f"{truth}: has no mask {missing[0]} ({len(missing)} in all are missing)")
    counts: dict[str, list] = {"masks": [], **{name: [] for name in BASELINES}}
    for name, path in found.items():
        mask, wanted = read_bright(path), read_bright(true[name])
        if mask.shape != wanted.shape:
            raise InputError(
                f"{path}: {mask.shape[1]} × {mask.shape[0]} pixels, and the truth has "
                f"{wanted.shape[1]} × {wanted.shape[0]}"
            )
        for what, made in {"masks": mask, **{n: make(mask.shape) for n, make in BASELINES.items()}}.items():
            counts[what].append(count(made, wanted))
    return {what: score(np.stack(each), seed) for what, each in counts.items()}


BASELINES: dict[str, Callable[[tuple[int, int]], np.ndarray]] = {
    "everything": everything,
    "centre disc": centre_disc,
}


def scores_table(scores: dict[str, MaskScores]) -> str:
    """Scores as a table in Markdown: means over images, the Dice's and Jaccard's interval, and pooled."""
    head = [
        "",
        "images",
        *(m.capitalize() for m in MEASURES),
        "Jaccard, 95 %",
        "Dice, 95 %",
        "pooled Jaccard",
    ]
    lines = [
        [
            name,
            str(s.images),
            *(f"{value:.4f}" for value in s.mean),
            *("{:.3f} to {:.3f}".format(*s.intervals[i]) for i in (1, 2)),
            f"{s.pooled[1]:.4f}",
        ]
        for name, s in scores.items()
    ]
    return markdown(head, lines)


def markdown(head: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines)) + "\n"
