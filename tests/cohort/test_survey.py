"""What a place holds is used again only where it is whole, and of the file that is there now."""

import csv
import json
import os
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cohorts import InProcessEngine, hash_files, make_job, run_in_process, write_manifest

from fseg_jax.cli import main
from fseg_jax.cli.fit import fit
from fseg_jax.cohort import job as jobs
from fseg_jax.cohort import run
from fseg_jax.cohort.agreement import agree
from fseg_jax.cohort.manifest import load_manifest
from fseg_jax.cohort.survey import Survey, survey
from fseg_jax.encoders.classical import classical
from fseg_jax.files.storage import open_storage
from fseg_jax.outputs.labels import open_labels

NAMES = {f"S-{i:02d}" for i in range(4)}
ANOTHER = "the file at its path is another one"


@pytest.fixture
def place(finished_cohort, tmp_path) -> Path:
    """A copy of a finished place, to be spoilt."""
    return shutil.copytree(finished_cohort, tmp_path / "out")


@pytest.fixture
def slides(manifest, tmp_path) -> Path:
    """A copy of the slides and their manifest, to be changed."""
    shutil.copytree(manifest.parent, tmp_path / "slides")
    return tmp_path / "slides" / "manifest.csv"


def seen(manifest: Path, place: Path | str, codebook: Path, **options: Any) -> Survey:
    job = make_job(place, codebook, **options)
    found = survey(open_storage(job.out), job, classical().card, load_manifest(manifest))
    return found._replace(clusters=frozenset())


def corrected(manifest: Path, **paths: str) -> Path:
    """The manifest with the paths of some slides changed."""
    with manifest.open() as file:
        rows = [
            (r["slide_id"], paths.get(r["slide_id"][2:], r["path"]), "", r["site"])
            for r in csv.DictReader(file)
        ]
    return write_manifest(manifest, rows)


def areas(place: Path) -> dict[str, dict[str, str]]:
    with (place / "areas.csv").open() as file:
        return {row.pop("slide_id"): row for row in csv.DictReader(file)}


def edit(path: Path, change) -> None:
    held = json.loads(path.read_text())
    change(held)
    path.write_text(json.dumps(held))


# ------------------------------------------------------------------------------ another file


@pytest.mark.parametrize("redo", [False, True])
def test_a_slide_whose_path_is_corrected_is_run_again(slides, codebook, place, redo):
    before = areas(place)
    corrected(slides, **{"02": "s03.tif"})
    engine = InProcessEngine()
    summary, told = run_in_process(slides, place, codebook, engine, redo=redo)
    assert engine.slide_ids == ["S-02"] and summary.done == 4
    assert told[:2] == [f"S-02: {ANOTHER}; run again", "3 of 4 slides are done, 1 to do"]
    now = areas(place)
    assert {**now["S-02"], "site": ""} == {**before["S-03"], "site": ""} != {**before["S-02"], "site": ""}
    records = [json.loads((place / f"{name}.json").read_text()) for name in ("S-02", "S-03")]
    assert records[0]["slide"]["identity"] == records[1]["slide"]["identity"]


