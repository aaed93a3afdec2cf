"""A project of TissUUmaps (.tmap): the slide's image, its regions and points, in files beside it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fseg_jax.outputs.csv_table import format_csv
from fseg_jax.outputs.geojson import yield_features

Class = dict[str, Any]  # QuPath's: a ``name`` and a ``color``


def write_regions(path: Path, clusters: np.ndarray, polygons: np.ndarray, classes: Sequence[Class]) -> None:
    """Write regions as GeoJSON; polygons are in pixels of the project's image."""
    features = ",\n".join(yield_features(clusters, polygons, classes, 1.0))
    path.write_text(f'{{"type":"FeatureCollection","features":[{features}]}}\n', encoding="utf-8")


def write_points(
    path: Path, points: Float[np.ndarray, "n 2"], clusters: Int[np.ndarray, " n"], classes: Sequence[Class]
) -> None:
    """Write points (x, y), in pixels of the project's image, with the names and colours of their clusters."""
    rows = [
        {
            "x": round(float(x), 1),
            "y": round(float(y), 1),
            "cluster": classes[j - 1]["name"],
            "colour": "#" + bytes(classes[j - 1]["color"]).hex(),
        }
        for (x, y), j in zip(points, clusters.tolist(), strict=True)
        if j
    ]
    path.write_text(format_csv(("x", "y", "cluster", "colour"), rows), encoding="utf-8")


def describe_project(name: str, image: str, regions: str, points: str, spacing: float) -> str:
    """Describe a project, as its file holds it.

    Args:
        name: The slide's name.
        image: Path of the image from the project.
        regions: Path of the regions.
        points: Path of the points.
        spacing: Pixels between points.
    """
    return json.dumps(
        {
            "filename": name,
            "layers": [{"name": name, "tileSource": f"{image}.dzi"}],
            "layerOpacities": {"0": 1},
            "layerVisibilities": {"0": True},
            "regionFiles": [{"title": "Regions", "path": regions, "autoLoad": True}],
            "markerFiles": [
                {
                    "title": "Points",
                    "name": "Points",
                    "uid": "fseg",
                    "path": points,
                    "autoLoad": True,
                    "expectedHeader": {
                        "X": "x",
                        "Y": "y",
                        "gb_col": "cluster",
                        "cb_col": "colour",
                        "scale_factor": f"{max(0.1, min(10.0, spacing / 100)):.3g}",
                        "shape_fixed": "square",
                    },
                    "expectedRadios": {
                        "cb_col": True,
                        "cb_gr": False,
                        "shape_fixed": True,
                        "shape_gr": False,
                    },
                }
            ],
        },
        indent=1,
        ensure_ascii=False,
    )
