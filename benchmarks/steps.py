"""Measure what each step of a segmentation brings: to its looks, and to its agreement with annotations.

    FSEG_DATA=... python -m benchmarks.steps

The steps are added one after the other to the paper's method on slides as they were scanned, with
``he-small`` and H fixed: stains normalized, centres of pure tokens and of mixtures, W smoothed, small regions
merged. Looks (``benchmarks.looks``) are of the example slides, in eight clusters of their own, for which
stains are never normalized. Macro F1 is that of 32 clusters of tokens, fitted on training images
and matched with categories by their pixels there (three starts of k-means): on the held-out cases of EBHI-Seg
(gland or not), and on BCSS (tumour or not), of whose three regions two teach and the third is tested. These
images have no border of tissue, so no mixtures. The result goes to ``benchmarks/results/steps.{json,md}``.
"""

import json
import math
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt

from benchmarks.evaluate_he_small import thin_training
from benchmarks.examples import find_examples
from benchmarks.looks import Field, Looks, list_fields, segment_field
from benchmarks.measure import RESULTS, describe_machine
from fseg_jax.encoders.load import load_encoder
from fseg_jax.evaluation.data.datasets import Dataset
from fseg_jax.evaluation.data.encoded_dataset import EncodedDataset, encode_dataset
from fseg_jax.evaluation.data.layouts import open_dataset
from fseg_jax.evaluation.data.mask_codes import IGNORED
from fseg_jax.evaluation.protocols.fseg_experiment import SAMPLED_TOKENS, choose_scale, fit_centers
from fseg_jax.evaluation.protocols.judging import Matrices, compare_f1
from fseg_jax.evaluation.protocols.matching import confuse, match
from fseg_jax.evaluation.report.markdown import format_markdown_table
from fseg_jax.evaluation.report.tables import format_with_interval
from fseg_jax.evaluation.settings import EvaluationSettings
from fseg_jax.methods import fseg
from fseg_jax.numerics import kmeans, metrics
from fseg_jax.numerics.regions import merge_small_regions, weigh_borders
from fseg_jax.numerics.smoothing import PASSES, Likeness, choose_radius, measure_likeness, smooth
from fseg_jax.pipeline.plan import Settings, choose_min_region, choose_smoothing
from fseg_jax.pipeline.pure_tokens import find_pure, measure_change

AS_SCANNED = "the paper's"
STEPS = {
    AS_SCANNED: Settings(mixtures=0, smoothing=0.0, min_region=0.0),
    "+ stains normalized": Settings(mixtures=0, smoothing=0.0, min_region=0.0),
    "+ pure centres, mixtures": Settings(smoothing=0.0, min_region=0.0),
    "+ W smoothed": Settings(min_region=0.0),
    "+ small regions merged": Settings(),
}
K, STARTS = 32, 3
WHOLE = 2048  # pixels: every image is a tile of its own
SQUARE = 128  # pixels of 1 µm: a case of BCSS, whose regions are segmented whole
DATASETS = ("EBHI-Seg", "BCSS")
FIELDS = ("CMU-1", "TCGA, at 0.25", "OS-1")  # whose looks are measured


def measure_steps(field: Field) -> dict[str, Looks]:
    """Measure the looks of a field after each step."""
    looks = {
        name: segment_field(field, None, settings).looks
        for name, settings in STEPS.items()
        if name != AS_SCANNED
    }
    return {AS_SCANNED: looks["+ stains normalized"], **looks}


def fit_pure_centers(encoded: EncodedDataset, k: int, start: int) -> Float[jax.Array, "k c"]:
    """Fit centres on pure tokens of the training split: those that differ least from their neighbours."""
    training = np.flatnonzero(encoded.is_train)
    share = SAMPLED_TOKENS // len(training)
    rng, parts = np.random.default_rng(0), []
    for index in training:
        tokens = np.asarray(encoded.tokens(int(index)))
        deep = np.ones(tokens.shape[:2], bool)
        pure = tokens[find_pure(deep, measure_change(tokens))]
        parts.append(pure[rng.permutation(len(pure))[:share]])
    key = jax.random.fold_in(jax.random.key(0), start)
    return jnp.maximum(kmeans.fit(np.concatenate(parts), k, key=key).centers, 0)


