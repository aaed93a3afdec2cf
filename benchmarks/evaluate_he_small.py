"""Evaluate ``he-small`` beside its parts: macro F1 by matching, on images that it was not trained on.

    FSEG_DATA=... python -m benchmarks.evaluate_he_small [ENCODER [MPP] [bcss] [ebhi]]

The others are an untrained network of the same shape (the statistics of its norms are of the training
images), the classical encoder, and, in every table, tokens without factorization. Data: the held-out cases of
EBHI-Seg (gland or not), where every third image of the other cases fits the matching; and BCSS (tumour or
not), on which nothing was trained: three regions of three patients, cut into squares of 128 µm. Two regions
fit centres and matching, the third is tested, and the three tests are pooled. All encoders see the colours of
a standard stain, by the tissue of a case of EBHI-Seg and of a whole region of BCSS. With MPP, images are read
at so many µm per pixel in place of the encoder's own, those of EBHI-Seg taken for 1.0, and the untrained
network is left out. Results go to ``benchmarks/results/he_small_*``.
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks.examples import find_examples
from benchmarks.he_small_manifest import main as write_manifest
from fseg_jax.cohort.manifest import load_manifest
from fseg_jax.encoders.classical import classical
from fseg_jax.encoders.encoder import Encoder
from fseg_jax.encoders.load import load_encoder
from fseg_jax.encoders.trained import calibrate_gains, load_trained, save_trained
from fseg_jax.evaluation.data.datasets import Dataset
from fseg_jax.evaluation.data.layouts import open_dataset
from fseg_jax.evaluation.protocols.judging import compare_f1
from fseg_jax.evaluation.report.markdown import format_markdown_table
from fseg_jax.evaluation.report.tables import MODE_NAMES, format_with_interval
from fseg_jax.evaluation.results import EvaluationRow
from fseg_jax.evaluation.run import evaluate_fseg
from fseg_jax.evaluation.settings import EvaluationSettings
from fseg_jax.files.images import load_image
from fseg_jax.numerics import metrics
from fseg_jax.pipeline.record import made_with
from fseg_jax.pretraining.fields import Geometry
from fseg_jax.pretraining.simclr import TRUNK, TrainingSettings, make_trainer
from fseg_jax.pretraining.slide_fields import draw_fields
from fseg_jax.pretraining.supply import Supply
from fseg_jax.slides.masks import read_bright
from fseg_jax.slides.reader import open_slide
from fseg_jax.slides.stain_normalization import measure_gains, recolour

RESULTS = Path(__file__).parent / "results"
DATASETS = ("bcss", "ebhi")
K, STARTS = (32, 64), 3
STAINS = 0.85  # weight of the stain features, as in he-small
SQUARE = 512  # pixels of BCSS, at 0.25 µm
CALIBRATION = 30  # steps without learning; a running statistic is then 96 % of these images'


def build_untrained(like: Encoder, folder: Path) -> Encoder:
    """Build an encoder of the same shape with random weights; its norms are calibrated on training images."""
    write_manifest(str(folder / "manifest.csv"))
    geometry, settings = (
        Geometry(side=96),
        TrainingSettings(steps=CALIBRATION, pairs=32, learning_rate=1e-12, seed=1),
    )
    fields = []
    for row in load_manifest(folder / "manifest.csv")[::10]:
        with open_slide(row.path, row.mpp) as slide:
            fields += draw_fields(slide, row.site, geometry, 10, 0)
    trainer = make_trainer(settings)
    state = trainer.begin
    for views in Supply(fields, geometry, settings.pairs, seed=0).stream_views(0, CALIBRATION):
        state, _ = trainer.step(state, views)
    path = folder / "untrained.safetensors"
    trunk, card = trainer.build_trunk(state), replace(like.card, name="untrained")
    images = Supply(fields, geometry, 128, seed=0).draw(CALIBRATION).images[0]
    stains = STAINS if like.card.channels > TRUNK.channels[-1] else 0
    save_trained(path, trunk, card, calibrate_gains(trunk, card, jnp.asarray(images), stains))
    return load_trained(path)


def cut_bcss(source: Path, out: Path) -> list[Dataset]:
    """Cut the regions of BCSS into squares, each a case; return a dataset for each tested region.

    Training squares overlap by half, so that they outnumber the centres. Stains are normalized by region.
    """
    regions = sorted((source / "images").glob("*.jpg"))
    datasets = []
    for tested in regions:
        folder = out / tested.stem
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True)
        for image in regions:
            mask = next((source / "masks").glob(f"{image.stem}.*"))
            pixels, labels = np.asarray(load_image(image).convert("RGB")), read_bright(mask)
            pixels = recolour(pixels, measure_gains(pixels.reshape(-1, 3)))
            step = SQUARE if image == tested else SQUARE // 2
            for y in range(0, pixels.shape[0] - SQUARE + 1, step):
                for x in range(0, pixels.shape[1] - SQUARE + 1, step):
                    part, name = np.s_[y : y + SQUARE, x : x + SQUARE], f"{image.stem}-{y}-{x}.png"
                    Image.fromarray(pixels[part]).save(folder / "images" / name, compress_level=1)
                    tumour = np.where(labels[part], 255, 0).astype(np.uint8)
                    Image.fromarray(tumour).save(folder / "masks" / name)
        (folder / "dataset.yaml").write_text(
            f"name: BCSS, region {tested.stem}\nmpp: 0.25\ntest: '^{tested.stem}-'\n"
            "categories: [{name: other, value: 0}, {name: tumour, value: 255}]\n"
        )
        datasets.append(open_dataset(folder))
    return datasets


def thin_training(dataset: Dataset) -> Dataset:
    """Return a dataset with every third of its training images."""
    train = [n for n, item in enumerate(dataset.items) if item.split == "train"]
    indices = sorted({*range(len(dataset.items))} - {*train} | {*train[::3]})
    return replace(dataset, items=tuple(dataset.items[n] for n in indices), pixels=dataset.pixels[indices])


def pool_folds(folds: list[list[EvaluationRow]], names: list[str]) -> list[dict[str, Any]]:
    """Pool the tests of every segmentation over the folds, and compare the first encoder with the others."""

    def get_key(row: EvaluationRow) -> tuple[Any, ...]:
        return row.encoder, row.k, MODE_NAMES[row.mode], row.centers, row.protocol

    pooled = {
        get_key(row): np.concatenate(
            [next(r for r in rows if get_key(r) == get_key(row)).matrices for rows in folds], 1
        )
        for row in folds[0]
    }
    lines = []
    for (encoder, *setting), matrices in pooled.items():
        line = dict(
            zip(("encoder", "k", "segmentation", "centres of", "protocol"), (encoder, *setting), strict=True)
        )
        scores = metrics.macro_f1(matrices.sum(1))
        line |= {
            "f1": float(scores.mean()),
            "interval": metrics.bootstrap(metrics.macro_f1, matrices),
            "spread over starts": float(scores.std(ddof=1)),
        }
        if encoder == names[0]:
            for other in names[1:]:
                line[f"above {other}"] = compare_f1(matrices, pooled[other, *setting], seed=0)
        lines.append(line)
    return lines


def format_page(title: str, text: str, lines: list[dict[str, Any]], names: list[str]) -> str:
    """Format the pooled results as a page of Markdown."""

    def format_cells(line: dict[str, Any]) -> list[str]:
        out = [str(line[name]) for name in ("encoder", "k", "segmentation", "centres of")]
        out += ["balanced" if line["protocol"].startswith("balanced") else "plain"]
        out += [format_with_interval(line["f1"], line["interval"]), f"{line['spread over starts']:.3f}"]
        for other in names[1:]:
            lead = line.get(f"above {other}")
            out.append(format_with_interval(lead[0], lead[1], "+.3f") if lead else "")
        return out

    head = ["encoder", "k", "segmentation", "centres of", "matching", "macro F1", "±"]
    head += [f"{names[0]} above {other}" for other in names[1:]]
    return "\n".join(
        [f"# {title}", "", text, "", *format_markdown_table(head, [format_cells(line) for line in lines]), ""]
    )


def prepare_datasets(short: str, data: Path, folder: Path) -> tuple[str, list[Dataset]]:
    """Return the title and the folds of ``bcss`` or ``ebhi``."""
    if short == "bcss":
        folds = cut_bcss(data / "bcss_tumour", folder / "bcss")
        return "BCSS, tumour or not, one region tested by what two others teach", folds
    return "EBHI-Seg, gland or not, held-out cases", [thin_training(open_dataset(data / "ebhi"))]


def evaluate_pooled(
    datasets: list[Dataset],
    encoders: list[Encoder],
    out: Path,
    *,
    stain_normalization: bool,
    mpp: float | None = None,
) -> list[dict[str, Any]]:
    """Evaluate encoders on each fold, and pool the tests."""
    settings = EvaluationSettings(
        k=K,
        modes=("fixed",),
        protocols=("matching", "balanced matching"),
        starts=STARTS,
        panels=0,
        stain_normalization=stain_normalization,
        mpp=mpp,
        mpp_override=None if mpp is None else datasets[0].mpp or 1.0,
    )

    def report(phase: str, done: int, total: int) -> None:
        if done == total:
            print(f"{phase}: {done}/{total}", flush=True)

    folds = [
        evaluate_fseg(dataset, encoders, settings, out=out / str(fold), progress=report)
        for fold, dataset in enumerate(datasets)
    ]
    return pool_folds(folds, [encoder.card.name for encoder in encoders])


def main(name: str = "he-small", *others: str) -> None:
    """Evaluate an encoder on the datasets, ``bcss`` and ``ebhi`` by default, and write the results."""
    data = find_examples()
    mpp = next((float(other) for other in others if other not in DATASETS), None)
    at = "" if mpp is None else f" {mpp:g}"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        encoder = load_encoder(name)
        untrained = [build_untrained(encoder, folder)] if mpp is None else []
        encoders = [encoder, *untrained, classical()]
        names = [encoder.card.name for encoder in encoders]
        for short in [other for other in others if other in DATASETS] or DATASETS:
            title, datasets = prepare_datasets(short, data, folder)
            # The squares of BCSS are cut of regions whose stain is normalized.
            lines = evaluate_pooled(
                datasets, encoders, folder / f"out-{short}", stain_normalization=short != "bcss", mpp=mpp
            )
            tests = [item for dataset in datasets for item in dataset.items if item.split == "test"]
            text = (
                f"`python -m benchmarks.evaluate_he_small {name}{at} {short}`: {len(tests)} test images of "
                f"{len({item.case for item in tests})} cases, {STARTS} starts of k-means. Brackets: 95 % "
                "bootstrap intervals over the cases, those of differences of the same resampled cases; ±: "
                "standard deviation over the starts. Stains are normalized."
            )
            if short == "bcss":
                text += " A case is a square: three patients say little about others."
            page = format_page(title, text, lines, names)
            path = RESULTS / f"he_small_{short}{at.replace(' ', '_at_')}"
            Path(f"{path}.md").write_text(page)
            record = {**made_with().to_json(), "device": jax.devices()[0].device_kind, "rows": lines}
            record |= {"encoders": {e.card.name: e.card.weights_hash for e in encoders}}
            Path(f"{path}.json").write_text(json.dumps(record, indent=1) + "\n")
            print(page)


if __name__ == "__main__":
    main(*sys.argv[1:])