def test_a_slide_that_is_replaced_is_another_one_though_its_name_and_its_time_stay(slides, codebook, place):
    slide = slides.parent / "s01.tif"
    times = slide.stat()
    assert seen(slides, place, codebook).done == NAMES
    data = bytearray(slide.read_bytes())
    data[-1] ^= 1
    slide.write_bytes(data)
    os.utime(slide, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert seen(slides, place, codebook) == Survey(NAMES - {"S-01"}, [], {"S-01": ANOTHER})


def test_slides_that_were_moved_and_renamed_are_the_same_ones(slides, codebook, place):
    (slides.parent / "archive").mkdir()
    for i in range(4):
        old = slides.parent / f"s0{i}.tif"
        shutil.copyfile(old, slides.parent / "archive" / f"{i}.tif")
        old.unlink()
    corrected(slides, **{f"0{i}": f"archive/{i}.tif" for i in range(4)})
    assert seen(slides, place, codebook) == Survey(NAMES, [], {})


def test_records_from_before_slides_had_an_identity_are_taken_by_the_names_of_their_files(
    slides, codebook, place
):
    for name in NAMES:
        edit(place / f"{name}.json", lambda record: record["slide"].pop("identity"))
    assert seen(slides, place, codebook).done == NAMES
    corrected(slides, **{"02": "s03.tif"})
    assert seen(slides, place, codebook).outdated == {"S-02": ANOTHER}


def test_results_of_another_file_are_in_no_table_though_the_one_that_is_there_fails(
    manifest, slides, codebook, place
):
    (slides.parent / "s01.tif").write_bytes(b"another file, and no slide")
    summary, _ = run_in_process(slides, place, codebook)
    assert list(summary.failed) == ["S-01"] and summary.done == 3
    assert (place / "S-01.json").exists() and areas(place).keys() == NAMES - {"S-01"}
    with (place / "failures.csv").open() as file:
        assert [row["slide_id"] for row in csv.DictReader(file)] == ["S-01"]
    shutil.copy(manifest.parent / "s01.tif", slides.parent / "s01.tif")  # what it was before
    assert run_in_process(slides, place, codebook, engine := InProcessEngine())[0].done == 4
    assert (
        engine.slide_ids == [] and areas(place).keys() == NAMES and not list((place / "failures").iterdir())
    )


def test_features_that_were_kept_of_another_file_are_not_used(slides, codebook, tmp_path):
    """Neither kept on resuming, nor segmented from."""
    keep = {"keep_features": True}
    corrected(slides)
    write_manifest(slides, [("S-00", "s00.tif", "", "")])
    kept, out = tmp_path / "kept", tmp_path / "out"
    run_in_process(slides, kept, codebook, feature_options=keep)
    assert seen(slides, kept, codebook, feature_options=keep).done == {"S-00"}
    shutil.copy(slides.parent / "s01.tif", slides.parent / "s00.tif")
    jobs._read_kept_agreement.cache_clear()
    summary, _ = run_in_process(slides, out, codebook, feature_options={"features": str(kept)})
    assert summary.failed["S-00"] == (
        f"{kept}/S-00.features.zarr: kept of another file than {slides.parent}/s00.tif; run with "
        "--keep-features again"
    )
    run_in_process(slides, kept, codebook)  # the results are of the new file, the features of the old one
    assert seen(slides, kept, codebook).done == {"S-00"}
    assert seen(slides, kept, codebook, feature_options=keep) == Survey(set(), [], {})
    (slides.parent / "s00.tif").unlink()  # where there is no slide, features are what there is
    job = make_job(out, codebook, feature_options={"features": str(kept)})
    (slide,) = load_manifest(slides, slides_needed=False)
    assert run.run_slide(job, slide).status == "done"


# ------------------------------------------------------------------------------ not whole


@pytest.mark.parametrize("suffix", [".ome.zarr", ".geojson", ".png", ".csv"])
def test_a_slide_that_has_lost_an_output_is_not_done(manifest, codebook, place, suffix):
    gone = place / f"S-02{suffix}"
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    assert seen(manifest, place, codebook) == Survey(NAMES - {"S-02"}, [], {"S-02": f"its {suffix} is gone"})


def test_an_output_that_was_lost_is_made_again_as_it_was(manifest, codebook, place, finished_cohort):
    shutil.rmtree(place / "S-02.ome.zarr")
    (place / "S-02.csv").unlink()
    engine = InProcessEngine()
    _, told = run_in_process(manifest, place, codebook, engine)
    assert engine.slide_ids == ["S-02"] and told[0] == "S-02: its .ome.zarr and .csv are gone; run again"
    assert hash_files(place) == hash_files(finished_cohort)


def test_an_output_that_is_lost_in_a_bucket_is_missed(manifest, codebook, finished_cohort, bucket):
    storage = open_storage(f"{bucket}/out")
    for path in finished_cohort.rglob("*"):
        if path.is_file() and path.parent.name not in ("timings", "thumbnails"):
            storage.write(path.relative_to(finished_cohort).as_posix(), path.read_bytes())
    assert seen(manifest, storage.url, codebook).done == NAMES
    storage.delete("S-01.ome.zarr/zarr.json")
    storage.delete("S-03.geojson")
    assert seen(manifest, storage.url, codebook).outdated == {
        "S-01": "its .ome.zarr is gone",
        "S-03": "its .geojson is gone",
    }


# ------------------------------------------------------------------------------ foreign and damaged files

FOREIGN = [b"", b"\xff\xfe", b'{"slide_id": ', b"[]", b"3", b"{}", b"[" * 100_000]


@pytest.mark.parametrize("data", FOREIGN)
def test_a_damaged_record_is_a_slide_to_run_again(manifest, codebook, place, data):
    (place / "S-01.json").write_bytes(data)
    assert seen(manifest, place, codebook).outdated == {"S-01": "its record is damaged"}


def test_a_record_without_what_the_tables_need_is_damaged(manifest, codebook, place):
    for name, key, value in (
        ("S-00", "areas_mm2", None),
        ("S-01", "areas_mm2", {"cluster 1": "much"}),
        ("S-02", "tissue_mm2", float("nan")),
        ("S-03", "versions", []),
    ):
        edit(place / f"{name}.json", lambda record, key=key, value=value: record.update({key: value}))
    assert seen(manifest, place, codebook).outdated == dict.fromkeys(sorted(NAMES), "its record is damaged")


def test_foreign_files_among_the_logs_harm_no_run(manifest, codebook, place):
    """A run over a place whose failures, timings and thumbnails are spoilt ends with the same tables."""
    before = areas(place)
    for folder, suffix in (("failures", "json"), ("timings", "json"), ("thumbnails", "jpg")):
        (place / folder).mkdir(exist_ok=True)
        (place / folder / "a folder").mkdir()
        for i, data in enumerate(FOREIGN):
            (place / folder / f"S-{i:02d}.{suffix}").write_bytes(data)
    (place / "timings" / "S-00.json").write_text(
        '{"seconds": {"a": "b"}, "finished": "2026-01-01", "tiles_per_second": 1}'
    )
    (place / "thumbnails" / "S-00.jpg").write_bytes((place / "thumbnails" / "S-03.jpg").read_bytes()[:300])
    (place / "failures" / "S-09.json").write_text(
        '{"slide_id": "S-09", "path": "x", "reason": "of another manifest"}'
    )
    engine = InProcessEngine()
    summary, _ = run_in_process(manifest, place, codebook, engine)
    assert engine.slide_ids == [] and summary.done == 4 and areas(place) == before
    assert (place / "failures.csv").read_text() == "slide_id,path,reason\n"
    assert "S-02" in (place / "report.html").read_text()


@pytest.mark.parametrize("data", FOREIGN)
def test_a_damaged_note_of_the_settings_is_written_again(manifest, codebook, place, data):
    held = (place / "cohort.json").read_bytes()
    (place / "cohort.json").write_bytes(data)
    storage, job, card = open_storage(str(place)), make_job(place, codebook), classical().card
    assert agree(storage, job, card, Survey(NAMES, [], {}), False) == (
        f"{place}/cohort.json was damaged, and is written again"
    )
    assert (place / "cohort.json").read_bytes() == held
    (place / "cohort.json").write_bytes(data)
    with pytest.raises(run.InputError, match="damaged, and there are results of other settings: S-01;"):
        agree(storage, job, card, Survey(set(), ["S-01"], {}), False)
    assert agree(storage, job, card, Survey(set(), ["S-01"], {}), True)


# ------------------------------------------------------------------------------ without a codebook


def test_clusters_of_slides_that_were_each_clustered_by_themselves_are_not_lined_up(manifest, place):
    """The table has a line for each cluster of each slide, the page a list in each slide's line."""
    job, engine = make_job(place, None, k=4), InProcessEngine()
    for slide in load_manifest(manifest):  # as if each were of its own centres
        digest = jobs.hash_settings(job, classical().card, jobs.resolve_settings(slide, job))
        edit(
            place / f"{slide.slide_id}.json",
            lambda record, digest=digest: record.update(settings_hash=digest),
        )
    (place / "cohort.json").unlink()
    summary = run.run_cohort(load_manifest(manifest), job, engine)
    assert summary.done == 4 and engine.slide_ids == []
    with (place / "areas.csv").open() as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == ["slide_id", "site", "split", "cluster", "area_mm2", "share_of_tissue"]
    assert [row["cluster"] for row in found] == [
        f"{name}/{j}" for name in sorted(NAMES) for j in (1, 2, 3, 4)
    ]
    page = (place / "report.html").read_text()
    shown = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert shown["clusters"] == [] and "Heat map" not in page and "each slide was clustered by itself" in page
    for slide_id, *_, picture, own in shown["rows"]:
        record = json.loads((place / f"{slide_id}.json").read_text())
        rows = [row for row in found if row["slide_id"] == slide_id]
        assert [float(row["area_mm2"]) for row in rows] == list(record["areas_mm2"].values())
        assert sum(float(row["share_of_tissue"]) for row in rows) == pytest.approx(1, abs=2e-3)
        assert {name: area for name, _, area in own} == {
            f"{slide_id}/{j}": round(area, 4)
            for j, area in enumerate(record["areas_mm2"].values(), 1)
            if area > 0
        }
        assert [area for *_, area in own] == sorted((area for *_, area in own), reverse=True) and picture


def test_slides_that_were_each_clustered_by_themselves_begin_the_palette_elsewhere(manifest, tmp_path):
    """The colours are the same in the slide's labels and its record, and so in the report."""
    slides = load_manifest(manifest)[:2]
    job = make_job(tmp_path / "out", None, k=4)
    run.run_cohort(slides, job, InProcessEngine())
    found = []
    for slide in slides:
        record = json.loads((tmp_path / "out" / f"{slide.slide_id}.json").read_text())
        found.append(list(record["colours"].values()))
        drawn = open_labels(tmp_path / "out" / f"{slide.slide_id}.ome.zarr").colours
        assert [f"#{bytes(colour).hex()}" for colour in drawn] == found[-1]
    assert all(one != other for one, other in zip(*found, strict=True))


def test_a_cohort_without_a_codebook_offers_to_fit_one_first(
    manifest, codebook, tmp_path, monkeypatch, capsys
):
    """It is the first line; the command that it offers is one that ``fseg fit`` takes."""
    monkeypatch.setattr(run, "run_cohort", lambda *_, **__: run.Summary(0, 0, {}, []))

    def start(*options: object) -> list[str]:
        with pytest.raises(SystemExit):
            main(["cohort", str(manifest), "-o", str(tmp_path / "out"), *map(str, options)])
        return capsys.readouterr().out.splitlines()

    wanted = ("--encoder", "classical", "--k", "5", "--mpp", "2", "--mpp-override", "0.5", "--no-tissue")
    for options, expected in ((wanted[:2], (*wanted[:2], "--k", "8")), (wanted, wanted)):
        line, last = start(*options)
        assert "cluster 1 of one is not cluster 1 of another" in line and last.startswith("fseg: 0 of 0")
        command = shlex.split(line.partition("run: ")[2].partition("; then add")[0])
        assert command == ["fseg", "fit", str(manifest), "-o", "codebook.safetensors", *expected]
        fit.make_context("fit", command[2:])
    assert "--codebook he-small, which is there" in start()[0]
    assert len(start("--encoder", "classical", "--codebook", codebook)) == 1


def test_with_a_codebook_clusters_have_columns(finished_cohort):
    assert list(areas(finished_cohort)["S-00"])[3:] == [f"cluster {j}" for j in (1, 2, 3, 4)]
    assert "Heat map" in (finished_cohort / "report.html").read_text()


def test_names_in_a_cohorts_tables_are_no_formulas(manifest, codebook, place):
    rows = [(f"S-{i:02d}", str(manifest.parent / f"s{i:02d}.tif"), "", "=1+1") for i in range(4)]
    table = write_manifest(place.parent / "m.csv", [*rows, ("-x", "none.svs", "", "")])
    slides = load_manifest(table, slides_needed=False)
    summary = run.run_cohort(slides, make_job(place, codebook), InProcessEngine())
    assert list(summary.failed) == ["-x"]
    assert {row["site"] for row in areas(place).values()} == {"'=1+1"}
    assert (place / "failures.csv").read_text().splitlines()[1].startswith("'-x,")


# ------------------------------------------------------------------------------ options of the cohort


def test_a_cohort_takes_mpp_and_tissue_for_slides_of_which_the_manifest_says_nothing(
    manifest, tmp_path, monkeypatch, capsys
):
    """What its failures advise is there to be given."""
    jobs_run = []
    monkeypatch.setattr(
        run, "run_cohort", lambda slides, job, *_, **__: jobs_run.append(job) or run.Summary(0, 0, {}, [])
    )
    mask = tmp_path / "mask.png"
    mask.touch()

    def start(*options: object) -> int:
        with pytest.raises(SystemExit) as end:
            main(["cohort", str(manifest), "-o", str(tmp_path / "out"), *map(str, options)])
        return int(end.value.code or 0)

    assert start("--mpp-override", 0.5, "--tissue", mask) == 0
    assert (jobs_run[0].settings.mpp_override, jobs_run[0].settings.tissue) == (0.5, str(mask))
    slide = load_manifest(manifest)[0]
    assert jobs.resolve_settings(slide, jobs_run[0]).mpp_override == 0.5
    assert start("--series", 2) == 0
    job, other = jobs_run.pop(), replace(slide, series=0)
    assert [jobs.resolve_settings(one, job).series for one in (slide, other)] == [2, 0]
    card = classical().card
    for hashed in (jobs.hash_settings, jobs.hash_feature_settings):
        assert len({hashed(job, card, jobs.resolve_settings(one, job)) for one in (slide, other)}) == 2
    assert start("--frame", "canvas") == 0
    canvas = jobs_run.pop()
    for hashed in (jobs.hash_settings, jobs.hash_feature_settings):
        settings = [replace(canvas.settings, frame=frame) for frame in ("canvas", "bounds")]
        assert hashed(canvas, card, settings[0]) == hashed(canvas, card, canvas.settings)
        other = replace(canvas, settings=settings[1])
        assert hashed(other, card, settings[1]) != hashed(canvas, card, settings[0])
    assert start("--no-tissue") == 0 and jobs_run[1].settings.tissue == "all"
    assert start("--tissue", tmp_path / "none.png") == 2
    assert "--tissue" in capsys.readouterr().err
    assert start("--tissue", mask, "--no-tissue") == 2 and start("--mpp-override", 0) == 2
    assert start("--features", tmp_path, "--mpp-override", 0.5) == 2
    assert "--mpp-override: the features have that already" in capsys.readouterr().err
    assert len(jobs_run) == 2
