"""What a run of the CAM paper is, and what it comes to."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from fseg_jax.cam.classifier import Settings
from fseg_jax.cam.masks import MaskScores, Pair
from fseg_jax.methods import cam


@dataclass(frozen=True)
class Run:
    """One of the paper's runs: a classifier made with ``k`` clusters, and how its maps become masks.

    ``source``: "tiles", the development images cut into ``cuts`` × ``cuts`` and labelled by their masks, or
    "images", whole ones, for which images without polyps are given. ``labelled`` of each class are.
    ``layer`` is b1's; of another network the block at the same place is taken.
    """

    name: str
    source: str
    k: int
    layer: str
    lower: float
    upper: float | None
    labelled: int = 100
    wanted: int = cam.WANTED
    cuts: int = 2


@dataclass(frozen=True)
class Reproduction:
    """How the runs are repeated: ``classifier`` for training; ``test`` and ``validation``, how many images
    are kept for scoring and (their tiles) for choosing epochs and thresholds; ``features`` to cluster by;
    ``methods`` whose thresholds are chosen, beside the paper's.
    """

    classifier: Settings = Settings()  # noqa: RUF009
    test: float = 0.25
    validation: int = 15
    features: str = "lire"
    methods: tuple[str, ...] = ("grad-cam", "grad-cam++", "concepts")
    seed: int = 0


class Speed(NamedTuple):
    """Seconds an image, from the decoded image to its mask: Table 2's first three columns."""

    average: float
    minimum: float
    maximum: float


class MethodRow(NamedTuple):
    """One way to masks of a run: the method, whether images were mapped in one piece, the thresholds and
    whether they were chosen, the scores.
    """

    run: str
    method: str
    whole: bool
    thresholds: cam.Band
    chosen: bool
    scores: MaskScores


class RunResult(NamedTuple):
    """What a run came to; ``source`` is what it was really made of, tiles where nothing else was given."""

    run: Run
    source: str
    rows: list[MethodRow]
    speed: Speed
    propagation: dict[str, Any]
    spread_right: float | None  # of the labels that joined
    training: dict[str, Any]


class Split(NamedTuple):
    """The images of a dataset: to learn from, to choose by, to score on."""

    development: list[Pair]
    validation: list[Pair]
    test: list[Pair]
