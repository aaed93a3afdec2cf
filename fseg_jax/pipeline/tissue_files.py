"""A slide's tissue alone: found, outlined for QuPath, drawn and measured, without an encoder.

``NAME.tissue.geojson`` can be edited in QuPath and given back with ``--tissue``.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fseg_jax.errors import InputError
from fseg_jax.files.partial_folders import open_partial_folder
from fseg_jax.outputs.tissue_geojson import OutlinedClass, write_tissue_geojson
from fseg_jax.outputs.tissue_picture import write_tissue_picture
from fseg_jax.pipeline.artefact_names import (
    COLOURS,
    NAMES,
    TISSUE_COLOUR,
    list_outlines,
    name_areas,
)
from fseg_jax.pipeline.publish import Clock, Json, check_outputs, finish
from fseg_jax.pipeline.slide_facts import SlideFacts, slide_facts
from fseg_jax.slides.artefacts import OTHER
from fseg_jax.slides.reader import Slide, make_picture
from fseg_jax.slides.tissue import describe_absence, find_tissue, read_overview
from fseg_jax.versions import find_versions

FORMAT = 1  # of the outputs: raised when what they hold changes
METHOD = "tissue against a local background of glass"
SUFFIXES = (".tissue.json", ".tissue.geojson", ".tissue.png")  # the record first
_PACKAGES = ("fseg-jax", "numpy", "scipy")  # that the result depends on
_PICTURE_SIDE = 1600  # pixels


@dataclass(frozen=True)
class TissueRecord:
    """What came of a slide.

    Attributes:
        format: Version of the outputs' format.
        method: The method.
        versions: Versions of the packages that it depends on, by name.
        slide: The slide.
        mpp_override: µm per pixel in place of what the slide's file says.
        mask_mpp: µm per pixel of the mask.
        tissue_mm2: Area of tissue.
        artefacts_mm2: Area of each kind of artefact, on tissue and beside it.
        tissue_share: Share of the slide that is tissue.
        annotations: Number of annotations in the GeoJSON.
        seconds: Seconds by phase.
    """

    format: int
    method: str
    versions: dict[str, str]
    slide: SlideFacts
    mpp_override: float | None
    mask_mpp: float
    tissue_mm2: float
    artefacts_mm2: dict[str, float]
    tissue_share: float
    annotations: int
    seconds: dict[str, float]

    def to_json(self) -> Json:
        """Give it as JSON."""
        return {**asdict(self), "slide": self.slide.to_json()}


def list_tissue_paths(name: str, out: Path) -> list[Path]:
    """List everything that ``write_tissue_files`` writes for a slide of this name, its record first."""
    return [out / f"{name}{suffix}" for suffix in SUFFIXES]


def write_tissue_files(
    slide: Slide, out: Path, *, mpp_override: float | None = None, overwrite: bool = False
) -> Json:
    """Find a slide's tissue; write ``out/NAME.tissue.geojson``, ``.tissue.png`` and, last, ``.tissue.json``.

    Args:
        slide: An open slide.
        out: The folder to write to.
        mpp_override: The resolution that the slide was opened with, in place of its own.
        overwrite: Whether outputs that exist are replaced.

    Returns:
        What the record ``NAME.tissue.json`` holds.

    Raises:
        InputError: The slide has no tissue, or cannot be decoded; nothing is written then.
    """
    paths = list_tissue_paths(slide.name, out)
    check_outputs(paths, out, overwrite)
    clock = Clock()
    overview = read_overview(slide)
    tissue = find_tissue(slide, overview)
    if not tissue.mask.any():
        raise InputError(
            f"{slide.path}: {describe_absence(tissue)}, and nothing is written; if there is some, outline it "
            "in QuPath for fseg segment --tissue"
        )
    clock.lap("tissue")
    facts = slide_facts(slide)
    found = np.zeros(tissue.mask.shape, np.uint8) if tissue.artefacts is None else tissue.artefacts
    with open_partial_folder(f"{slide.name}.tissue", out) as folder:
        annotations = write_tissue_geojson(
            folder / paths[1].name,
            [tissue.mask.astype(np.uint8), np.where(found > 0, found + 1, 0).astype(np.uint8)],
            [OutlinedClass("Tissue", TISSUE_COLOUR), *map(OutlinedClass, NAMES, COLOURS.tolist())],
            mpp=tissue.mpp,
            slide_mpp=slide.mpp,
            shape=(slide.height, slide.width),
            frame=facts.frame_to_json(),
        )
        pixel = tissue.mpp**2 * 1e-6
        tissue_mm2 = float(tissue.mask.sum() * pixel)
        outlines = list_outlines(tissue)
        pixels = tissue.count_artefacts()
        areas = name_areas(pixels, tissue.mpp)
        image, image_mpp = make_picture(slide, _PICTURE_SIDE, overview)
        write_tissue_picture(
            folder / paths[2].name,
            image,
            outlines,
            [tissue_mm2, *(area for area, n in zip(areas.values(), pixels[1:], strict=True) if n)],
            absent=[name for name in NAMES[: OTHER - 1] if name not in {each.name for each in outlines}],
            mpp=image_mpp,
            title=f"{slide.name} · tissue",
        )
        clock.lap("outputs")
        record = TissueRecord(
            format=FORMAT,
            method=METHOD,
            versions=find_versions(_PACKAGES),
            slide=facts,
            mpp_override=mpp_override,
            mask_mpp=tissue.mpp,
            tissue_mm2=round(tissue_mm2, 6),
            artefacts_mm2=areas,
            tissue_share=round(tissue.fraction, 6),
            annotations=annotations,
            seconds=clock.laps,
        )
        return finish(folder, record.to_json(), paths)
