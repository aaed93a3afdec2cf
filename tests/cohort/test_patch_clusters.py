"""Slides whose patches another program has embedded, clustered together from the command line."""

import csv
import json
import re
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from fseg_jax import cli
from fseg_jax.cohort.patch_clusters import read_centres
from fseg_jax.files.storage import open_storage
from fseg_jax.outputs.labels import open_labels

CENTRES = np.eye(3, 5, dtype=np.float32) * 4 - 1


def fseg(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(a) for a in arguments])
    return exit_.value.code


@pytest.fixture
def folder(tmp_path):
    """Two slides of 8 × 6 patches in three vertical bands, and what cannot be used."""
    features = tmp_path / "features_uni"
    features.mkdir()
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:6, :8].reshape(2, -1)
    for name, order in (("a", (0, 1, 2)), ("b", (2, 0, 1))):
        with h5py.File(features / f"{name}.h5", "w") as file:
            band = np.array(order)[np.minimum(x // 3, 2)]
            file["features"] = CENTRES[band] + rng.normal(0, 0.1, (48, 5)).astype(np.float32)
            file["coords"] = np.stack([x, y], 1) * 512
            file["coords"].attrs.update({"patch_size_level0": 512, "level0_magnification": 40})
    return features


def test_a_cluster_is_the_same_on_all_slides(folder, tmp_path, capsys):
    (folder / "c.h5").write_bytes(b"none")
    assert fseg("cohort", "--from-h5", folder, "-o", tmp_path / "out", "--k", 3) == 1
    assert "2 of 3 slides done, 1 failed" in capsys.readouterr().out
    out = tmp_path / "out"
    with (out / "areas.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["slide_id"] for row in rows] == ["a", "b"]
    sizes = sorted(float(rows[0][f"cluster {j}"]) for j in (1, 2, 3))
    assert sizes == pytest.approx([12 * 0.128**2, 18 * 0.128**2, 18 * 0.128**2], abs=0.01)
    a, b = (open_labels(out / f"{name}.ome.zarr").read(0) for name in "ab")
    width = a.shape[1]
    at = [a[10, int(width * x)] for x in (0.1, 0.5, 0.9)]
    assert [b[10, int(width * x)] for x in (0.1, 0.5, 0.9)] == [at[2], at[0], at[1]]
    assert len(set(at)) == 3 and json.loads((out / "a.json").read_text())["encoder"]["name"] == "uni"
    assert "c.h5" in (out / "failures.csv").read_text()
    page = (out / "report.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert [row[0] for row in data["rows"]] == ["a", "b"] and "c.h5" in page
    assert data["border"] is None and data["neighbours"]["slides"] == 2
    shares = np.array([[v or 0.0 for v in row] for row in data["neighbours"]["border"]])
    assert (shares > 0).sum(1).max() == 2  # a band in the middle touches both others
    # Their centres are a codebook for others.
    assert read_centres(out / "centres.safetensors").shape == (3, 5)
    (folder / "c.h5").unlink()
    options = ("--codebook", out / "centres.safetensors", "--class-prefix", "{slide} ")
    capsys.readouterr()
    again = ("cohort", "--from-h5", folder / "b.h5", "-o", tmp_path / "again", *options)
    assert fseg(*again, "--json", "--quiet") == 0
    printed, err = capsys.readouterr()
    line = json.loads(printed)
    assert line["slide"] == "b" and line["status"] == "done" and err == ""
    assert all(Path(path).exists() for path in line["outputs"])
    assert line["areas_mm2"] == json.loads((tmp_path / "again" / "b.json").read_text())["areas_mm2"]
    np.testing.assert_array_equal(open_labels(tmp_path / "again" / "b.ome.zarr").read(0), b)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--k", 97), "--k 97: there are 96 patches to cluster"),
        (("--keep-features",), "--keep-features: is not for patch features"),
        (("--codebook", "none.safetensors"), "none.safetensors: holds no centres of patches"),
        (("--slides", "nowhere"), "holds no slide called a"),
    ],
)
def test_a_mistake_is_one_line(folder, tmp_path, options, says, capsys):
    assert fseg("cohort", "--from-h5", folder, "-o", tmp_path / "out", *options) == 2
    assert says in capsys.readouterr().err
    assert not [*tmp_path.glob("out/*.json")] or not [*tmp_path.glob("out/?.json")]


def test_a_bucket_holds_what_a_folder_does(folder, bucket, tmp_path, capsys):
    arguments = ("cohort", "--from-h5", folder, "--k", 3, "--no-image", "-o")
    assert fseg(*arguments, f"{bucket}/out", "--quiet") == 0 == fseg(*arguments, tmp_path / "out", "--quiet")
    assert capsys.readouterr().out == ""
    storage = open_storage(f"{bucket}/out")
    for path in (p for p in (tmp_path / "out").rglob("*") if p.is_file()):
        key = path.relative_to(tmp_path / "out").as_posix()
        found = storage.read(key)
        assert found is not None, key
        assert found == path.read_bytes() or b'"finished"' in found, key
    assert fseg(*arguments, f"{bucket}/out") == 2
    assert "a.json exists: choose another place, or --redo" in capsys.readouterr().err


def test_a_package_that_is_missing_is_named_once(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert fseg("cohort", "--from-h5", folder, "-o", tmp_path / "out") == 2
    out, error = capsys.readouterr()
    assert error == "fseg: error: HDF5 needs the package h5py: pip install 'fseg-jax[h5]'\n" and not out
    assert not (tmp_path / "out").exists()


def test_a_manifest_and_features_are_not_given_together(folder, tmp_path, capsys):
    assert fseg("cohort", "-o", tmp_path / "out") == 2
    assert "give a MANIFEST, or a folder of patch features" in capsys.readouterr().err
