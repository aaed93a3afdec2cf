"""The artefacts of a slide as a second label image, and their areas."""

from pathlib import Path
from typing import Any

from fseg_jax.outputs.labels import LabelWriter
from fseg_jax.pipeline.artefact_names import COLOURS, NAMES, name_areas
from fseg_jax.pipeline.plan import Plan
from fseg_jax.slides.artefacts import KINDS

ARTEFACTS = "artefacts"  # name of the label image


def write_artefact_labels(
    path: Path, plan: Plan, provenance: dict[str, Any], *, source: str | None, sharded: bool
) -> dict[str, float] | None:
    """Write the artefacts of a slide as a second label image, and measure them.

    It has the levels of the slide's label image.

    Args:
        path: Its folder.
        plan: The slide laid out.
        provenance: What the labels are made with, as JSON.
        source: Where the image that is labelled lies, from that folder.
        sharded: Whether chunks share files.

    Returns:
        The area of each kind in mm², by its name in records; None where nobody has looked for artefacts, and
        there is no image.
    """
    if plan.tissue.artefacts is None:
        return None
    grid = plan.grid
    writer = LabelWriter(
        path,
        (grid.height, grid.width),
        plan.mpp,
        len(KINDS),
        names=NAMES,
        colours=COLOURS,
        provenance=provenance,
        slide_mpp=plan.slide.mpp,
        source=source,
        sharded=sharded,
    )
    for row in range(grid.rows):
        y, _, height, _ = grid.locate_core(row, 0)
        writer.append(plan.tissue.crop_artefacts(y, 0, height, grid.width, plan.mpp))
    pixels = writer.close()
    return name_areas(pixels, plan.mpp)
