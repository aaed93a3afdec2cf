"""The features of a GeoJSON document (RFC 7946), with their polygons as shapely's."""

from typing import Any, NamedTuple

import numpy as np
import shapely

_MAX_COORDINATE = 1e9  # level-0 pixels from the slide's corner


class Feature(NamedTuple):
    """A feature's polygons.

    Attributes:
        properties: Its properties, as they are; empty for a geometry without any.
        polygons: Its polygons, in the file's order.
    """

    properties: dict[str, Any]
    polygons: list[shapely.Polygon]


def parse_features(content: Any) -> list[Feature]:
    """Parse the features of a decoded GeoJSON document, or of a list of features, as QuPath also writes.

    A bare geometry is a feature without properties. Geometries that are no polygons are left out.

    Raises:
        ValueError: The content is not GeoJSON, or a coordinate is out of range.
    """
    if content is None:
        return []
    if isinstance(content, list):
        return [feature for item in content for feature in parse_features(item)]
    kind = _get_member(content, "type")
    if kind == "FeatureCollection":
        return parse_features(_check_list(_get_member(content, "features"), "features"))
    if kind == "Feature":
        properties = content.get("properties")
        polygons = _parse_geometry(_get_member(content, "geometry"))
        return [Feature(properties if isinstance(properties, dict) else {}, polygons)]
    return [Feature({}, _parse_geometry(content))]


def _parse_geometry(content: Any) -> list[shapely.Polygon]:
    """Parse the polygons of a geometry; null is none."""
    if content is None:
        return []
    kind = _get_member(content, "type")
    if kind == "GeometryCollection":
        parts = _check_list(_get_member(content, "geometries"), "geometries")
        return [polygon for part in parts for polygon in _parse_geometry(part)]
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
