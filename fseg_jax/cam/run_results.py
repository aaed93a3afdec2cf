"""The results of the CAM paper's runs: records that are kept, and what ``results.json`` says."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

from fseg_jax.cam.heat_mapper import MappingSpeed
from fseg_jax.cam.propagate_labels import PropagationRecord
from fseg_jax.cam.run_images import DatasetSplit
from fseg_jax.cam.runs import ReproductionSettings, Run, Source
from fseg_jax.cam.score_masks import MEASURES, MaskScores
from fseg_jax.cam.train_classifier import TrainingRecord
from fseg_jax.methods import cam
from fseg_jax.pipeline.provenance import Provenance


class MethodRow(NamedTuple):
    """The scores of one way from a run's classifier to masks.

    Attributes:
        run: Name of the run.
        method: Method that makes the maps.
        whole: Whether images were mapped in one piece.
        thresholds: The thresholds of the maps.
        chosen: Whether the thresholds were chosen on the validation images.
        scores: The masks' scores on the test images.
    """

    run: str
    method: str
    whole: bool
    thresholds: cam.Band
    chosen: bool
    scores: MaskScores

    def to_json(self) -> dict[str, Any]:
        """Return the row as it is in ``results.json``."""
        facts = {"thresholds": self.thresholds._asdict(), "scores": self.scores._asdict()}
        return self._asdict() | facts


@dataclass(frozen=True)
class ClassifierRecord:
    """How a run's classifier was made.

    Attributes:
        propagation: The record of the labels' propagation.
        spread_right: Share of the labels that joined which are right, where any can be checked.
        training: The record of the training.
    """

    propagation: PropagationRecord
    spread_right: float | None
    training: TrainingRecord

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Read the record back from the content of ``done.json``."""
        propagation = PropagationRecord.from_json(content["propagation"])
        return cls(propagation, content["right"], TrainingRecord.from_json(content["training"]))

    def to_json(self) -> dict[str, Any]:
        """Return the record as it is in ``done.json``."""
        return {
            "propagation": self.propagation.to_json(),
            "right": self.spread_right,
            "training": self.training.to_json(),
        }


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        run: The run.
        source: The images it was really made of: tiles where no images without polyps were given.
        rows: Scores: the paper's way first, then those with chosen thresholds.
        speed: Seconds an image.
        classifier: How its classifier was made.
    """

    run: Run
    source: Source
    rows: list[MethodRow]
    speed: MappingSpeed
    classifier: ClassifierRecord

    def to_json(self) -> dict[str, Any]:
        """Return the result as it is in ``results.json``."""
        return {
            "run": asdict(self.run),
            "source": self.source,
            "rows": [row.to_json() for row in self.rows],
            "speed": self.speed._asdict(),
            "propagation": self.classifier.propagation.to_json(),
            "spread_right": self.classifier.spread_right,
            "training": self.classifier.training.to_json(),
        }


@dataclass(frozen=True)
class Reproduction:
    """The paper's runs, repeated on a dataset.

    Attributes:
        dataset: Name of the dataset.
        settings: How the runs were repeated.
        split: The dataset's images by their purpose.
        baselines: Scores of the baselines on the test images.
        results: Results of the runs done so far.
    """

    dataset: str
    settings: ReproductionSettings
    split: DatasetSplit
    baselines: dict[str, MaskScores]
    results: list[RunResult]

    def to_json(self, started: float) -> dict[str, Any]:
        """Return the content of ``results.json``, for work that began at ``started``."""
        provenance = Provenance.since(started, ("fseg-jax", "jax", "flax", "optax", "numpy"))
        return {
            "format": "fseg-jax-cam",
            **asdict(provenance),
            "setting": asdict(self.settings),
            "split": {part: [pair.name for pair in pairs] for part, pairs in self.split._asdict().items()},
            "baselines": {name: scores._asdict() for name, scores in self.baselines.items()},
            "runs": [result.to_json() for result in self.results],
            "measures": MEASURES,
        }
