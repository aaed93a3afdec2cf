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
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from fseg_jax.encoders.encoder import Encoder
from fseg_jax.errors import InputError
from fseg_jax.evaluation.data.masked_slides import MaskedSlide, find_slides, tumour_share
from fseg_jax.methods import sic
from fseg_jax.numerics.pca import reduce_channels
from fseg_jax.outputs.embeddings import Embeddings, open_embeddings
from fseg_jax.pipeline.embed import PatchSettings, embed_slide
from fseg_jax.pipeline.record import check_outputs, made_with, slide_facts, together
from fseg_jax.process import Progress
from fseg_jax.slides.reader import open_slide

CLICKS = (1, 3, 5)
RUNS = 5
POSITIVE = 0.5  # share of a patch from which on it is positive


class Setting(NamedTuple):
    """What is tried: ``clicks`` seeds a class, ``runs`` times each, on patches laid as ``patches`` says."""

    clicks: tuple[int, ...]
    runs: int
    seed: int
    patches: PatchSettings


class Trial(NamedTuple):
    """One slide with so many seeds of each class; arrays are over the runs.

    ``negative`` and ``positive`` are how many patches of each there are, ``seeds`` how many of them were
    seeds; ``cuts`` how often the positive class was cut for good, ``score`` the F1 against the seeds.
    """

    encoder: str
    slide: str
    clicks: int
    negative: int
    positive: int
    seeds: tuple[int, int]
    f1: Float[np.ndarray, " runs"]
    one_pass: Float[np.ndarray, " runs"]
    score: Float[np.ndarray, " runs"]
    cuts: Int[np.ndarray, " runs"]

    @property
    def everything_positive(self) -> float:
        """The F1 score of calling every patch positive."""
        return 2 * self.positive / (2 * self.positive + self.negative)


class Moments(NamedTuple):
    """Mean and standard deviation over slides; None for a single slide."""

    mean: float
    sd: float | None


class Row(NamedTuple):
    """One line of the table: an encoder and a number of clicks, over all slides.

    ``best`` is the paper's: of each slide's best run; ``mean`` of the mean over its runs.
    """

    encoder: str
    clicks: int
    slides: int
    best: Moments
    mean: Moments
    one_pass_best: Moments
    one_pass_mean: Moments
    everything_positive: Moments
    cuts: float


def evaluate(
    folder: Path,
    encoders: Sequence[Encoder],
    *,
    out: Path,
    clicks: Sequence[int] = CLICKS,
    runs: int = RUNS,
    settings: PatchSettings | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[str], Progress] = lambda name: lambda phase, done, total: None,
) -> list[Row]:
    """Run the paper's experiment on a folder of slides with masks, and write its table and figure to ``out``.

    Embeddings stay in ``out/embeddings/ENCODER`` (``fseg seed`` takes them), and are made again only where
    slide, encoder or ``settings`` have changed. ``progress`` gives a reporter for each slide. Writes
    results.csv and .md, slides.csv (a line a run), figure_sic.png and .svg, and evaluation.json last. Raises
    InputError for what cannot be, before anything is encoded.
    """
    from fseg_jax.evaluation.report import sic_report

    started = time.time()
    settings = settings or PatchSettings()
    setting = Setting(tuple(sorted(set(clicks))), runs, seed, settings)
    names = [encoder.card.name for encoder in encoders]
    if not names or len(set(names)) < len(names):
        raise InputError(f"encoders {', '.join(names) or '(none)'}: name each of those to evaluate, once")
    if not setting.clicks or setting.clicks[0] < 1 or runs < 1:
        raise InputError(f"clicks {', '.join(map(str, setting.clicks))}, {runs} runs: one at least is needed")
    record = out / "evaluation.json"
    check_outputs([record], out, overwrite)
    slides = find_slides(folder, settings.mpp_override)
    trials: list[Trial] = []
    left_out: dict[str, str] = {}
    for encoder in encoders:
        for slide in slides:
            report = progress(f"{slide.name} · {encoder.card.name}")
            embedded = _embedded(slide, out, encoder, settings, report)
            side = embedded.provenance["parameters"]["side_level0"]
            truth = tumour_share(slide.mask, embedded.centers, side) >= POSITIVE
            if truth.all() or not truth.any():
                left_out[slide.name] = "every patch is positive" if truth.all() else "no patch is positive"
                continue
            X = reduce_channels(embedded.read()).X
            for each in setting.clicks:
                trials.append(try_seeds(X, truth, encoder.card.name, slide.name, each, runs, seed))
    if not trials:
        raise InputError(
            f"{folder}: no slide has patches of both classes (a patch is positive where {POSITIVE:.0%} of it "
            "is): choose a smaller --patch, or look at the masks"
        )
    rows = summarise(trials)
    cards = [encoder.card for encoder in encoders]
    with together(record.name, out) as made:
        sic_report.write(made, folder.name, rows, trials, left_out, cards, setting, time.time() - started)
    return rows


