"""Measure what each step of a segmentation brings: to its looks, and to its agreement with annotations.

    FSEG_DATA=... python -m benchmarks.steps

The steps are added one after the other to the paper's method, with ``he-small`` and H fixed: centres of pure
tokens and of mixtures, W smoothed, small regions merged. Looks (``benchmarks.looks``) are of the example
slides, in eight clusters of their own. Macro F1 is that of the shipped codebook's 32 clusters, matched with
categories by pixels on other images than those that are tested: the held-out cases of EBHI-Seg (gland or
not), and BCSS (tumour or not), of whose three regions two teach and the third is tested. The result goes to
``benchmarks/results/steps.{json,md}``.
"""

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt, UInt8

from benchmarks.evaluate_he_small import thin_training
from benchmarks.examples import find_examples
from benchmarks.looks import Field, Looks, list_fields, segment_field
from benchmarks.measure import RESULTS, describe_machine
from fseg_jax.codebook import SHIPPED, Codebook
from fseg_jax.encoders.load import load_encoder
from fseg_jax.evaluation.data.encoded_dataset import EncodedDataset, encode_dataset
from fseg_jax.evaluation.data.layouts import open_dataset
from fseg_jax.evaluation.protocols.judging import compare_f1
from fseg_jax.evaluation.protocols.matching import confuse, match
from fseg_jax.evaluation.report.tables import format_markdown_table, format_with_interval
from fseg_jax.methods import fseg
from fseg_jax.numerics import metrics
from fseg_jax.numerics.regions import merge_small_regions
from fseg_jax.numerics.resample import smooth
from fseg_jax.outputs.labels import open_labels
from fseg_jax.pipeline.plan import Settings, choose_min_region, choose_mixtures, choose_smoothing
from fseg_jax.pipeline.segment import segment_slide
from fseg_jax.slides.masks import read_bright
from fseg_jax.slides.reader import open_slide

STEPS = {
    "the paper's": Settings(mixtures=0, smoothing=0.0, min_region=0.0),
    "+ pure centres, mixtures": Settings(smoothing=0.0, min_region=0.0),
    "+ W smoothed": Settings(min_region=0.0),
    "+ small regions merged": Settings(),
}
SHIPPED_K = 32
FIELDS = ("CMU-1", "TCGA, at 0.25", "OS-1")  # whose looks are measured
CATEGORIES = 2
SQUARE = 128  # pixels of 1 µm: a case of BCSS

Counts = Int[np.ndarray, "cases k n"]


def measure_steps(field: Field) -> dict[str, Looks]:
    """Measure the looks of a field after each step."""
    return {name: segment_field(field, None, settings).looks for name, settings in STEPS.items()}


