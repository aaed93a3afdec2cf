"""The artefacts of a slide as a second label image, and their areas."""

from pathlib import Path
from typing import Any

from fseg_jax.files.zarr import write_group
from fseg_jax.outputs.labels import LabelWriter
from fseg_jax.pipeline.artefact_names import COLOURS, NAMES, name_areas
from fseg_jax.pipeline.plan import Plan
from fseg_jax.slides.artefacts import KINDS

_NAME = "artefacts"  # of the label image


def write_artefact_labels(path: Path, plan: Plan, provenance: dict[str, Any]) -> dict[str, float] | None:
    """Write the artefacts of a slide as a second label image, and measure them.

    It lies in ``labels/artefacts`` of the slide's label image, and has the same levels.

    Args:
        path: The folder of the slide's label image.
        plan: The slide laid out.
        provenance: What the labels are made with, as JSON.

    Returns:
        The area of each kind in mm², by its name in records; None where nobody has looked for artefacts, and
        there is no image.
    """
    if plan.tissue.artefacts is None:
        return None
    grid = plan.grid
    folder = path / "labels"
    writer = LabelWriter(
        folder / _NAME,
        (grid.height, grid.width),
        plan.mpp,
        len(KINDS),
        names=NAMES,
        colours=COLOURS,
        provenance=provenance,
        slide_mpp=plan.slide.mpp,
    )
    for row in range(grid.rows):
        y, _, height, _ = grid.locate_core(row, 0)
        writer.append(plan.tissue.crop_artefacts(y, 0, height, grid.width, plan.mpp))
    pixels = writer.close()
    write_group(folder, {"ome": {"version": "0.5", "labels": [_NAME]}})
    return name_areas(pixels, plan.mpp)
