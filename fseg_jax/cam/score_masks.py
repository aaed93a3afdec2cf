"""Step 4: score masks against true ones, by the measures of the Medico challenge, beside two baselines.

Every mean is over images, as in the challenge; measures of all pixels pooled stand beside it. For an image
without anything to find, an empty mask is right (every score 1) and any other wrong (0). A mask that finds
nothing where there is something has a precision of 0.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from fseg_jax.cam.image_pairs import find_by_name
from fseg_jax.errors import InputError
from fseg_jax.numerics.metrics import RESAMPLES, Interval
from fseg_jax.slides.masks import read_bright

MEASURES = ("accuracy", "jaccard", "dice", "f1", "recall", "precision")
DISC_RADIUS = 0.3  # of the shorter side: about the best one for HyperKvasir's polyps


class MaskScores(NamedTuple):
    """Scores of masks; each tuple has a number a measure, in the order of ``MEASURES``.

    Attributes:
        images: Number of images.
        mean: Means over images.
        intervals: 95 % bootstrap intervals of the means; images are resampled.
        pooled: The measures of all pixels pooled.
    """

    images: int
    mean: tuple[float, ...]
    intervals: tuple[Interval, ...]
    pooled: tuple[float, ...]


def count_pixels(
    mask: Bool[np.ndarray, "height width"], truth: Bool[np.ndarray, "height width"]
) -> Int[np.ndarray, "4"]:
    """Count true positive, false positive, false negative and true negative pixels."""
    hit, masked, wanted = (np.count_nonzero(x) for x in (mask & truth, mask, truth))
    return np.array([hit, masked - hit, wanted - hit, truth.size - masked - wanted + hit])


def measure(counts: Int[np.ndarray, "*b 4"]) -> Float[np.ndarray, "*b 6"]:
    """Compute the six measures of counts of pixels, in the order of ``MEASURES``."""
    tp, fp, fn, tn = np.moveaxis(counts.astype(float), -1, 0)
    nothing = tp + fp + fn == 0

    def ratio(a: Float[np.ndarray, "*b"], b: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
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


def score_counts(counts: Int[np.ndarray, "n 4"], seed: int = 0) -> MaskScores:
    """Score many images by their counts of pixels; ``seed`` is the bootstrap's."""
    by_image = measure(counts)
    n = len(by_image)
    resamples = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    low, high = np.percentile(resamples @ by_image / n, (2.5, 97.5), axis=0)
    intervals = tuple(Interval(*bounds) for bounds in zip(low.tolist(), high.tolist(), strict=True))
    pooled = measure(counts.sum(0))
    return MaskScores(n, tuple(by_image.mean(0).tolist()), intervals, tuple(pooled.tolist()))


def mask_everything(shape: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Mask all of an image: a baseline."""
    return np.ones(shape, bool)


def mask_center_disc(shape: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Mask a disc in the middle of an image: a baseline that does not look."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    middle = ((shape[0] - 1) / 2, (shape[1] - 1) / 2)
    disc: np.ndarray = np.hypot(y - middle[0], x - middle[1]) < DISC_RADIUS * min(shape)
    return disc


BASELINES: dict[str, Callable[[tuple[int, int]], Bool[np.ndarray, "height width"]]] = {
    "everything": mask_everything,
    "centre disc": mask_center_disc,
}


def score_folder(masks: Path, truth: Path, seed: int = 0) -> dict[str, MaskScores]:
    """Score a folder of masks, and the baselines, against a folder of true masks.

    Files are paired by their paths without suffix. Raises ``InputError`` where a mask has no true mask or one
    of another size.
    """
    mask_files, true_files = find_by_name(Path(masks)), find_by_name(Path(truth))
    if missing := sorted(mask_files.keys() - true_files.keys()):
        raise InputError(f"{truth}: has no mask {missing[0]} ({len(missing)} in all are missing)")
    counts: dict[str, list[Int[np.ndarray, "4"]]] = {"masks": [], **{name: [] for name in BASELINES}}
    for name, path in mask_files.items():
        mask, true_mask = read_bright(path), read_bright(true_files[name])
        if mask.shape != true_mask.shape:
            raise InputError(
                f"{path}: {mask.shape[1]} × {mask.shape[0]} pixels, and the truth has "
                f"{true_mask.shape[1]} × {true_mask.shape[0]}"
            )
        counts["masks"].append(count_pixels(mask, true_mask))
        for baseline, make_mask in BASELINES.items():
            counts[baseline].append(count_pixels(make_mask(mask.shape), true_mask))
    return {name: score_counts(np.stack(by_image), seed) for name, by_image in counts.items()}


def score_baselines(truths: list[Bool[np.ndarray, "_ _"]], seed: int) -> dict[str, MaskScores]:
    """Score the baselines against true masks."""
    return {
        name: score_counts(np.stack([count_pixels(make_mask(truth.shape), truth) for truth in truths]), seed)
        for name, make_mask in BASELINES.items()
    }


def format_scores(scores: dict[str, MaskScores]) -> str:
    """Format scores as a table in Markdown: means over images, two intervals, and the pooled Jaccard."""
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
    return format_table(head, lines)


def format_table(head: list[str], lines: list[list[str]]) -> str:
    """Format a table in Markdown, its first column aligned left and the others right."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines)) + "\n"
