"""The polygons of a GeoJSON document (RFC 7946), as shapely's."""

from typing import Any

import numpy as np
import shapely

_MAX_COORDINATE = 1e9  # level-0 pixels from the slide's corner


def parse_polygons(content: Any) -> list[shapely.Polygon]:
    """Parse the polygons of a decoded GeoJSON document, or of a list of features, as QuPath also writes.

    Geometries of other types are left out.

    Raises:
        ValueError: The content is not GeoJSON, or a coordinate is out of range.
    """
    if content is None:
        return []
    if isinstance(content, list):
        return [polygon for item in content for polygon in parse_polygons(item)]
    kind = _get_member(content, "type")
    if kind == "FeatureCollection":
        return parse_polygons(_check_list(_get_member(content, "features"), "features"))
    if kind == "Feature":
        return parse_polygons(_get_member(content, "geometry"))
    if kind == "GeometryCollection":
        return parse_polygons(_check_list(_get_member(content, "geometries"), "geometries"))
    if kind == "Polygon":
        return [_parse_polygon(_get_member(content, "coordinates"))]
    if kind == "MultiPolygon":
        parts = _check_list(_get_member(content, "coordinates"), "coordinates")
        return [_parse_polygon(rings) for rings in parts if rings is not None]
    return []


def _get_member(content: Any, name: str) -> Any:
    if not isinstance(content, dict) or name not in content:
        raise ValueError(f"{str(content)[:40]!r} has no {name}")
    return content[name]


def _check_list(content: Any, name: str) -> list[Any]:
    if not isinstance(content, list):
        raise ValueError(f"{name} are {str(content)[:40]!r}, where a list is needed")
    return content


def _parse_polygon(rings: Any) -> shapely.Polygon:
    """Parse a polygon: its first ring is the outline, the others are holes; no rings make an empty one."""
    if not rings:
        return shapely.Polygon()
    outline, *holes = (_parse_ring(ring) for ring in _check_list(rings, "coordinates"))
    return shapely.Polygon(outline, [hole for hole in holes if len(hole)])


def _parse_ring(points: Any) -> np.ndarray:
    """Parse the (x, y) of a ring: (points, 2)."""
    try:
        numbers = np.array(_check_list(points, "coordinates"))
    except ValueError:  # points of unequal length
        numbers = np.array("")
    if not numbers.size:
        return np.empty((0, 2))
    if numbers.ndim != 2 or numbers.shape[1] not in (2, 3) or numbers.dtype.kind not in "iuf":
        raise ValueError("coordinates are no rings of pairs of numbers")
    if not (np.abs(numbers) <= _MAX_COORDINATE).all():  # also refuses NaN
        raise ValueError(f"coordinates are not all within {_MAX_COORDINATE:.0e} level-0 pixels")
    return numbers[:, :2]
