"""Name the clusters of a codebook by words: which prompts its typical tiles are most alike to.

A model of images and words embeds whole images. The tokens that centres are fitted on do not lie in its
space: what is compared with the prompts are the tiles that are typical of a cluster. A name is given where it
is ahead of every other, and so on most of at least three tiles; any other cluster keeps the name that it has.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from fseg_jax.cohort.prompts import Prompts
from fseg_jax.cohort.typical_tiles import Progress, TypicalTile, embed_tiles, scale_to_length_one
from fseg_jax.encoders.image_text import ImageTextModel
from fseg_jax.errors import InputError
from fseg_jax.numerics.name_scores import NameScores, score_names
from fseg_jax.outputs.csv_table import write_csv
from fseg_jax.pipeline.batching import choose_batch, choose_threads

MPP = 0.5  # µm per pixel of what a model sees, about: 20×, where such models are judged
LEAST_TILES = 3  # that a cluster is judged by
LEAST_AGREEMENT = 2 / 3  # of a cluster's tiles
LIKELIER = 2.0  # times as likely as the runner-up, by the model's own temperature, unless told otherwise
COLUMNS = (
    "cluster",
    "name",
    "best",
    "score",
    "runner_up",
    "runner_up_score",
    "margin",
    "share",
    "agreement",
    "tiles",
    "slides",
    "model",
)


@dataclass(frozen=True)
class NamingSettings:
    """How to name clusters.

    Attributes:
        margin: How far the cosine of a name must be ahead of the runner-up's; None: so far that it is
            ``LIKELIER`` by the model's own temperature.
        batch: Number of images that go through the model at once; None: by the device (``batching``).
        threads: Number of threads that decode images; None: by the device.
    """

    margin: float | None = None
    batch: int | None = None
    threads: int | None = None

    def choose_margin(self, scale: float) -> float:
        """Return the least margin, for a model that multiplies cosines by ``scale``."""
        return math.log(LIKELIER) / scale if self.margin is None else self.margin


@dataclass(frozen=True)
class NamedByWords:
    """What words say of a cluster.

    Attributes:
        name: What it is called: the best name, numbered where several clusters have it; empty: nobody is
            sure, and it keeps the name that it has.
        best: The name that its tiles are most alike to; empty: it has no tiles.
        score: Their mean cosine with that.
        runner_up: The name that comes next.
        runner_up_score: The mean cosine with that.
        share: The best's share among the prompts given, by the model's temperature.
        agreement: The share of its tiles that are most alike to the best.
        tiles: Number of its tiles.
        slides: Number of slides that they are of.
    """

    name: str
    best: str
    score: float
    runner_up: str
    runner_up_score: float
    share: float
    agreement: float
    tiles: int
    slides: int

    @property
    def is_sure(self) -> bool:
        """Whether the best is ahead far enough, on enough tiles: only then there is a name."""
        return bool(self.name)

    @property
    def margin(self) -> float:
        """How far the best is ahead."""
        return self.score - self.runner_up_score


def name_clusters_by_words(
    tiles: Sequence[TypicalTile],
    k: int,
    prompts: Prompts,
    model: ImageTextModel,
    settings: NamingSettings | None = None,
    progress: Progress = lambda done, total, path: None,
) -> list[NamedByWords]:
    """Name clusters by the words that their typical tiles are most alike to.

    Args:
        tiles: The tiles.
        k: Number of clusters.
        prompts: The names, and what stands for each.
        model: A model of images and words, whatever encoder the clusters are of.
        settings: How to name.
        progress: Told before each slide.

    Raises:
        InputError: A slide is gone or another one, a prompt is not for this model, or its weights are
            damaged.
    """
    settings = settings or NamingSettings()
    names = _embed_names(prompts, model)
    batch, threads = choose_batch(settings.batch, model.side), choose_threads(settings.threads)
    embedded = embed_tiles(tiles, model, batch=batch, threads=threads, progress=progress)
    if not (np.isfinite(names).all() and np.isfinite(embedded).all()):
        raise InputError(f"{model.name}: embeddings hold a NaN or an infinity: its weights are damaged")
    scores = score_names(embedded, np.array([tile.cluster for tile in tiles]), k, names, model.scale)
    slides = [len({tile.slide for tile in tiles if tile.cluster == j}) for j in range(k)]
    return choose_names(scores, slides, tuple(prompts.of_name), settings.choose_margin(model.scale))


def choose_names(
    scores: NameScores, slides: Sequence[int], names: Sequence[str], margin: float
) -> list[NamedByWords]:
    """Choose what clusters are called.

    Args:
        scores: How alike clusters and names are.
        slides: Number of slides that the tiles of each cluster are of.
        names: The names.
        margin: How far a name must be ahead.
    """
    ahead = scores.score - scores.runner_up_score
    is_sure = (scores.tiles >= LEAST_TILES) & (ahead >= margin) & (scores.agreement >= LEAST_AGREEMENT)
    called = number_names(
        [names[best] if sure else None for best, sure in zip(scores.best, is_sure, strict=True)], names
    )
    return [
        NamedByWords(
            name=called[j],
            best=names[scores.best[j]] if scores.tiles[j] else "",
            score=float(scores.score[j]),
            runner_up=names[scores.runner_up[j]] if scores.tiles[j] else "",
            runner_up_score=float(scores.runner_up_score[j]),
            share=float(scores.share[j]),
            agreement=float(scores.agreement[j]),
            tiles=int(scores.tiles[j]),
            slides=slides[j],
        )
        for j in range(len(called))
    ]


def number_names(given: Sequence[str | None], names: Sequence[str]) -> list[str]:
    """Make names distinct: where several clusters have one, all of them get numbers.

    >>> number_names(["stroma", None, "stroma", "glass"], ["stroma", "glass"])
    ['stroma 1', '', 'stroma 2', 'glass']
    """
    counts = Counter(given)
    taken = set(names)
    called = []
    for name in given:
        if name is not None and counts[name] > 1:
            number = 1
            while f"{name} {number}" in taken:
                number += 1
            name = f"{name} {number}"
            taken.add(name)
        called.append(name or "")
    return called


def write_suggestions(path: Path, named: Sequence[NamedByWords], model: str) -> None:
    """Write what words say of clusters by a model, as a file of names; it appears whole or not at all.

    Clusters that nobody is sure of have no name there, which leaves them the one that they have.
    """
    rows = []
    for number, each in enumerate(named, 1):
        row: dict[str, Any] = {
            "cluster": number,
            "name": each.name,
            "tiles": each.tiles,
            "slides": each.slides,
            "model": model,
        }
        if each.tiles:
            row |= {"best": each.best, "runner_up": each.runner_up}
            numbers = ("score", "runner_up_score", "margin", "share", "agreement")
            row |= {name: f"{getattr(each, name):.4f}" for name in numbers}
        rows.append(row)
    write_csv(path, COLUMNS, rows)


def _embed_names(prompts: Prompts, model: ImageTextModel) -> Float[np.ndarray, "n d"]:
    """Embed names: the mean of the embeddings of a name's prompts, of length one."""
    texts = [text for own in prompts.of_name.values() for text in own]
    embedded = np.asarray(model.embed_texts(texts), np.float64)
    starts = np.cumsum([0, *map(len, prompts.of_name.values())])[:-1]
    return scale_to_length_one(np.add.reduceat(embedded, starts, axis=0))