def try_seeds(
    X: Float[jax.Array | np.ndarray, "n q"],
    truth: Bool[np.ndarray, " n"],
    encoder: str,
    slide: str,
    clicks: int,
    runs: int,
    seed: int,
) -> Trial:
    """Segment one slide from random seeds, several times, and compare each answer with the truth."""
    f1, one_pass, score, cuts = [], [], [], []
    n = len(truth)
    for run in range(runs):
        y = draw_seeds(truth, clicks, slide, run, seed)
        more, seeds = sic.pad_patches(X, y)
        found = sic.fit(more, seeds, key=jax.random.fold_in(jax.random.key(seed), run), patches=n)
        f1.append(sic.f1(truth.astype(int), np.asarray(found.labels)[:n]))
        one_pass.append(sic.f1(truth.astype(int), sic.fit_seeded_kmeans(more, seeds, n)[:n]))
        score.append(found.score)
        cuts.append(found.iterations)
    return Trial(
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
    """Draw so many patches of each class, or all it has: their classes, −1 for all others."""
    name = int.from_bytes(hashlib.sha256(slide.encode()).digest()[:8], "little")
    rng = np.random.default_rng([seed, run, name])
    y = np.full(len(truth), -1, np.int32)
    for j in (0, 1):
        y[rng.permutation(np.flatnonzero(truth == j))[:clicks]] = j
    return y


def summarise(trials: Sequence[Trial]) -> list[Row]:
    """The table's rows: of each encoder and number of clicks, in the order they came."""
    rows = []
    for encoder, clicks in dict.fromkeys((t.encoder, t.clicks) for t in trials):
        own = [t for t in trials if (t.encoder, t.clicks) == (encoder, clicks)]
        rows.append(
            Row(
                encoder,
                clicks,
                slides=len(own),
                best=_moments([t.f1.max() for t in own]),
                mean=_moments([t.f1.mean() for t in own]),
                one_pass_best=_moments([t.one_pass.max() for t in own]),
                one_pass_mean=_moments([t.one_pass.mean() for t in own]),
                everything_positive=_moments([t.everything_positive for t in own]),
                cuts=float(np.mean([t.cuts.mean() for t in own])),
            )
        )
    return rows


def _moments(values: Sequence[float]) -> Moments:
    return Moments(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def _embedded(
    slide: MaskedSlide, out: Path, encoder: Encoder, settings: PatchSettings, report: Progress
) -> Embeddings:
    """A slide's embeddings: those that are there, where they are still true, or new ones."""
    # The name may come from a file: it is to be that of one folder.
    folder = out / "embeddings" / re.sub(r"[^\w.-]|^\.+", "-", encoder.card.name)
    with open_slide(slide.image, settings.mpp_override) as opened:
        wanted = {
            **made_with().to_json(),
            "slide": {
                k: v for k, v in slide_facts(opened).to_json().items() if k != "path"
            },  # it may have moved
            "encoder": encoder.card.to_json(),
            "parameters": {k: v for k, v in asdict(settings).items() if k not in ("batch", "threads")},
        }
        if not _still_true(folder / f"{slide.name}.embeddings.json", wanted):
            embed_slide(opened, folder, encoder, settings, overwrite=True, progress=report)
    return open_embeddings(folder / f"{slide.name}.embeddings.zarr")


def _still_true(record: Path, wanted: dict[str, Any]) -> bool:
    """Whether a record says all that is wanted, and what it is the record of is there."""

    def says(said: Any, part: Any) -> bool:
        if isinstance(part, dict):
            return isinstance(said, dict) and all(says(said.get(key), part[key]) for key in part)
        return said == part

    try:
        made = json.loads(record.read_text(encoding="utf-8"))
        there = record.with_suffix(".zarr").joinpath("zarr.json").exists()
        return there and says(made, json.loads(json.dumps(wanted)))
    except (OSError, ValueError, RecursionError):
        return False
