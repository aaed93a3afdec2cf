"""What the clusters of a cohort are called: the same on every slide, whoever resumes it."""

import base64
import csv
import hashlib
import io
import json
import re
import shutil

import numpy as np
import pytest
from cohorts import hash_files, run_in_process, write_codebook
from PIL import Image

from fseg_jax.cohort import rename
from fseg_jax.cohort.rename import rename_outputs
from fseg_jax.errors import InputError
from fseg_jax.files.storage import open_storage
from fseg_jax.outputs.cluster_names import parse_names
from fseg_jax.outputs.labels import open_labels, resample_nearest

NAMES = parse_names(b"cluster,name,colour\n2,Stroma,#ff0010\n4,Tumour,\n", "names.csv")
CALLED = ["cluster 1", "Stroma", "cluster 3", "Tumour"]


def run_named(manifest, place, codebook, names=NAMES, **options):
    return run_in_process(manifest, place, codebook, feature_options={"names": names}, **options)


def read_report(place) -> dict:
    page = (place / "report.html").read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found[1])


def test_names_are_in_the_tables_and_the_report(manifest, codebook, tmp_path):
    place = tmp_path / "out"
    run_named(manifest, place, codebook)
    with (place / "areas.csv").open(encoding="utf-8") as file:
        assert csv.DictReader(file).fieldnames[4:] == CALLED
    report = read_report(place)
    assert report["clusters"] == CALLED
    assert report["colours"] == ["#009e73", "#ff0010", "#0072b2", "#f0e442"]
    assert json.loads((place / "S-03.json").read_text())["colours"]["Stroma"] == "#ff0010"


def test_the_report_shows_the_most_typical_places_of_each_cluster(finished_cohort):
    """At most three that are nearly as pure as the purest: the best of each slide, then their next ones."""
    report = read_report(finished_cohort)
    records = [json.loads((finished_cohort / f"S-{i:02d}.json").read_text()) for i in range(4)]
    for j, name in enumerate(report["clusters"]):
        own = {f"S-{i:02d}": record["typical"].get(name) for i, record in enumerate(records)}
        best = sorted((-places[0]["share"], slide) for slide, places in own.items() if places)
        best = [(share, slide) for share, slide in best if share <= 0.75 * best[0][0]]
        shown = report["typical"][j]
        assert {slide for slide, _, _ in shown} >= {slide for _, slide in best[:3]}
        shares = [share for _, _, share in shown]
        assert shares == sorted(shares, reverse=True) and len(shares) <= 3
        assert not shares or shares[-1] >= 0.749 * shares[0]
        areas = np.array([record["areas_mm2"][name] for record in records])
        shares = np.array([record["border_share"][name] for record in records])
        assert report["border"][j] == pytest.approx((areas * shares).sum() / max(areas.sum(), 1e-9), abs=1e-3)
        for slide, picture, _ in shown[:1]:
            found = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture)))).astype(int)
            sheet = np.asarray(Image.open(finished_cohort / "typical" / f"{slide}.jpg"))
            row = list(records[int(slide[2:])]["typical"]).index(name)
            assert np.abs(found - sheet[128 * row : 128 * (row + 1), :128]).mean() < 4
    assert sum(map(len, report["typical"])) >= 4


def test_the_report_shows_which_clusters_are_neighbours(finished_cohort):
    """Borders and neighbours are those of all slides' labels together, counted here pixel by pixel."""
    shown = read_report(finished_cohort)["neighbours"]
    k, counts = len(shown["clusters"]), np.zeros((4, 4))
    for i in range(4):
        labels = open_labels(finished_cohort / f"S-{i:02d}.ome.zarr")
        level = labels.find_level(16)
        part = resample_nearest(labels.read(level), (10, 10)).astype(int)
        for a, b in ((part[1:], part[:-1]), (part[:, 1:], part[:, :-1])):
            both = (a > 0) & (b > 0)
            np.add.at(counts, (a[both] - 1, b[both] - 1), 1)
    counts = (counts + counts.T)[np.ix_(shown["clusters"], shown["clusters"])]
    np.fill_diagonal(counts, 0)
    expected = counts / counts.sum(1, keepdims=True)
    found = np.array([[0 if v is None else v for v in row] for row in shown["border"]], float)
    assert shown["slides"] == 4 and k >= 2
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert all(table[i][i] is None for table in (shown["ratio"], shown["distance"]) for i in range(k))


def test_whoever_resumes_it_takes_the_names_of_the_place(manifest, codebook, tmp_path):
    run_named(manifest, tmp_path / "out", codebook)
    before = hash_files(tmp_path / "out")
    (tmp_path / "out" / "S-02.json").unlink()
    summary, _ = run_in_process(manifest, tmp_path / "out", codebook)
    assert summary.done == 4 and hash_files(tmp_path / "out") == before


