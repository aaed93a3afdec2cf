"""Artefacts in a cohort: in every slide's results, and the same from features that were kept."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from cohorts import hash_files, run_in_process

from fseg_jax.cohort import job as jobs
from fseg_jax.outputs.labels import open_labels

RING = [[32, 32], [96, 32], [96, 80], [32, 80], [32, 32]]
EVERYTHING = [[0, 0], [160, 0], [160, 160], [0, 160], [0, 0]]


@pytest.fixture
def marked(manifest, tmp_path) -> Path:
    """The first slide, with a file that marks all of it as tissue and a part as a fold."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"classification": {"name": name}},
        }
        for ring, name in ((EVERYTHING, "Tissue"), (RING, "Fold"))
    ]
    (tmp_path / "outlines.geojson").write_text(json.dumps(features))
    path = tmp_path / "manifest.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ("slide_id", "path", "tissue"),
                ("S-00", manifest.parent / "s00.tif", tmp_path / "outlines.geojson"),
            ]
        )
    return path


def read(place: Path) -> tuple[dict, np.ndarray, np.ndarray]:
    root = place / "S-00.ome.zarr"
    record = json.loads((place / "S-00.json").read_text())
    return record, open_labels(root).read(0), open_labels(root / "labels" / "artefacts").read(0)


def test_kept_features_know_of_artefacts(marked, codebook, tmp_path):
    kept, again, dropped = (tmp_path / name for name in ("kept", "again", "dropped"))
    run_in_process(marked, kept, codebook, feature_options={"keep_features": True})
    record, labels, artefacts = read(kept)
    fold = np.zeros((160, 160), bool)
    fold[32:80, 32:96] = True
    np.testing.assert_array_equal(artefacts, np.where(fold, 2, 0))
    assert record["artefacts_mm2"] == {"ink": 0, "fold": 48 * 64e-6, "out_of_focus": 0, "other": 0}
    assert (labels[fold] > 0).all()
    jobs._read_kept_agreement.cache_clear()
    features = {"features": str(kept)}
    run_in_process(marked, again, codebook, feature_options=features)
    assert hash_files(again).items() <= hash_files(kept).items()
    run_in_process(marked, dropped, codebook, feature_options=features, changes={"artefacts": "drop"})
    record, labels, artefacts = read(dropped)
    np.testing.assert_array_equal(artefacts, np.where(fold, 2, 0))
    assert not labels[fold].any() and (labels[~fold] > 0).mean() > 0.98
    assert record["parameters"]["artefacts"] == "drop"
