"""Classes of a slide's patches as its outputs: labels, outlines, areas and a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fseg_jax.outputs.areas import round_area, write_areas
from fseg_jax.outputs.embeddings import Embeddings
from fseg_jax.outputs.figures import write_overlay
from fseg_jax.outputs.form import OutputForm
from fseg_jax.outputs.geojson import OutlineFacts, write_geojson
from fseg_jax.outputs.labels import LabelWriter, read_level_for
from fseg_jax.outputs.picture import Picture
from fseg_jax.outputs.slide_image import SlideImage
from fseg_jax.pipeline.patch_records import PatchProvenance
from fseg_jax.pipeline.publish import Json
from fseg_jax.pipeline.voting import vote


class PatchMap(NamedTuple):
    """What came of the classes of a slide's patches.

    Attributes:
        areas_mm2: Area of each class, by name, to the digits of ``step_mm2``.
        step_mm2: Area that one patch adds: the square of the step from patch to patch.
        outlines: How the outlines were made.
    """

    areas_mm2: dict[str, float]
    step_mm2: float
    outlines: OutlineFacts


def write_patch_map(
    folder: Path,
    stem: str,
    embedded: Embeddings,
    facts: PatchProvenance,
    labels: Int[np.ndarray, " n"],
    soft: Float[np.ndarray, "n k"],
    *,
    name: str,
    names: Sequence[str],
    colours: np.ndarray,
    provenance: Json,
    title: str,
    form: OutputForm,
) -> PatchMap:
    """Write ``STEM.ome.zarr``, ``.geojson``, ``.csv`` and ``.png`` of classified patches.

    Args:
        folder: The folder to write to.
        stem: What the files are called, before their suffixes.
        embedded: The slide's patches.
        facts: What made them.
        labels: The class of each patch, 0…k−1; it has the label above by one.
        soft: Shares of the classes, which decide ties.
        name: The slide's name.
        names: Names of the classes.
        colours: uint8 (k, 3), their colours.
        provenance: What the labels are made with.
        title: The picture's title.
        form: How outputs are written.
    """
    slide_image = SlideImage(folder / f"{stem}.ome.zarr", form)
    path, mpp, slide_mpp = slide_image.clusters, facts.parameters.mpp, facts.slide.mpp
    writer = LabelWriter(
        path,
        (facts.height, facts.width),
        mpp,
        len(names),
        names=names,
        colours=colours,
        provenance=provenance,
        slide_mpp=slide_mpp,
        source=slide_image.source,
        sharded=form.shards,
    )
    for part in vote(embedded, facts, labels, soft):
        writer.append(part)
    pixels = writer.close()
    image = embedded.thumbnail
    image_mpp = slide_mpp * facts.slide.width / image.shape[1]
    slide_image.close(image, image_mpp, slide_mpp=slide_mpp)
    outlines = write_geojson(
        folder / f"{stem}.geojson",
        path,
        slide_mpp=slide_mpp,
        names=form.name_classes(tuple(names), name),
        colours=colours,
        outlines=form.outlines,
        frame=facts.slide.frame_to_json(),
    )
    areas = pixels[1:] * mpp**2 * 1e-6
    step_mm2 = (facts.parameters.step * mpp) ** 2 * 1e-6
    write_areas(folder / f"{stem}.csv", names, pixels, mpp, step_mm2=step_mm2, colours=colours)
    picture = Picture(
        title=title,
        image=image,
        mpp=image_mpp,
        labels=read_level_for(path, image.shape[0]),
        areas_mm2=areas.tolist(),
        step_mm2=step_mm2,
    )
    write_overlay(folder / f"{stem}.png", picture, names=names, colours=colours)
    rounded = {c: round_area(a, step_mm2) for c, a in zip(names, areas, strict=True)}
    return PatchMap(rounded, float(f"{step_mm2:.6g}"), outlines)
