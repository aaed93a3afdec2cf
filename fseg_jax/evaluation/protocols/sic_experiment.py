"""SIC's experiment (Seeded iterative clustering, LMRL workshop 2022, §3): how well few clicks find a tumour.

On each slide 1, 3 or 5 patches a class are drawn at random as seeds, five times over. A patch is positive
where at least 50 % of it lies in the tumour's mask (of its part on the slide); both its class and the seeds
come from that. All patches are judged, seeds too, by the F1 score of the positive class.

The paper reports the best of a slide's five runs, "to simulate the selection an expert would make", as mean ±
standard deviation over slides. The best is chosen with the truth known, so it flatters: beside it stand the
mean over the runs, and two answers that need no iteration:

- *one pass*: seeded k-means of everything from the same seeds, not cut again;
- *everything positive*: F1 = 2 p / (1 + p) where p is the share of positive patches.

The paper's four encoders are ``resnet18``, ``resnet50``, SimCLR on the dataset (given as the file that
``fseg pretrain`` wrote) and ``resnet18-ciga``, its HistoSSL.

Seeds depend on the slide's name, the run and ``seed`` alone, so that all encoders get the same; those of 1
are among those of 3. Where a class has fewer patches than are asked for, all of them are seeds. A slide
whose patches are all of one class is left out, and named.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from fseg_jax.encoders.encoder import Encoder
from fseg_jax.errors import InputError
from fseg_jax.evaluation.data.masked_slides import MaskedSlide, find_slides, measure_tumour
from fseg_jax.evaluation.protocols.fseg_experiment import check_encoders
from fseg_jax.evaluation.results import Moments, SicResult, SicRow, SicTrial
from fseg_jax.evaluation.settings import SicSettings
from fseg_jax.methods import sic
from fseg_jax.numerics.pca import reduce_channels
from fseg_jax.outputs.embeddings import Embeddings, open_embeddings
from fseg_jax.pipeline.embed import PatchSettings, embed_slide
from fseg_jax.pipeline.patch_records import read_provenance
from fseg_jax.pipeline.record import made_with
from fseg_jax.pipeline.slide_facts import slide_facts
from fseg_jax.process import Progress
from fseg_jax.slides.reader import open_slide

POSITIVE_SHARE = 0.5  # share of tumour from which on a patch is positive


def check_settings(encoders: Sequence[Encoder], settings: SicSettings) -> None:
    """Raise ``InputError`` for settings that cannot be."""
    check_encoders(encoders)
    clicks, runs = settings.clicks, settings.runs
    if not clicks or clicks[0] < 1 or runs < 1:
        raise InputError(f"clicks {', '.join(map(str, clicks))}, {runs} runs: one at least is needed")


def run_experiment(
    folder: Path,
    encoders: Sequence[Encoder],
    settings: SicSettings,
    embeddings: Path,
    progress: Callable[[str], Progress],
) -> SicResult:
    """Try random seeds on every slide of a folder with every encoder.

    Args:
        folder: Slides with masks.
        encoders: What to compare.
        settings: What to try.
        embeddings: Folder of the slides' embeddings, a folder an encoder.
        progress: Returns what is told of a slide's progress, given the slide's name.

    Raises:
        InputError: Slides and masks do not fit, or no slide has patches of both classes.
    """
    slides = find_slides(
        folder, settings.patches.mpp_override, settings.patches.frame, settings.patches.series
    )
    trials: list[SicTrial] = []
    left_out: dict[str, str] = {}
    for encoder in encoders:
        for slide in slides:
            name = encoder.card.name
            embedded = _embed(
                slide, embeddings, encoder, settings.patches, progress(f"{slide.name} · {name}")
            )
            side = read_provenance(embedded).parameters.side_level0
            truth = measure_tumour(slide.mask, embedded.centers, side) >= POSITIVE_SHARE
            if truth.all() or not truth.any():
                left_out[slide.name] = "every patch is positive" if truth.all() else "no patch is positive"
                continue
            X = reduce_channels(embedded.read()).X
            for clicks in settings.clicks:
                trials.append(try_seeds(X, truth, name, slide.name, clicks, settings.runs, settings.seed))
    if not trials:
        raise InputError(
            f"{folder}: no slide has patches of both classes (a patch is positive where {POSITIVE_SHARE:.0%} "
            "of it is): choose a smaller --patch, or look at the masks"
        )
    return SicResult(summarise(trials), trials, left_out)


def try_seeds(
    X: Float[jax.Array | np.ndarray, "n q"],
    truth: Bool[np.ndarray, " n"],
    encoder: str,
    slide: str,
    clicks: int,
    runs: int,
    seed: int,
) -> SicTrial:
    """Segment one slide from random seeds, several times, and compare each answer with the truth."""
    f1, one_pass, score, cuts = [], [], [], []
    n = len(truth)
    for run in range(runs):
        y = draw_seeds(truth, clicks, slide, run, seed)
        padded, seeds = sic.pad_patches(X, y)
        result = sic.fit(padded, seeds, key=jax.random.fold_in(jax.random.key(seed), run), patches=n)
        f1.append(sic.f1(truth.astype(int), np.asarray(result.labels)[:n]))
        one_pass.append(sic.f1(truth.astype(int), sic.fit_seeded_kmeans(padded, seeds, n)[:n]))
        score.append(result.score)
        cuts.append(result.iterations)
    return SicTrial(
        encoder,
        slide,
        clicks,
        negative=int((~truth).sum()),
        positive=int(truth.sum()),
        seeds=(int((y == 0).sum()), int((y == 1).sum())),
        f1=np.array(f1),
        one_pass=np.array(one_pass),
        score=np.array(score),
        cuts=np.array(cuts),
    )


def draw_seeds(
    truth: Bool[np.ndarray, " n"], clicks: int, slide: str, run: int, seed: int
) -> Int[np.ndarray, " n"]:
    """Draw so many patches of each class, or all it has.

    Returns each patch's class, 1 for tumour and 0 for none, and −1 for those that are not drawn.
    """
    name = int.from_bytes(hashlib.sha256(slide.encode()).digest()[:8], "little")
    rng = np.random.default_rng([seed, run, name])
    y = np.full(len(truth), -1, np.int32)
    for j in (0, 1):
        y[rng.permutation(np.flatnonzero(truth == j))[:clicks]] = j
    return y


def summarise(trials: Sequence[SicTrial]) -> list[SicRow]:
    """Summarise trials over slides: a row for each encoder and number of clicks, in the order they came."""
    rows = []
    for encoder, clicks in dict.fromkeys((trial.encoder, trial.clicks) for trial in trials):
        slides = [trial for trial in trials if (trial.encoder, trial.clicks) == (encoder, clicks)]
        rows.append(
            SicRow(
                encoder,
                clicks,
                slides=len(slides),
                best=_moments([trial.f1.max() for trial in slides]),
                mean=_moments([trial.f1.mean() for trial in slides]),
                one_pass_best=_moments([trial.one_pass.max() for trial in slides]),
                one_pass_mean=_moments([trial.one_pass.mean() for trial in slides]),
                everything_positive=_moments([trial.everything_positive for trial in slides]),
                cuts=float(np.mean([trial.cuts.mean() for trial in slides])),
            )
        )
    return rows


def _moments(values: Sequence[float]) -> Moments:
    return Moments(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def _embed(
    slide: MaskedSlide, embeddings: Path, encoder: Encoder, settings: PatchSettings, progress: Progress
) -> Embeddings:
    """Open a slide's embeddings where they are still true, or make new ones."""
    # The encoder's name may come from a file: it is made to be that of one folder.
    folder = embeddings / re.sub(r"[^\w.-]|^\.+", "-", encoder.card.name)
    with open_slide(
        slide.image, settings.mpp_override, frame=settings.frame, series=settings.series
    ) as opened:
        wanted = {
            **made_with().to_json(),
            "slide": {
                k: v for k, v in slide_facts(opened).to_json().items() if k != "path"
            },  # it may have moved
            "encoder": encoder.card.to_json(),
            # The slide says what its frame is, and which image it is.
            "parameters": {
                k: v for k, v in asdict(settings).items() if k not in ("batch", "threads", "frame", "series")
            },
        }
        if not _is_still_true(folder / f"{slide.name}.embeddings.json", wanted):
            embed_slide(opened, folder, encoder, settings, overwrite=True, progress=progress)
    return open_embeddings(folder / f"{slide.name}.embeddings.zarr")


def _is_still_true(record: Path, wanted: dict[str, Any]) -> bool:
    """Tell whether a record says all that is wanted, and its embeddings are there."""

    def includes(whole: Any, part: Any) -> bool:
        if isinstance(part, dict):
            return isinstance(whole, dict) and all(includes(whole.get(key), part[key]) for key in part)
        return bool(whole == part)

    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        exists = record.with_suffix(".zarr").joinpath("zarr.json").exists()
        return exists and includes(content, json.loads(json.dumps(wanted)))
    except (OSError, ValueError, RecursionError):
        return False
