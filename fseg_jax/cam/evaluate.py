"""The CAM paper's five runs (Storås 2021, §2 and Tables 1 and 2) on a dataset in Kvasir-SEG's layout.

Images are split three ways by a seed: those to learn from, those (and their tiles) that choose the epoch and
the thresholds, and those that are scored, which no step has seen.
"""

import importlib
import json
import os
import runpy
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from PIL import Image

from fseg_jax.cam import tables as cam_tables
from fseg_jax.cam.classifier import same_place
from fseg_jax.cam.classifier_file import Classifier, load_classifier
from fseg_jax.cam.images import find_images, read_image
from fseg_jax.cam.labels import Labelled
from fseg_jax.cam.masks import (
    BASELINES,
    MaskScores,
    Pair,
    count,
    open_pairs,
    score,
)
from fseg_jax.cam.propagate import PropagationSettings, propagate_folder
from fseg_jax.cam.runs import MethodRow, Reproduction, Run, RunResult, Speed, Split
from fseg_jax.cam.segment import Mapper, MaskSettings, segment_files
from fseg_jax.cam.train import train_folder
from fseg_jax.errors import InputError
from fseg_jax.files.atomic import replacing
from fseg_jax.methods import cam
from fseg_jax.process import Progress
from fseg_jax.slides.masks import read_bright

RUNS = ("1", "2", "3", "4", "5")
POSITIVE, NEGATIVE = "polyp", "non-polyp"
SLIVER = 0.05  # a tile of which less is masked, but not nothing, counts as neither class and is never given


def choose_thresholds(
    classifier: Classifier, settings: MaskSettings, folder: Path
) -> tuple[MaskSettings, float]:
    """The settings with the thresholds that do best on a folder of images and masks, and their mean Dice."""
    mapper, pairs = Mapper(classifier, settings), open_pairs(folder)
    found, dice = cam.choose_band(
        [mapper(read_image(pair.image))[0] for pair in pairs], [read_bright(pair.mask) for pair in pairs]
    )
    return replace(settings, lower=found.lower, upper=found.upper), dice


def throughput(mapper: Mapper, images: Sequence[np.ndarray]) -> Speed:
    """Time images one by one, compilation excluded: the first is done once before the clock starts."""
    mapper.mask(mapper(images[0])[0])
    seconds = []
    for image in images:
        started = time.perf_counter()
        mapper.mask(mapper(image)[0])
        seconds.append(time.perf_counter() - started)
    return Speed(float(np.mean(seconds)), min(seconds), max(seconds))


# -------------------------------------------------------------------------------------------- the runs


def load_run(which: str) -> Run:
    """One of the paper's runs by its number, or a file of one's own that sets ``RUN``."""
    if which in RUNS:
        run = importlib.import_module(f"fseg_jax.cam.configs.medico2021_run{which}").RUN
        assert isinstance(run, Run)
        return run
    path = Path(which)
    if path.suffix != ".py" or not path.is_file():
        raise InputError(f"--run {which}: give 1 to 5, or a Python file that sets RUN")
    run = runpy.run_path(str(path)).get("RUN")
    if not isinstance(run, Run):
        raise InputError(f"{path}: sets no RUN = fseg_jax.cam.runs.Run(…)")
    return run


def split(pairs: list[Pair], setting: Reproduction) -> Split:
    """Draw the test and validation images by the seed; no image serves two purposes."""
    order = np.random.default_rng(setting.seed).permutation(len(pairs))
    test = round(setting.test * len(pairs))
    if test < 1 or len(pairs) - test - setting.validation < 2:
        raise InputError(
            f"{len(pairs)} images are too few: {test} to score on and {setting.validation} to choose by "
            "leave nothing to learn from"
        )
    parts = np.split(order, [test, test + setting.validation])
    test_, validation, development = ([pairs[i] for i in np.sort(part)] for part in parts)
    return Split(development, validation, test_)


