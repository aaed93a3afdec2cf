"""The records of SIC's two steps: ``NAME.embeddings.json`` and ``NAME.sic.json``.

As in ``record``, keys and their order are those of the dataclasses' fields, and ``to_json`` and ``from_json``
are the one place where they are written and read.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from fseg_jax.encoders.encoder import EncoderCard
from fseg_jax.errors import InputError
from fseg_jax.outputs.embeddings import Embeddings
from fseg_jax.outputs.form import OutputForm
from fseg_jax.pipeline.publish import Json
from fseg_jax.pipeline.slide_facts import SlideFacts

if TYPE_CHECKING:
    from fseg_jax.outputs.geojson import OutlineFacts

POOLING = "mean over the grid"
SCORE_OF = "agreement with the clicks themselves, from which the labels were made; none is held out"


@dataclass(frozen=True)
class PatchParameters:
    """The settings that affect embeddings, as they came to be (``embed.PatchSettings``).

    Attributes:
        patch: Side of a patch in pixels.
        overlap: Overlap of neighbouring patches, as a fraction of the patch.
        mpp: Working resolution in µm per pixel.
        tissue: ``"find"``, ``"all"``, or the path of a mask or outline.
        min_tissue: Least fraction of tissue in a patch that is embedded.
        dtype: Dtype that embeddings are stored in.
        mpp_override: µm per pixel in place of what the slide's file says.
        step: Pixels from a patch to the next.
        side_level0: Side of a patch in level-0 pixels.
    """

    patch: int
    overlap: float
    mpp: float
    tissue: str
    min_tissue: float
    dtype: str
    mpp_override: float | None
    step: int
    side_level0: float


@dataclass(frozen=True)
class PatchEncoder:
    """What embedded the patches.

    Attributes:
        card: The encoder's card.
        pooling: How a patch's features become its embedding.
    """

    card: EncoderCard
    pooling: str = POOLING

    def to_json(self) -> Json:
        """Give it as JSON."""
        return {**self.card.to_json(), "pooling": self.pooling}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "PatchEncoder":
        """Read it from JSON.

        Raises:
            LookupError, TypeError: Something is missing, or of another type.
        """
        card = {key: fact for key, fact in value.items() if key != "pooling"}
        return cls(EncoderCard.from_json(card), value["pooling"])


@dataclass(frozen=True)
class PatchProvenance:
    """All that affects a slide's embeddings, what made them, and which patches there are.

    Attributes:
        format: Version of the outputs' format.
        method: The method and its source.
        versions: Versions of the packages that it depends on, by name.
        device: JAX's name for the kind of processor.
        slide: The slide.
        encoder: The encoder.
        parameters: The settings.
        height: Height of the slide in pixels of the working resolution.
        width: Width of the slide in pixels of the working resolution.
        tissue_mpp: µm per pixel of the tissue's mask.
        patches: Number of patches.
    """

    format: int
    method: str
    versions: dict[str, str]
    device: str
    slide: SlideFacts
    encoder: PatchEncoder
    parameters: PatchParameters
    height: int
    width: int
    tissue_mpp: float
    patches: int

    def to_json(self) -> Json:
        """Give it as JSON."""
        return {**asdict(self), "slide": self.slide.to_json(), "encoder": self.encoder.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "PatchProvenance":
        """Read it from JSON.

        Raises:
            LookupError, TypeError, ValueError: Something is missing, or cannot be.
        """
        objects = {
            "slide": SlideFacts.from_json(value["slide"]),
            "encoder": PatchEncoder.from_json(value["encoder"]),
            "parameters": PatchParameters(**_pick_fields(PatchParameters, value["parameters"])),
        }
        return cls(**{**_pick_fields(cls, value), **objects})


def _pick_fields(record: type[Any], value: Mapping[str, Any]) -> Json:
    """Pick the keys of a JSON object that are fields of a dataclass.

    Raises:
        LookupError: One is missing.
    """
    return {field.name: value[field.name] for field in fields(record)}


def read_provenance(embedded: Embeddings) -> PatchProvenance:
    """Read the provenance of opened embeddings.

    Raises:
        InputError: It is damaged.
    """
    try:
        return PatchProvenance.from_json(embedded.provenance)
    except (LookupError, TypeError, ValueError, AttributeError):
        path = embedded.provenance["slide"]["path"]
        raise InputError(
            f"the record in the embeddings of {path} is damaged; fseg embed makes them again"
        ) from None


@dataclass(frozen=True)
class EmbedRecord:
    """The record of ``fseg embed``.

    Attributes:
        provenance: All that affects the embeddings, and what made them.
        seconds: Seconds by phase.
        patches_per_second: Patches a second of the phase ``"embedding"``.
    """

    provenance: PatchProvenance
    seconds: dict[str, float]
    patches_per_second: float

    def to_json(self) -> Json:
        """Give it as JSON."""
        return {
            **self.provenance.to_json(),
            "seconds": self.seconds,
            "patches_per_second": self.patches_per_second,
        }


@dataclass(frozen=True)
class SeedFacts:
    """Which seeds a slide was segmented from.

    Attributes:
        path: Their file.
        sha256: Hash of that file.
        points: Number of seeds of each class, by name.
        patches: Number of patches that are seeds of each class, by name.
        overruled: Number of seeds on patches that took another class.
    """

    path: str
    sha256: str
    points: dict[str, int]
    patches: dict[str, int]
    overruled: int


@dataclass(frozen=True)
class SeedParameters:
    """The settings that affect a segmentation from seeds, as they came to be (``clicks.SeedSettings``).

    Attributes:
        classes: Names of the classes, the negative one first.
        metric: Name of the score of the seeds that the iteration maximizes.
        distance: Distance between embeddings.
        hard: Whether seeds keep their class.
        smooth: Whether the labels of neighbouring patches are smoothed.
        seed: Random seed.
        coordinates: Number of principal components that were clustered.
        variance_kept: Fraction of the variance that they hold.
    """

    classes: tuple[str, ...]
    metric: str
    distance: str
    hard: bool
    smooth: bool
    seed: int
    coordinates: int
    variance_kept: float


@dataclass(frozen=True)
class SeedProvenance:
    """All that affects a segmentation from seeds, and what made it.

    Attributes:
        format: Version of the outputs' format.
        method: The method and its source.
        versions: Versions of the packages that it depends on, by name.
        device: JAX's name for the kind of processor.
        embedded: What made the embeddings.
        seeds: The seeds.
        parameters: The settings.
    """

    format: int
    method: str
    versions: dict[str, str]
    device: str
    embedded: PatchProvenance
    seeds: SeedFacts
    parameters: SeedParameters

    def to_json(self) -> Json:
        """Give it as JSON, with the facts about the embeddings in three objects."""
        embedded = self.embedded
        return {
            "format": self.format,
            "method": self.method,
            "versions": self.versions,
            "device": self.device,
            "slide": embedded.slide.to_json(),
            "encoder": embedded.encoder.to_json(),
            "embeddings": {
                **asdict(embedded.parameters),
                "patches": embedded.patches,
                "height": embedded.height,
            },
            "seeds": asdict(self.seeds),
            "parameters": asdict(self.parameters),
        }


@dataclass(frozen=True)
class SeedRecord:
    """The record of ``fseg seed``.

    Attributes:
        provenance: All that affects the segmentation, and what made it.
        score: Agreement of the labels with the seeds that they were made from, by the metric.
        scores: The same of each clustering, in order.
        iterations: Number of cuts of the positive class that were kept.
        form: How its files are written.
        patches: Number of patches of each class, by name.
        areas_mm2: Area of each class, by name, to the digits of ``area_step_mm2``.
        area_step_mm2: Area that one patch adds: the square of the step from patch to patch.
        outlines: How the outlines were made.
        seconds: Seconds by phase.
    """

    provenance: SeedProvenance
    score: float
    scores: tuple[float, ...]
    iterations: int
    form: OutputForm
    patches: dict[str, int]
    areas_mm2: dict[str, float]
    area_step_mm2: float
    outlines: "OutlineFacts"
    seconds: dict[str, float]

    def to_json(self) -> Json:
        """Give it as JSON."""
        return {
            **self.provenance.to_json(),
            "score_of": SCORE_OF,
            "score": self.score,
            "scores": self.scores,
            "iterations": self.iterations,
            "form": asdict(self.form),
            "patches": self.patches,
            "areas_mm2": self.areas_mm2,
            "area_step_mm2": self.area_step_mm2,
            "outlines": asdict(self.outlines),
            "seconds": self.seconds,
        }