def label_tiles(
    encoded: EncodedDataset, centers: Float[jax.Array, "k c"], settings: Settings
) -> Iterator[tuple[int, UInt[np.ndarray, "height width"]]]:
    """Label every tile of a dataset as a slide of its own; yield its index and its labels."""
    stride, mpp = encoded.card.stride, encoded.card.mpp
    least = choose_min_region(settings, mpp, stride)
    sigma = choose_smoothing(settings, mpp, stride) / (mpp * stride)
    radius = choose_radius(sigma, WHOLE)
    likeness = measure_likeness(np.asarray(centers))
    least_pixels, weights = math.ceil(least / mpp**2), weigh_borders(np.asarray(centers))
    for batch in encoded.batches():
        shape = (len(batch.tokens), *batch.frame, encoded.card.channels)
        assert (batch.sizes == batch.frame).all()  # no tile is smaller than the frame
        features = jnp.asarray(batch.tokens.reshape(shape))
        W = fseg.solve_tiles(features, centers, jax.random.key(0), mode="fixed").W
        W = _smooth_whole(W, likeness, sigma, radius) if radius else _frame(W)
        for index, labels in zip(batch.tiles, np.asarray(fseg.label_pixels(W, stride)), strict=False):
            yield index, next(merge_small_regions([labels], least_pixels, weights))