def reproduce(
    dataset: Path,
    out: Path,
    runs: Sequence[Run],
    setting: Reproduction,
    *,
    negatives: Path | None = None,
    unlabelled: Path | None = None,
    overwrite: bool = False,
    report: Progress | None = None,
) -> list[RunResult]:
    """Repeat runs on a dataset in Kvasir-SEG's layout, and write the paper's tables with ours beside them.

    Runs with one source and k share a classifier. What is finished is not made again: an interrupted call
    goes on where it was. Writes ``results.md``, ``results.json`` and a folder for each classifier and run.
    """
    setting.classifier.check()
    out = Path(out)
    pairs = open_pairs(Path(dataset))
    parts = split(pairs, setting)
    started, results = time.time(), []
    baselines = _baselines(parts.test, setting.seed)
    for run in runs:
        source = run.source if negatives is not None else "tiles"
        images = (
            labelled_tiles(run, parts, out, setting.seed)
            if source == "tiles"
            else _whole(run, parts, negatives, unlabelled, setting.seed)
        )
        home = out / f"{source}-k{run.k}-to-{run.wanted}"
        made = _classifier(run, images, home, setting, overwrite, report)
        rows, speed = _masks(run, source, parts, load_classifier(home), out, setting, overwrite, report)
        results.append(RunResult(run, source, rows, speed, *made))
        cam_tables.write(out, Path(dataset), parts, results, baselines, setting, time.time() - started)
    return results


class Images(NamedTuple):
    """What a classifier may learn from, and the true classes of all of it, −1 where unknown."""

    given: Labelled
    truth: Int[np.ndarray, " n"]


def labelled_tiles(run: Run, parts: Split, out: Path, seed: int) -> Images:
    """Cut images into tiles, in ``tiles-2x2/``; label 100 + 100 of those of the development images (§2)."""
    n = run.cuts
    folder = out / f"tiles-{n}x{n}"
    folder.mkdir(parents=True, exist_ok=True)
    files, truth, held = [], [], []
    for pair in (*parts.development, *parts.validation):
        image, mask = None, read_bright(pair.mask)
        rows, columns = (np.linspace(0, side, n + 1).round().astype(int) for side in mask.shape)
        for i in range(n):
            for j in range(n):
                box = (slice(rows[i], rows[i + 1]), slice(columns[j], columns[j + 1]))
                path = folder / f"{pair.name.replace('/', '_')}-{i}-{j}.png"
                if not path.exists():
                    image = read_image(pair.image) if image is None else image
                    with replacing(path) as part:
                        Image.fromarray(image[box]).save(part, format="PNG")
                share = mask[box].mean()
                files.append(path)
                truth.append(-1 if 0 < share < SLIVER else int(share > 0))
                held.append(pair in parts.validation)
    return _given(files, np.array(truth), np.array(held), run.labelled, seed)