def count_regions(region: Path, mask: Path, book: Codebook, settings: Settings) -> Counts:
    """Segment a region of BCSS, and count pixels by cluster and category in each of its squares."""
    encoder = load_encoder(SHIPPED)
    with tempfile.TemporaryDirectory() as folder, open_slide(region, 0.25) as slide:
        whole = replace(settings, tissue="all", mpp_override=0.25)
        segment_slide(slide, Path(folder), encoder, book, whole)
        labels = open_labels(Path(folder) / f"{slide.name}.ome.zarr").read(0)
    is_tumour = read_bright(mask)
    rows, columns = (
        ((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(labels.shape, is_tumour.shape, strict=True)
    )
    truth = is_tumour[rows[:, None], columns[None]].astype(np.uint8)
    squares = [
        np.s_[y : y + SQUARE, x : x + SQUARE]
        for y in range(0, labels.shape[0], SQUARE)
        for x in range(0, labels.shape[1], SQUARE)
    ]
    return np.stack([_count(labels[at], truth[at], book.k) for at in squares])


def judge_bcss(data: Path, book: Codebook) -> dict[str, np.ndarray]:
    """Compute the confusion matrices of BCSS's squares after each step: (1, cases, n, n)."""
    images = sorted((data / "bcss_tumour" / "images").glob("*.jpg"))
    masks = [next((data / "bcss_tumour" / "masks").glob(f"{image.stem}.*")) for image in images]
    judged = {}
    for name, settings in STEPS.items():
        counts = [count_regions(*paths, book, settings) for paths in zip(images, masks, strict=True)]
        folds = []
        for tested in range(len(counts)):
            learnt_from = sum(counts[n].sum(0) for n in range(len(counts)) if n != tested)
            folds.append(confuse(match(np.asarray(learnt_from)).categories, counts[tested]))
        judged[name] = np.concatenate(folds)[None]
    return judged


def label_tiles(
    encoded: EncodedDataset, book: Codebook, settings: Settings
) -> Iterator[tuple[int, UInt[np.ndarray, "height width"]]]:
    """Label every tile of a dataset as a slide of its own; yield its index and its labels."""
    stride, mpp = encoded.card.stride, encoded.card.mpp
    mixtures, least = choose_mixtures(settings, book), choose_min_region(settings, mpp, stride)
    sigma = choose_smoothing(settings, mpp, stride) / (mpp * stride)
    radius = math.ceil(3 * sigma)
    for batch in encoded.batches():
        shape = (len(batch.tokens), *batch.frame, encoded.card.channels)
        assert (batch.sizes == batch.frame).all()  # no tile is smaller than the frame
        result = fseg.solve_tiles(
            jnp.asarray(batch.tokens.reshape(shape)),
            jnp.asarray(book.centers),
            jax.random.key(0),
            mode="fixed",
            mixtures=mixtures,
        )
        W = _smooth_whole(result.W, sigma, radius) if radius else _frame(result.W)
        for index, labels in zip(batch.tiles, np.asarray(fseg.label_pixels(W, stride)), strict=False):
            yield index, next(merge_small_regions([labels], math.ceil(least / mpp**2)))


def _frame(W: Float[jax.Array, "b h w k"]) -> Float[jax.Array, "b p q k"]:
    return jnp.pad(W, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")


def _smooth_whole(W: Float[jax.Array, "b h w k"], sigma: float, radius: int) -> Float[jax.Array, "b p q k"]:
    pads = ((0, 0), (1 + radius, 1 + radius), (1 + radius, 1 + radius))
    inside = jnp.pad(jnp.ones(W.shape[:3]), pads)
    smoothed: jax.Array = smooth(jnp.pad(W, (*pads, (0, 0))), inside, sigma, radius)
    return smoothed


def judge_ebhi(data: Path, book: Codebook) -> dict[str, np.ndarray]:
    """Compute the confusion matrices of EBHI-Seg's held-out cases after each step: (1, cases, n, n)."""
    dataset, encoder = thin_training(open_dataset(data / "ebhi")), load_encoder(SHIPPED)
    items = dataset.items
    is_train = np.array([item.split == "train" for item in items])
    case_of = np.unique([item.case for item in items if item.split != "train"], return_inverse=True)[1]
    judged = {}
    with tempfile.TemporaryDirectory() as folder:
        encoded = encode_dataset(dataset, encoder, Path(folder))
        for name, settings in STEPS.items():
            counts = np.zeros((len(items), book.k, CATEGORIES), np.int64)
            for index, labels in label_tiles(encoded, book, settings):
                counts[encoded.item_of[index]] += _count(labels, encoded.categories(index), book.k)
            categories = match(counts[is_train].sum(0)).categories
            matrices = np.zeros((case_of.max() + 1, CATEGORIES, CATEGORIES), np.int64)
            np.add.at(matrices, case_of, confuse(categories, counts[~is_train]))
            judged[name] = matrices[None]
    return judged


def _count(
    labels: UInt[np.ndarray, "h w"], truth: UInt8[np.ndarray, "h w"], k: int
) -> Int[np.ndarray, "k n"]:
    """Count pixels by cluster and category, where both are known."""
    known = (labels > 0) & (truth < CATEGORIES)
    joint = (labels[known].astype(np.int64) - 1) * CATEGORIES + truth[known]
    return np.bincount(joint, minlength=k * CATEGORIES).reshape(k, CATEGORIES)


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
    book = Codebook.load(SHIPPED, SHIPPED_K)
    scores: dict[str, dict[str, Any]] = {}
    for dataset, judged in (("EBHI-Seg", judge_ebhi(data, book)), ("BCSS", judge_bcss(data, book))):
        paper = judged["the paper's"]
        scores[dataset] = {
            name: {
                "f1": float(metrics.macro_f1(matrices.sum(1)).mean()),
                "interval": metrics.bootstrap(metrics.macro_f1, matrices),
                "above": None if matrices is paper else compare_f1(matrices, paper, seed=0),
            }
            for name, matrices in judged.items()
        }
        print(dataset, scores[dataset], flush=True)
    record = {
        **describe_machine(),
        "codebook": book.hash,
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
