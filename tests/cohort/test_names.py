"""What the clusters of a cohort are called: the same on every slide, whoever resumes it."""

import csv
import json
import re

import pytest
from cohorts import hash_files, run_in_process

from fseg_jax.errors import InputError
from fseg_jax.outputs.cluster_names import parse_names

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
    with pytest.raises(InputError, match=r"has other names|have other names"):
        run_named(manifest, finished_cohort, codebook)


def test_names_that_do_not_fit(manifest, codebook, tmp_path):
    other = parse_names(b"cluster,name\n5,Glands\n", "other.csv")
    with pytest.raises(InputError, match="there is no cluster 5: the codebook has 4"):
        run_named(manifest, tmp_path / "out", codebook, other)
    with pytest.raises(InputError, match="give a codebook"):
        run_named(manifest, tmp_path / "out", None)
    assert not (tmp_path / "out").exists()