def _whole(run: Run, parts: Split, negatives: Path | None, unlabelled: Path | None, seed: int) -> Images:
    """Images with polyps, given ones without, and others; what is not given as labelled is unlabelled."""
    assert negatives is not None
    without = find_images(negatives)
    rng = np.random.default_rng(seed)
    without = [without[i] for i in rng.permutation(len(without))]
    kept = min(len(parts.validation), len(without) // 4)
    files = [p.image for p in (*parts.development, *parts.validation)] + without
    truth = [1] * (len(parts.development) + len(parts.validation)) + [0] * len(without)
    held = [False] * len(parts.development) + [True] * len(parts.validation)
    held += [True] * kept + [False] * (len(without) - kept)
    if unlabelled is not None:
        more = [path for path in find_images(unlabelled) if path not in set(files)]
        files, truth, held = files + more, truth + [-1] * len(more), held + [False] * len(more)
    return _given(files, np.array(truth), np.array(held), run.labelled, seed)


def _given(files: list[Path], truth: np.ndarray, held: np.ndarray, labelled: int, seed: int) -> Images:
    rng = np.random.default_rng(seed)
    labels = np.where(held, truth, -1)
    for c in (0, 1):
        mine = np.flatnonzero(~held & (truth == c))
        labels[rng.permutation(mine)[:labelled]] = c
    # What is set aside but shows a sliver is of no use.
    keep = ~(held & (truth < 0))
    files = [file for file, kept in zip(files, keep, strict=True) if kept]
    folder = Path(os.path.commonpath([path.parent.absolute() for path in files]))
    given = Labelled(
        folder, tuple(path.absolute() for path in files), labels[keep], (NEGATIVE, POSITIVE), held[keep]
    )
    return Images(given, truth[keep])


def _classifier(
    run: Run,
    images: Images,
    home: Path,
    setting: Reproduction,
    overwrite: bool,
    report: Progress | None,
) -> tuple[dict[str, Any], float | None, dict[str, Any]]:
    """Spread and train in a folder, unless that is done: the two records, and between them what share of the
    labels that joined is right.
    """
    spreading = PropagationSettings(
        k=run.k, wanted=run.wanted, features=setting.features, held_out=0, seed=setting.seed
    )
    wanted = {
        "propagation": asdict(spreading),
        "training": asdict(setting.classifier),
        "images": len(images.given.files),
    }
    done = home / "done.json"
    if not overwrite and done.exists():
        said = json.loads(done.read_text(encoding="utf-8"))
        if said["wanted"] != wanted:
            raise InputError(f"{home}: was made with other settings: give --overwrite, or another folder")
        return said["propagation"], said["right"], said["training"]
    found = propagate_folder(images.given, home, spreading, overwrite=True, report=report)
    position = {path: i for i, path in enumerate(images.given.files)}
    kept = np.array([position[path] for path in found.images.files])
    before, after, truth = images.given.labels[kept], found.images.labels, images.truth[kept]
    joined = (before < 0) & (after >= 0) & (truth >= 0)
    right = float((after == truth)[joined].mean()) if joined.any() else None
    trained = train_folder(
        found.images,
        home,
        setting.classifier,
        most=run.wanted,
        held_out=0,
        overwrite=True,
        report=report,
    )
    said = {"wanted": wanted, "propagation": found.record, "right": right, "training": trained}
    with replacing(done) as part:
        part.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    return found.record, right, trained


def _masks(
    run: Run,
    source: str,
    parts: Split,
    classifier: Classifier,
    out: Path,
    setting: Reproduction,
    overwrite: bool,
    report: Progress | None,
) -> tuple[list[MethodRow], Speed]:
    """Masks of the test images with the paper's thresholds, and with chosen ones for each method."""
    tiles = run.cuts if source == "tiles" else 1
    config = classifier.network.config
    paper = MaskSettings(
        layer=same_place(run.layer, config),
        lower=run.lower,
        upper=run.upper,
        tiles=tiles,
        of_class=POSITIVE,
        seed=setting.seed,
    )
    truths = [read_bright(pair.mask) for pair in parts.test]
    images = [read_image(pair.image) for pair in parts.test]
    for pair, truth, image in zip(parts.test, truths, images, strict=True):
        if truth.shape != image.shape[:2]:
            raise InputError(f"{pair.mask}: has not the size of its image")
    rows = []
    # The paper's way, and then each method; of tiles, in one piece.
    ways = [("grad-cam", False), *((method, tiles > 1) for method in setting.methods)]
    chooses_by = [(read_image(pair.image), read_bright(pair.mask)) for pair in parts.validation]
    for method, whole in dict.fromkeys(ways):
        mapper = Mapper(classifier, replace(paper, method=method, whole=whole))
        maps = []
        for number, image in enumerate(images, 1):
            maps.append(mapper(image)[0])
            if report:
                report(f"run {run.name}: {method}", number, len(images))
        if (method, whole) == ways[0]:
            scores = _score(maps, truths, paper.band)
            rows.append(MethodRow(run.name, method, whole, paper.band, False, scores))
        if method in setting.methods:
            band, _ = cam.choose_band(
                [mapper(image)[0] for image, _ in chooses_by], [truth for _, truth in chooses_by]
            )
            rows.append(MethodRow(run.name, method, whole, band, True, _score(maps, truths, band)))
    speed = throughput(Mapper(classifier, paper), images)
    home = out / f"run-{run.name}"
    done = home / "masks.json"
    if overwrite or not done.exists():
        segment_files(
            [pair.image for pair in parts.test],
            [pair.name for pair in parts.test],
            classifier,
            home,
            paper,
            truth=lambda i: truths[i],
            overwrite=overwrite,
            report=report,
        )
    return rows, speed


def _score(maps: list[np.ndarray], truths: list[np.ndarray], thresholds: cam.Band) -> MaskScores:
    return score(
        np.stack([count(cam.threshold_maps(m, thresholds), t) for m, t in zip(maps, truths, strict=True)])
    )


def _baselines(test: list[Pair], seed: int) -> dict[str, MaskScores]:
    truths = [read_bright(pair.mask) for pair in test]
    return {
        name: score(np.stack([count(make(truth.shape), truth) for truth in truths]), seed)
        for name, make in BASELINES.items()
    }
