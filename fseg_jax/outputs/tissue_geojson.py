"""The outlines of tissue and artefacts as GeoJSON for QuPath, which ``--tissue`` takes back once edited."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from fseg_jax.files.atomic import replace_atomically
from fseg_jax.outputs.geojson import encode_compact, merge_small, trace_regions, yield_features

_TOLERANCE = 4.0  # µm, of simplified borders, or a pixel of the mask where that is more
_LEAST_AREA = 1000.0  # µm²: smaller pieces and holes are left out


class OutlinedClass(NamedTuple):
    """A class of annotations.

    Attributes:
        name: Its name in QuPath.
        colour: Its colour, three values of 0…255.
    """

    name: str
    colour: Sequence[int]


def write_tissue_geojson(
    path: str | os.PathLike[str],
    layers: Sequence[UInt8[np.ndarray, "height width"]],
    classes: Sequence[OutlinedClass],
    *,
    mpp: float,
    slide_mpp: float,
    shape: tuple[int, int],
    frame: Mapping[str, Any],
) -> int:
    """Write an annotation for every connected region, with its holes, as a FeatureCollection.

    Args:
        path: The file; its coordinates are (x, y) in level-0 pixels.
        layers: Labels of the whole slide: 0 is nothing, j the j-th class. Layers may overlap.
        classes: The classes.
        mpp: µm per pixel of the layers.
        slide_mpp: µm per level-0 pixel.
        shape: (height, width) of the slide in level-0 pixels.
        frame: What the coordinates count from, as JSON; the file states it under ``fseg``.

    Returns:
        How many annotations there are.

    Raises:
        OutputError: The file cannot be written.
    """
    scale = mpp / slide_mpp
    tolerance = max(_TOLERANCE / slide_mpp, scale)
    least = max(1, round(_LEAST_AREA / mpp**2))
    described = [{"name": name, "color": [int(v) for v in colour]} for name, colour in classes]
    count = 0
    with replace_atomically(path) as part, part.open("w", encoding="utf-8") as file:
        file.write(f'{{"type":"FeatureCollection","fseg":{encode_compact(frame)},"features":[')
        for layer in layers:
            numbers, polygons = trace_regions(merge_small(layer, least), scale, shape, tolerance)
            for feature in yield_features(numbers, polygons, described, slide_mpp):
                file.write((",\n" if count else "\n") + feature)
                count += 1
        file.write("\n]}\n")
    return count
