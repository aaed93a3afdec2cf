"""The results of the experiments, which the reports take: rows of the tables, trials, panels."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from fseg_jax.evaluation.data.datasets import Split
from fseg_jax.evaluation.protocols.matching import Matching
from fseg_jax.evaluation.settings import Mode, Protocol
from fseg_jax.numerics.metrics import Interval, Scores

RowMode = Literal["fixed", "assign", "nearest", "concepts"]  # F-SEG's; without factorization; of the probe
CenterSource = Literal["tiles", "tokens"]  # what the centres of k-means are fitted on


@dataclass(frozen=True)
class EvaluationRow:
    """A line of F-SEG's table: how images were segmented and judged, and the scores on the test split.

    Scores are of the pixels of all images and all starts pooled, but ``f1`` and ``iou`` are means over the
    starts. Intervals are over the cases.
    """

    encoder: str
    mode: RowMode
    centers: CenterSource | Literal["none"]  # what the centres were fitted on
    k: int  # clusters, or concepts of the probe
    protocol: Protocol
    learnt_on: Split  # the split that matching or probe was learnt on
    threshold: float | None  # of the probe
    chosen: bool  # whether the threshold is the best on the training split
    starts: int
    f1: float
    f1_interval: Interval | None
    f1_spread: float | None  # standard deviation over the starts
    f1_train: float  # on the training split
    iou: float
    iou_interval: Interval | None
    image_f1: float  # mean of each image's own F1
    ari: float  # adjusted Rand index
    ari_interval: Interval | None
    mutual_information: float  # nats
    gain: float | None  # F1 above *nearest*, same centres, k and protocol
    gain_interval: Interval | None
    above_colour: float | None  # F1 above *colour only*, same everything else
    above_colour_interval: Interval | None
    unseen_clusters: float | None  # how many had no pixel to learn their category from
    unseen_pixels: float | None  # share of the test split's pixels in them
    pairs: tuple[int, ...] | None  # the probe's training pairs of each category
    scores: Scores
    confusion: list[list[int]]
    matrices: Int[np.ndarray, "starts cases n n"] = field(compare=False)  # confusion of each start and case


@dataclass(frozen=True, eq=False)
class Panel:
    """A test image with its segmentation, to be drawn."""

    name: str  # of the image
    rank: int  # from 1, the worst segmented
    f1: float  # of this image
    encoder: str
    k: int
    mode: Mode
    image: UInt8[np.ndarray, "height width 3"]
    truth: UInt8[np.ndarray, "height width"]  # category indices, or ``IGNORED``
    labels: Int[np.ndarray, "height width"]  # clusters 1…k
    W: Float[np.ndarray, "h w k"]  # weight of each cluster at each token
    matching: Matching  # the clusters' categories


@dataclass(frozen=True, eq=False)
class SicTrial:
    """One slide with one encoder and number of clicks."""

    encoder: str
    slide: str
    clicks: int  # seeds of each class that were asked for
    negative: int  # patches without tumour
    positive: int  # patches with tumour
    seeds: tuple[int, int]  # seeds that there were, negative and positive
    f1: Float[np.ndarray, " runs"]
    one_pass: Float[np.ndarray, " runs"]  # F1 of one pass of seeded k-means
    score: Float[np.ndarray, " runs"]  # F1 against the seeds
    cuts: Int[np.ndarray, " runs"]  # how often the positive class was cut for good

    @property
    def everything_positive(self) -> float:
        """The F1 score of calling every patch positive."""
        return 2 * self.positive / (2 * self.positive + self.negative)

    @property
    def positive_share(self) -> float:
        """The share of the slide's patches that are positive."""
        return self.positive / (self.positive + self.negative)


class Moments(NamedTuple):
    """A mean and a standard deviation over slides."""

    mean: float
    sd: float | None  # None for a single slide


@dataclass(frozen=True)
class SicRow:
    """A line of SIC's table: F1 of an encoder and a number of clicks over all slides."""

    encoder: str
    clicks: int
    slides: int  # how many
    best: Moments  # of each slide's best run, as in the paper
    mean: Moments  # of the mean over each slide's runs
    one_pass_best: Moments
    one_pass_mean: Moments
    everything_positive: Moments
    cuts: float  # mean over runs and slides


@dataclass(frozen=True)
class SicResult:
    """What SIC's experiment found."""

    rows: list[SicRow]
    trials: list[SicTrial]
    left_out: dict[str, str]  # reason by slide
