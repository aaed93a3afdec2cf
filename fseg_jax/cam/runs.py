"""The runs of the CAM paper as data: what a run is, and how the runs are repeated."""

import importlib
import runpy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fseg_jax.cam.classifier import ClassifierSettings
from fseg_jax.errors import InputError
from fseg_jax.methods import cam

RUNS = ("1", "2", "3", "4", "5")  # the paper's; ``configs`` has a file for each

Source = Literal["tiles", "images"]


@dataclass(frozen=True)
class Run:
    """One of the paper's runs: how its classifier is made, and how its maps become masks.

    Attributes:
        name: Name of the run in tables.
        source: "tiles": development images cut into tiles, labelled by their masks; "images": whole images,
            for which images without polyps are given.
        k: Number of clusters.
        layer: The layer of b1 that is read; in other networks, the block at the same place.
        lower: Lower threshold of the map.
        upper: Upper threshold, if there is one.
        labelled: Number of images of each class that are labelled before spreading.
        wanted: Number of labelled images at which spreading stops.
        cuts: Images are cut into so many × so many tiles.
    """

    name: str
    source: Source
    k: int
    layer: str
    lower: float
    upper: float | None
    labelled: int = 100
    wanted: int = cam.WANTED
    cuts: int = 2


@dataclass(frozen=True)
class ReproductionSettings:
    """How the runs are repeated.

    Attributes:
        classifier: How classifiers are trained.
        test: Share of the images that is kept for scoring.
        validation: Number of images that choose epochs (with their tiles) and thresholds.
        features: Features to cluster by.
        methods: Methods whose thresholds are chosen, beside the paper's masks.
        seed: Random seed.
    """

    classifier: ClassifierSettings = field(default_factory=ClassifierSettings)
    test: float = 0.25
    validation: int = 15
    features: str = "lire"
    methods: tuple[str, ...] = ("grad-cam", "grad-cam++", "concepts")
    seed: int = 0


def load_run(which: str) -> Run:
    """Load one of the paper's runs by its number, or a Python file that sets ``RUN``.

    Raises ``InputError`` where it is neither.
    """
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
