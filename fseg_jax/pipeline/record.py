"""A slide's record: what a result is of, what made it, and what came of it, as it stands in ``NAME.json``.

Keys and their order are those of the dataclasses' fields; ``to_json`` and ``from_json`` are the one place
where they are written and read.
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import jax

from fseg_jax.codebook import Codebook
from fseg_jax.encoders.encoder import EncoderCard
from fseg_jax.encoders.kernels.convolution import library_version
from fseg_jax.outputs.form import OutputForm
from fseg_jax.pipeline.publish import Json
from fseg_jax.pipeline.slide_facts import SlideFacts
from fseg_jax.versions import find_versions

if TYPE_CHECKING:
    from fseg_jax.outputs.geojson import OutlineFacts

PACKAGES = ("fseg-jax", "jax", "jaxlib", "numpy", "tensorstore")


@dataclass(frozen=True)
class MadeWith:
    """What computes a result.

    Attributes:
        versions: Versions of the packages that it depends on, by name.
        device: JAX's name for the kind of processor.
    """

    versions: dict[str, str]
    device: str

    def to_json(self) -> Json:
        """Give it as JSON."""
        return asdict(self)


def made_with() -> MadeWith:
    """Collect the versions of what computes a result, and the device."""
    versions = find_versions(PACKAGES)
    onednn = library_version()
    if onednn is not None:
        versions["onednn"] = onednn
    return MadeWith(versions, jax.devices()[0].device_kind)


@dataclass(frozen=True)
class CodebookFacts:
    """Which codebook a slide was segmented with.

    Attributes:
        k: Clusters.
        hash: SHA-256 of the centres.
        encoder: Name of the encoder that it was made with.
        weights_hash: SHA-256 of that encoder's weights.
        layer: Layer of the encoder.
        mpp: µm per pixel of the tiles that it was made of.
        tiles: How many tiles that were.
        seed: Random seed.
        source: Where the tiles came from, in words.
        fingerprint: The encoder's fingerprint, where its weights have no hash.
        stain_normalization: Whether the tiles had the colours of a standard stain.
    """

    k: int
    hash: str
    encoder: str
    weights_hash: str
    layer: str
    mpp: float | None
    tiles: int | None
    seed: int | None
    source: str
    fingerprint: str
    stain_normalization: bool


def codebook_facts(codebook: Codebook) -> CodebookFacts:
    """Collect which codebook a slide is segmented with."""
    return CodebookFacts(codebook.k, codebook.hash, **asdict(codebook.provenance))


@dataclass(frozen=True)
class Parameters:
    """The settings that affect a segmentation, as they came to be (``plan.Settings``).

    Attributes:
        mode: ``"fixed"`` or ``"assign"``.
        resize: ``"bilinear"`` or ``"nearest"``.
        concepts: Concepts of each tile; None in the mode ``"fixed"``.
        mpp: Working resolution in µm per pixel.
        tile: Side of a tile in pixels.
        halo: Overlap with the next tile in pixels.
        tissue: ``"find"``, ``"all"``, or the path of a mask or outline.
        stain_gains: What the encoder saw the optical densities of red, green and blue multiplied by; None:
            stains were not normalized.
        artefacts: ``"keep"``, or ``"drop"`` where artefacts have no labels.
        smoothing: Standard deviation, in µm, of the Gaussian by which W was averaged; 0: none.
        min_region: Area, in µm², below which regions were given to their neighbours; 0: none.
        mixtures: Centres of mixed tokens beside the codebook's.
        seed: Random seed.
        mpp_override: µm per pixel in place of what the slide's file says.
        features: Dtype that features were rounded to.
    """

    mode: str
    resize: str
    concepts: int | None
    mpp: float
    tile: int
    halo: int
    tissue: str
    stain_gains: tuple[float, float, float] | None
    artefacts: str
    smoothing: float
    min_region: float
    mixtures: int
    seed: int
    mpp_override: float | None
    features: str


@dataclass(frozen=True)
class Provenance:
    """All that affects a segmentation, and what made it.

    Attributes:
        format: Version of the outputs' format.
        method: The method and its source.
        versions: Versions of the packages that it depends on, by name.
        device: JAX's name for the kind of processor.
        slide: The slide.
        encoder: The encoder.
        codebook: The codebook.
        parameters: The settings.
    """

    format: int
    method: str
    versions: dict[str, str]
    device: str
    slide: SlideFacts
    encoder: EncoderCard
    codebook: CodebookFacts
    parameters: Parameters

    def to_json(self) -> Json:
        """Give it as JSON."""
        return {**asdict(self), "slide": self.slide.to_json()}


@dataclass(frozen=True)
class Timing:
    """How long a segmentation took. A cohort's records leave it out, so that two runs give the same bytes.

    Attributes:
        seconds: Seconds by phase.
        tiles_per_second: Tiles a second of the phase ``"segmentation"``.
        finished: When it was finished, ISO 8601 in UTC.
    """

    seconds: dict[str, float]
    tiles_per_second: float
    finished: str

    def to_json(self) -> Json:
        """Give it as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class TypicalPlace:
    """A place that is typical of a cluster.

    Attributes:
        x: Its centre in level-0 pixels from the left.
        y: Its centre in level-0 pixels from the top.
        share: The cluster's mean share of the contributions round it.
    """

    x: float
    y: float
    share: float


@dataclass(frozen=True)
class Segmentation:
    """What came of a slide.

    Attributes:
        provenance: All that affects it, and what made it.
        form: How its files are written.
        tissue_mm2: Area of all clusters.
        areas_mm2: Area of each cluster, by name.
        area_step_mm2: Area of a token, the least that is told apart: areas have the digits that it changes.
        colours: Colour of each cluster, by name, in hexadecimal digits.
        artefacts_mm2: Area of each kind of artefact, on tissue and beside it; None where nobody has looked.
        border_share: Share of each cluster within 32 µm of the border of tissue, by name.
        typical: The most typical places of clusters, by name, the best first.
        uncovered_mm2: Area of tissue where no cluster has any weight.
        tokens_not_converged: Tokens of tissue that the factorization has not converged for.
        tiles: Tiles that hold tissue.
        outlines: How the outlines were made.
        timing: How long it took.
    """

    provenance: Provenance
    form: OutputForm
    tissue_mm2: float
    areas_mm2: dict[str, float]
    area_step_mm2: float
    colours: dict[str, str]
    artefacts_mm2: dict[str, float] | None
    border_share: dict[str, float]
    typical: dict[str, list[TypicalPlace]]
    uncovered_mm2: float
    tokens_not_converged: int
    tiles: int
    outlines: "OutlineFacts"
    timing: Timing

    def to_json(self) -> Json:
        """Give the record of ``fseg segment`` as JSON, with the timing."""
        return {**self.result_to_json(), **self.timing.to_json()}

    def result_to_json(self) -> Json:
        """Give all but the timing as JSON."""
        return {
            **self.provenance.to_json(),
            "form": asdict(self.form),
            "tissue_mm2": self.tissue_mm2,
            "areas_mm2": self.areas_mm2,
            "area_step_mm2": self.area_step_mm2,
            "colours": self.colours,
            "artefacts_mm2": self.artefacts_mm2,
            "border_share": self.border_share,
            "typical": {name: [asdict(place) for place in own] for name, own in self.typical.items()},
            "uncovered_mm2": self.uncovered_mm2,
            "tokens_not_converged": self.tokens_not_converged,
            "tiles": self.tiles,
            "outlines": asdict(self.outlines),
        }
