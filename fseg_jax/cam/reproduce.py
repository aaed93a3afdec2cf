"""Repeat the CAM paper's runs (Storås 2021, §2 and Tables 1 and 2) on a dataset in Kvasir-SEG's layout.

Each run goes through the whole chain: labels are propagated, a classifier is trained, the test images are
segmented, and the masks are scored. No step before the scoring sees the test images.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from fseg_jax.cam.classifier import find_equivalent_layer
from fseg_jax.cam.classifier_file import Classifier, load_classifier
from fseg_jax.cam.heat_mapper import HeatMapper, MappingSpeed, MaskSettings, choose_thresholds, measure_speed
from fseg_jax.cam.image_pairs import find_pairs
from fseg_jax.cam.paper_tables import format_tables
from fseg_jax.cam.propagate_labels import PropagationSettings, propagate_folder
from fseg_jax.cam.run_images import (
    POSITIVE,
    DatasetSplit,
    RunImages,
    label_tiles,
    label_whole_images,
    split_dataset,
)
from fseg_jax.cam.run_results import ClassifierRecord, MethodRow, Reproduction, RunResult
from fseg_jax.cam.runs import ReproductionSettings, Run, Source
from fseg_jax.cam.score_masks import MaskScores, count_pixels, score_baselines, score_counts
from fseg_jax.cam.segment_images import RECORD as MASKS_RECORD
from fseg_jax.cam.segment_images import segment_files
from fseg_jax.cam.step_outputs import check_record_is_new, write_json
from fseg_jax.cam.train_classifier import train_folder
from fseg_jax.errors import InputError
from fseg_jax.methods import cam
from fseg_jax.pipeline.publish import together
from fseg_jax.process import Progress
from fseg_jax.slides.masks import read_bright

RECORD = "results.json"
TABLES = "results.md"
CLASSIFIER_DONE = "done.json"  # in a classifier's folder: what it was made with, and its record


def reproduce(
    dataset: Path,
    out: Path,
    runs: Sequence[Run],
    settings: ReproductionSettings,
    *,
    negatives: Path | None = None,
    unlabelled: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[RunResult]:
    """Repeat runs on a dataset, and write the paper's tables with ours beside them.

    Writes ``results.md`` and ``results.json``, anew after each run, and a folder for each classifier and run.
    Runs with one source and k share a classifier. Finished classifiers and masks are not made again, so that
    an interrupted call goes on where it was.

    Args:
        dataset: A folder with ``images/`` and ``masks/``.
        out: The folder to write to.
        runs: The runs, in the order of the tables.
        settings: How they are repeated.
        negatives: Images without polyps, for runs on whole images; without them, all runs learn from tiles.
        unlabelled: More images for runs on whole images.
        overwrite: Whether finished classifiers and masks are made again.
        progress: Hears how far the work is.

    Raises:
        InputError: For images or settings that cannot be, and for a classifier made with other settings.
    """
    settings.classifier.check()
    out = Path(out)
    split = split_dataset(find_pairs(Path(dataset)), settings)
    check_record_is_new(out, RECORD, overwrite=True)
    started = time.time()
    baselines = score_baselines([read_bright(pair.mask) for pair in split.test], settings.seed)
    results: list[RunResult] = []
    for run in runs:
        source: Source = "tiles" if negatives is None else run.source
        if source == "tiles" or negatives is None:
            images = label_tiles(run, split, out, settings.seed)
        else:
            images = label_whole_images(run, split, negatives, unlabelled, settings.seed)
        folder = out / f"{source}-k{run.k}-to-{run.wanted}"
        record = _make_classifier(run, images, folder, settings, overwrite, progress)
        classifier = load_classifier(folder)
        rows, speed = _make_masks(run, source, split, classifier, out, settings, overwrite, progress)
        results.append(RunResult(run, source, rows, speed, record))
        reproduction = Reproduction(Path(dataset).absolute().name, settings, split, baselines, results)
        with together(RECORD, out) as partial:
            (partial / TABLES).write_text(format_tables(reproduction), encoding="utf-8")
            write_json(partial / RECORD, reproduction.to_json(started))
    return results


def _make_classifier(
    run: Run,
    images: RunImages,
    folder: Path,
    settings: ReproductionSettings,
    overwrite: bool,
    progress: Progress | None,
) -> ClassifierRecord:
    """Propagate labels and train a classifier in a folder, unless that is done, and return the record."""
    propagation = PropagationSettings(
        k=run.k, wanted=run.wanted, features=settings.features, held_out=0, seed=settings.seed
    )
    wanted = {
        "propagation": asdict(propagation),
        "training": asdict(settings.classifier),
        "images": len(images.given.files),
    }
    done = folder / CLASSIFIER_DONE
    if not overwrite and done.exists():
        content = json.loads(done.read_text(encoding="utf-8"))
        if content["wanted"] != wanted:
            raise InputError(f"{folder}: was made with other settings: give --overwrite, or another folder")
        return ClassifierRecord.from_json(content)
    propagated = propagate_folder(images.given, folder, propagation, overwrite=True, progress=progress)
    training = train_folder(
        propagated.images,
        folder,
        settings.classifier,
        most=run.wanted,
        held_out=0,
        overwrite=True,
        progress=progress,
    )
    readable = set(propagated.images.files)
    among_readable = np.array([path in readable for path in images.given.files], bool)
    before, truth = images.given.labels[among_readable], images.truth[among_readable]
    joined = (before < 0) & (propagated.images.labels >= 0) & (truth >= 0)
    right = float((propagated.images.labels == truth)[joined].mean()) if joined.any() else None
    record = ClassifierRecord(propagated.record, right, training)
    write_json(done, {"wanted": wanted, **record.to_json()})
    return record


def _make_masks(
    run: Run,
    source: Source,
    split: DatasetSplit,
    classifier: Classifier,
    out: Path,
    settings: ReproductionSettings,
    overwrite: bool,
    progress: Progress | None,
) -> tuple[list[MethodRow], MappingSpeed]:
    """Score masks of the test images, with the paper's thresholds and with chosen ones for each method.

    Writes the masks with the paper's thresholds to ``run-NAME/``, unless they are there.
    """
    tiles = run.cuts if source == "tiles" else 1
    paper = MaskSettings(
        layer=find_equivalent_layer(run.layer, classifier.network.config),
        lower=run.lower,
        upper=run.upper,
        tiles=tiles,
        of_class=POSITIVE,
        seed=settings.seed,
    )
    images, truths = [], []
    for pair in split.test:
        image, truth = pair.read()
        if truth.shape != image.shape[:2]:
            raise InputError(f"{pair.mask}: has not the size of its image")
        images.append(image)
        truths.append(truth)
    validation = [pair.read() for pair in split.validation]
    rows = []
    # The paper's way, and then each method; images cut into tiles are mapped in one piece there.
    paper_way = ("grad-cam", False)
    for method, whole in dict.fromkeys([paper_way, *((method, tiles > 1) for method in settings.methods)]):
        mapper = HeatMapper(classifier, replace(paper, method=method, whole=whole))
        maps = []
        for number, image in enumerate(images, 1):
            maps.append(mapper(image)[0])
            if progress:
                progress(f"run {run.name}: {method}", number, len(images))
        if (method, whole) == paper_way:
            scores = _score(maps, truths, paper.band)
            rows.append(MethodRow(run.name, method, whole, paper.band, False, scores))
        if method in settings.methods:
            band, _ = choose_thresholds(mapper, validation)
            rows.append(MethodRow(run.name, method, whole, band, True, _score(maps, truths, band)))
    speed = measure_speed(HeatMapper(classifier, paper), images)
    folder = out / f"run-{run.name}"
    if overwrite or not (folder / MASKS_RECORD).exists():
        segment_files(
            [pair.image for pair in split.test],
            [pair.name for pair in split.test],
            classifier,
            folder,
            paper,
            truth=lambda number: truths[number],
            overwrite=overwrite,
            progress=progress,
        )
    return rows, speed


def _score(
    maps: list[Float[np.ndarray, "_ _"]], truths: list[Bool[np.ndarray, "_ _"]], thresholds: cam.Band
) -> MaskScores:
    masks = (cam.threshold_maps(heat, thresholds) for heat in maps)
    return score_counts(np.stack([count_pixels(m, t) for m, t in zip(masks, truths, strict=True)]))