def test_other_names_are_refused(manifest, codebook, tmp_path, finished_cohort):
    run_named(manifest, tmp_path / "out", codebook)
    before = hash_files(tmp_path / "out", without=())
    other = parse_names(b"cluster,name\n1,Glands\n", "other.csv")
    with pytest.raises(InputError, match=r"fseg names .*/out other\.csv renames them"):
        run_named(manifest, tmp_path / "out", codebook, other)
    assert hash_files(tmp_path / "out", without=()) == before
    with pytest.raises(InputError, match="clusters have other names there; fseg names"):
        run_named(manifest, finished_cohort, codebook)
    rename_outputs(str(tmp_path / "out"), other)  # what the error recommends, and then they agree
    assert run_named(manifest, tmp_path / "out", codebook, other)[0].done == 4
    assert read_report(tmp_path / "out")["clusters"] == ["Glands", *CALLED[1:]]


def test_clusters_of_another_codebook_do_not_take_the_names(manifest, codebook, tmp_path):
    run_named(manifest, tmp_path / "out", codebook)
    other = write_codebook(tmp_path / "other.safetensors", k=3, seed=1)
    run_in_process(manifest, tmp_path / "out", other, redo=True)
    assert read_report(tmp_path / "out")["clusters"] == ["cluster 1", "cluster 2", "cluster 3"]
    assert not (tmp_path / "out" / "names.csv").exists()


def test_names_that_do_not_fit(manifest, codebook, tmp_path):
    other = parse_names(b"cluster,name\n5,Glands\n", "other.csv")
    with pytest.raises(InputError, match="there is no cluster 5: the codebook has 4"):
        run_named(manifest, tmp_path / "out", codebook, other)
    with pytest.raises(InputError, match="give a codebook"):
        run_named(manifest, tmp_path / "out", None)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------- fseg names


def read_page(place) -> str:
    """Read the report without its times."""
    page = (place / "report.html").read_text(encoding="utf-8")
    data = read_report(place)
    rows = [[*row[:5], *row[7:]] for row in data["rows"]]
    return json.dumps(data | {"rows": rows}) + re.sub(r"[0-9.:-]+|UTC", "", page[: page.index("<script")])


def test_a_renamed_cohort_is_that_of_a_run_with_names(manifest, codebook, finished_cohort, tmp_path):
    place = shutil.copytree(finished_cohort, tmp_path / "out")
    assert rename_outputs(str(place), NAMES) == 4
    run_named(manifest, tmp_path / "fresh", codebook)
    assert hash_files(place) == hash_files(tmp_path / "fresh")
    assert read_report(place)["clusters"] == CALLED
    assert read_page(place) == read_page(tmp_path / "fresh")
    summary, told = run_in_process(manifest, place, codebook)
    assert summary.done == 4 and told[0] == "4 of 4 slides are done, 0 to do"
    run_named(manifest, place, codebook)
    assert hash_files(place) == hash_files(tmp_path / "fresh")


def test_a_renaming_that_stops_halfway_is_said_and_completed(
    manifest, codebook, finished_cohort, tmp_path, monkeypatch
):
    place = shutil.copytree(finished_cohort, tmp_path / "out")
    rename_slide = rename.rename_slide

    def stop(storage, name, record, clusters):
        if name == "S-02":
            raise KeyboardInterrupt
        rename_slide(storage, name, record, clusters)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rename, "rename_slide", stop)
        rename_outputs(str(place), NAMES)
    with pytest.raises(InputError, match=r"clusters have other names there; fseg names .* FILE renames"):
        run_in_process(manifest, place, codebook)
    rename_outputs(str(place), NAMES)
    run_named(manifest, tmp_path / "fresh", codebook)
    assert hash_files(place) == hash_files(tmp_path / "fresh")


def test_a_cohort_in_a_bucket_is_renamed(manifest, codebook, bucket, tmp_path):
    run_in_process(manifest, f"{bucket}/out", codebook)
    assert rename_outputs(f"{bucket}/out", NAMES) == 4
    run_named(manifest, tmp_path / "fresh", codebook)
    storage, expected = open_storage(f"{bucket}/out"), hash_files(tmp_path / "fresh")
    found = {key: hashlib.sha256(data).hexdigest() for key, data in storage.read_all(list(expected)).items()}
    assert found == expected


def test_slides_with_clusters_of_their_own_have_no_names_in_common(manifest, tmp_path):
    run_in_process(manifest, tmp_path / "out", changes={"k": 3})
    before = hash_files(tmp_path / "out", without=())
    for slide in (None, "a"):
        with pytest.raises(InputError, match=r"each slide has clusters of its own.*run fseg fit"):
            rename_outputs(str(tmp_path / "out"), NAMES, slide)
    assert hash_files(tmp_path / "out", without=()) == before
