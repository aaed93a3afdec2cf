"""What the experiments try."""

from dataclasses import dataclass, field
from typing import Literal

from fseg_jax.methods import fseg
from fseg_jax.pipeline.embed import PatchSettings

Mode = Literal["fixed", "assign"]
Protocol = Literal["matching", "balanced matching", "probing", "balanced probing"]

MODES: tuple[Mode, ...] = ("fixed", "assign")
PROTOCOLS: tuple[Protocol, ...] = ("matching", "balanced matching", "probing", "balanced probing")
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class EvaluationSettings:
    """What F-SEG's experiment tries."""

    k: tuple[int, ...] = (16, 32, 64, 128, 256)  # numbers of clusters
    modes: tuple[Mode, ...] = MODES
    protocols: tuple[Protocol, ...] = PROTOCOLS
    thresholds: tuple[float, ...] = THRESHOLDS  # of the probe
    starts: int = 3  # k-means starts of each k
    concepts: int = fseg.CONCEPTS  # of each tile's factorization
    same_split: bool = False  # whether matching is also learnt on the test split, the paper's variant
    mpp: float | None = None  # µm per pixel to work at; None: the encoder's own
    mpp_override: float | None = None  # µm per pixel of the images, whatever the dataset says
    stain_normalization: bool | None = None  # of each case; None: as suits the encoder
    tile: int | None = None  # side of a tile, pixels; None: the encoder's own
    seed: int = 0
    panels: int = 6  # test images that are drawn


@dataclass(frozen=True)
class SicSettings:
    """What SIC's experiment tries."""

    clicks: tuple[int, ...] = (1, 3, 5)  # numbers of seeds of each class
    runs: int = 5  # random choices of the seeds
    seed: int = 0
    patches: PatchSettings = field(default_factory=PatchSettings)  # how slides are cut into patches