def _frame(W: Float[jax.Array, "b h w k"]) -> Float[jax.Array, "b p q k"]:
    return jnp.pad(W, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")


def _smooth_whole(
    W: Float[jax.Array, "b h w k"], likeness: Likeness, sigma: float, radius: int
) -> Float[jax.Array, "b p q k"]:
    frame = 1 + PASSES * radius
    pads = ((0, 0), (frame, frame), (frame, frame))
    inside = jnp.pad(jnp.ones(W.shape[:3]), pads)
    smoothed: jax.Array = smooth(jnp.pad(W, (*pads, (0, 0))), inside, likeness, sigma, radius)
    return smoothed


def open_whole_regions(source: Path, out: Path) -> list[Dataset]:
    """Open the regions of BCSS, uncut; return a dataset for each tested region."""
    for path in (*(source / "images").iterdir(), *(source / "masks").iterdir()):
        (out / path.parent.name).mkdir(parents=True, exist_ok=True)
        (out / path.parent.name / path.name).symlink_to(path.resolve())
    datasets = []
    for image in sorted((source / "images").iterdir()):
        (out / "dataset.yaml").write_text(
            f"name: BCSS, region {image.stem}\nmpp: 0.25\ntest: '^{image.stem}'\n"
            "categories: [{name: other, value: 0}, {name: tumour, value: 255}]\n"
        )
        datasets.append(open_dataset(out))
    return datasets


def judge_steps(datasets: list[Dataset], square: int | None = None) -> dict[str, Matrices]:
    """Compute the confusion matrices of the tests of some datasets after each step.

    A case is the dataset's own or, where ``square`` is given, a square of so many pixels.
    """
    encoder = load_encoder("he-small")
    folds: dict[str, list[Matrices]] = {name: [] for name in STEPS}
    for dataset in datasets:
        scale = choose_scale(dataset, encoder, EvaluationSettings())
        for names in ([AS_SCANNED], [name for name in STEPS if name != AS_SCANNED]):
            with tempfile.TemporaryDirectory() as folder:
                encoded = encode_dataset(
                    dataset,
                    encoder,
                    Path(folder),
                    scale=scale,
                    tile=WHOLE,
                    stain_normalization=names != [AS_SCANNED],
                )
                for name, matrices in judge_encoded(dataset, encoded, names, square).items():
                    folds[name].append(matrices)
    return {name: np.concatenate(matrices, axis=1) for name, matrices in folds.items()}


def judge_encoded(
    dataset: Dataset, encoded: EncodedDataset, names: list[str], square: int | None
) -> dict[str, Matrices]:
    """Compute the confusion matrices of a dataset's tests after some of the steps, for each start."""
    folds: dict[str, list[Int[np.ndarray, "cases n n"]]] = {name: [] for name in names}
    for start in range(STARTS):
        plain = fit_centers(encoded, K, "tokens", 0, start)
        pure = fit_pure_centers(encoded, K, start)
        for name in names:
            centers = pure if STEPS[name].mixtures else plain
            folds[name].append(judge_start(dataset, encoded, centers, STEPS[name], square))
    return {name: np.stack(matrices) for name, matrices in folds.items()}


def judge_start(
    dataset: Dataset,
    encoded: EncodedDataset,
    centers: Float[jax.Array, "k c"],
    settings: Settings,
    square: int | None,
) -> Int[np.ndarray, "cases n n"]:
    """Match clusters with categories on the training images, and compare the other images' pixels."""
    categories, tested = match_and_count(
        dataset, encoded, label_tiles(encoded, centers, settings), len(centers), square
    )
    return np.stack([confuse(categories, tested[case]) for case in sorted(tested)])


def match_and_count(
    dataset: Dataset,
    encoded: EncodedDataset,
    labelled: Iterable[tuple[int, UInt[np.ndarray, "height width"]]],
    k: int,
    square: int | None,
) -> tuple[Int[np.ndarray, " k"], dict[Any, Int[np.ndarray, "k n"]]]:
    """Match k clusters with categories on the training images; count the others' pixels, case by case."""
    shape = k, len(dataset.categories)
    learnt_from = np.zeros(shape, np.int64)
    tested: dict[Any, Int[np.ndarray, "k n"]] = {}
    for index, labels in labelled:
        truth = encoded.categories(index)
        if encoded.is_train[index]:
            learnt_from += _count(labels, truth, *shape)
            continue
        item = dataset.items[encoded.item_of[index]]
        side = square or max(labels.shape)
        for y in range(0, labels.shape[0], side):
            for x in range(0, labels.shape[1], side):
                part = np.s_[y : y + side, x : x + side]
                case = (item.name, y, x) if square else item.case
                tested[case] = tested.get(case, 0) + _count(labels[part], truth[part], *shape)
    return match(learnt_from).categories, tested


def _count(
    labels: UInt[np.ndarray, "h w"], truth: UInt[np.ndarray, "h w"], k: int, n: int
) -> Int[np.ndarray, "k n"]:
    """Count pixels by cluster and category, where both are known."""
    known = (labels > 0) & (truth != IGNORED)
    joint = (labels[known].astype(np.int64) - 1) * n + truth[known]
    return np.bincount(joint, minlength=k * n).reshape(k, n)


def format_page(looks: dict[str, dict[str, Looks]], scores: dict[str, dict[str, Any]]) -> str:
    """Format what each step brings as a page of Markdown."""
    head = ["", *(f"{measure}, {field}" for field in looks for measure in Looks._fields)]
    head += [text for dataset in scores for text in (f"F1, {dataset}", "above the paper's")]
    lines = []
    for name in STEPS:
        values = [of_field[name] for of_field in looks.values()]
        cells = [f"{v:.0f}" if m == "regions" else f"{v:.2f}" for f in values for m, v in f._asdict().items()]
        for of_dataset in scores.values():
            score = of_dataset[name]
            cells.append(format_with_interval(score["f1"], score["interval"]))
            cells.append(
                format_with_interval(score["above"][0], score["above"][1], "+.3f") if score["above"] else ""
            )
        lines.append([name, *cells])
    doc = (__doc__ or "").split("\n\n")[2].replace("``", "`").replace("\n", " ")
    return "\n".join(
        [
            "# What each step of a segmentation brings",
            "",
            doc.replace(" The result goes to `benchmarks/results/steps.{json,md}`.", ""),
            "",
            "Brackets: 95 % bootstrap intervals over cases (EBHI-Seg) and over squares of 128 µm (BCSS: "
            "three patients say little about others); of differences, over the same ones. Made by "
            "`python -m benchmarks.steps`.",
            "",
            *format_markdown_table(head, lines),
            "",
        ]
    )


def main() -> None:
    """Measure every step, and write the result."""
    data = find_examples()
    looks = {field.name: measure_steps(field) for field in list_fields(data) if field.name in FIELDS}
    print(looks, flush=True)
    scores: dict[str, dict[str, Any]] = {}
    for name in DATASETS:
        with tempfile.TemporaryDirectory() as folder:
            if name == "BCSS":
                judged = judge_steps(open_whole_regions(data / "bcss_tumour", Path(folder)), SQUARE)
            else:
                judged = judge_steps([thin_training(open_dataset(data / "ebhi"))])
        paper = judged[AS_SCANNED]
        scores[name] = {
            step: {
                "f1": float(metrics.macro_f1(matrices.sum(1)).mean()),
                "interval": metrics.bootstrap(metrics.macro_f1, matrices),
                "above": None if matrices is paper else compare_f1(matrices, paper, seed=0),
            }
            for step, matrices in judged.items()
        }
        print(name, scores[name], flush=True)
    record = {
        **describe_machine(),
        "looks": {field: {n: v._asdict() for n, v in steps.items()} for field, steps in looks.items()},
        "scores": scores,
    }
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    (RESULTS / "steps.json").write_text(text, encoding="utf-8")
    page = format_page(looks, scores)
    (RESULTS / "steps.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
