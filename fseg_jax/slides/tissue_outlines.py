"""Outlines of tissue and of artefacts in GeoJSON, as QuPath, TRIDENT, HEST and GrandQC write them.

- QuPath, and this program: annotations with a ``classification``, an object with a ``name``.
- TRIDENT and HEST: polygons with their holes and a ``tissue_id``. Earlier files of HEST have one MultiPolygon
  for each tissue, and a list ``hole`` of those of its polygons that are holes, or a feature for each ring,
  whose ``hole`` is true or false.
- GrandQC: a ``classification`` that is a text; only artefacts, with outlines that know no holes.

All coordinates are level-0 pixels, whatever coordinate reference system a file states.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import rasterio.features
import shapely
from jaxtyping import Bool, UInt8
from rasterio import Affine

from fseg_jax.slides.artefacts import FOLD, INK, OTHER, OUT_OF_FOCUS
from fseg_jax.slides.geojson_polygons import Feature, parse_features

# Classes that are artefacts: this program's names, GrandQC's, and what people call them in QuPath. Compared
# without regard to case, with blanks for hyphens and underscores, and without QuPath's asterisk.
_ARTEFACTS = {
    **dict.fromkeys(("ink", "pen", "pen mark", "pen marks", "pen marking", "penmarking", "marker"), INK),
    **dict.fromkeys(("fold", "folds", "tissue fold"), FOLD),
    **dict.fromkeys(("out of focus", "oof", "blur", "blurred"), OUT_OF_FOCUS),
    **dict.fromkeys(("other artefact", "artefact", "artefacts", "artifact", "artifacts"), OTHER),
    **dict.fromkeys(("darkspot & foreign object", "edge & air bubble"), OTHER),
}
_NOTHING = {"background", "glass", "ignore"}  # neither tissue nor artefact


class Outlines(NamedTuple):
    """The areas that a file outlines, in level-0 pixels.

    Attributes:
        tissue: Areas of tissue.
        artefacts: Areas of artefacts, and the kind of each: its number in ``slides.artefacts``.
        of_canvas: Whether TRIDENT, HEST or GrandQC wrote them, who count as OpenSlide does (``bounds.py``).
    """

    tissue: list[shapely.Geometry]
    artefacts: list[tuple[shapely.Geometry, int]]
    of_canvas: bool


def parse_outlines(content: Any) -> Outlines:
    """Parse the outlines of a decoded GeoJSON document.

    Every polygon is tissue, but those whose class is an artefact, background, glass or *ignore*, holes, and
    cores that QuPath says are missing.

    Raises:
        ValueError: The content is not GeoJSON, or a coordinate is out of range.
        shapely.GEOSException: An outline cannot be repaired.
    """
    tissue: dict[Any, list[shapely.Geometry]] = {}
    holes: dict[Any, list[shapely.Geometry]] = {}
    artefacts: list[tuple[shapely.Geometry, int]] = []
    of_canvas = is_of_artefacts(content)
    for number, feature in enumerate(parse_features(content)):
        name = _read_class(feature.properties)
        is_text = isinstance(feature.properties.get("classification"), str)
        of_canvas = of_canvas or is_text or "tissue_id" in feature.properties
        if name in _NOTHING or feature.properties.get("isMissing") is True:
            continue
        kind = _ARTEFACTS.get(name)
        piece = str(feature.properties.get("tissue_id", f"feature {number}"))
        hole = _find_holes(feature)
        for polygon, is_hole in zip(feature.polygons, hole, strict=True):
            area = shapely.make_valid(polygon)
            if not area.area > 0:
                continue
            if kind is not None:
                artefacts.append((area, kind))
            else:
                (holes if is_hole else tissue).setdefault(piece, []).append(area)
    areas: list[shapely.Geometry] = []
    for piece, parts in tissue.items():
        # A hole is one of its own piece: another piece may lie in it.
        removed = shapely.union_all(holes[piece]) if piece in holes else None
        areas += parts if removed is None else [shapely.difference(part, removed) for part in parts]
    return Outlines([area for area in areas if area.area > 0], artefacts, of_canvas)


def is_of_artefacts(content: Any) -> bool:
    """Return whether a decoded GeoJSON document is one of artefacts, though it may hold none: GrandQC's."""
    metadata = content.get("metadata") if isinstance(content, dict) else None
    return isinstance(metadata, dict) and "class_mapping" in metadata


def _read_class(properties: dict[str, Any]) -> str:
    """Read the name of a feature's class, as it is compared; empty where it has none."""
    value = properties.get("classification")
    if isinstance(value, dict):
        value = value.get("name")
    name = value if isinstance(value, str) else ""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").rstrip(" *").split())


def _find_holes(feature: Feature) -> list[bool]:
    """Find which of a feature's polygons are holes: as HEST's earlier files say."""
    hole = feature.properties.get("hole")
    if isinstance(hole, list):
        return [number in hole for number in range(len(feature.polygons))]
    return [hole is True] * len(feature.polygons)


def fill_tissue(
    areas: Sequence[shapely.Geometry], shape: tuple[int, int], scale: float
) -> Bool[np.ndarray, "height width"]:
    """Make a mask, of pixels of ``scale`` level-0 pixels, that is True inside areas."""
    filled = rasterio.features.rasterize(areas, shape, transform=Affine.scale(scale), dtype=np.uint8)
    return np.asarray(filled, bool)


def fill_artefacts(
    artefacts: Sequence[tuple[shapely.Geometry, int]], shape: tuple[int, int], scale: float
) -> UInt8[np.ndarray, "height width"]:
    """Make a mask of the kinds of artefacts, of pixels of ``scale`` level-0 pixels; 0 where there is none.

    Where several overlap, the first kind counts.
    """
    if not artefacts:
        return np.zeros(shape, np.uint8)
    ordered = sorted(artefacts, key=lambda artefact: -artefact[1])  # later ones are drawn over earlier ones
    filled = rasterio.features.rasterize(ordered, shape, transform=Affine.scale(scale), dtype=np.uint8)
    return np.asarray(filled, np.uint8)
