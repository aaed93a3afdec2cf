"""A cohort from the command line: what is run, resumed, refused, and what is left after failures."""

import csv
import fcntl
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from cohorts import InProcessEngine, hash_files, make_job, run_in_process, write_manifest, write_slides
from PIL import Image
from skimage import data as pictures

from fseg_jax import cli
from fseg_jax.cohort import engines, run
from fseg_jax.cohort.agreement import agree
from fseg_jax.cohort.engines import Local
from fseg_jax.cohort.manifest import load_manifest
from fseg_jax.cohort.run import Outcome
from fseg_jax.cohort.stages import Stages
from fseg_jax.cohort.survey import Survey
from fseg_jax.encoders.classical import classical
from fseg_jax.errors import InputError, OutputError
from fseg_jax.files import lock, partial_folders
from fseg_jax.files.partial_folders import BusyError, open_partial_folder, recover_folder
from fseg_jax.files.storage import open_storage
from fseg_jax.outputs.colours import make_palette
from fseg_jax.outputs.labels import LabelWriter
from fseg_jax.pipeline.segment import SUFFIXES, segment_slide
from fseg_jax.slides.reader import open_slide


@pytest.fixture
def place(finished_cohort, tmp_path) -> Path:
    """A copy of it, to be spoilt."""
    return shutil.copytree(finished_cohort, tmp_path / "out")


def fseg(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(a) for a in arguments])
    return exit_.value.code


# ------------------------------------------------------------------------------------ what is written


@pytest.mark.smoke
def test_everything_is_there_and_nothing_else(finished_cohort):
    names = {f"S-{i:02d}{suffix}" for i in range(4) for suffix in SUFFIXES}
    tables = {"areas.csv", "failures.csv", "report.html", "cohort.json", "timings", "thumbnails"}
    tables |= {"typical", "neighbours"}
    assert {path.name for path in finished_cohort.iterdir()} == names | tables
    assert (finished_cohort / "failures.csv").read_text() == "slide_id,path,reason\n"
    with (finished_cohort / "areas.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        record = json.loads((finished_cohort / f"{row['slide_id']}.json").read_text())
        assert {name: float(row[name]) for name in record["areas_mm2"]} == record["areas_mm2"]
    assert [row["site"] for row in rows] == ["Leeds", "Oslo"] * 2


@pytest.mark.smoke
def test_records_say_what_made_them_and_not_when(finished_cohort):
    record = json.loads((finished_cohort / "S-00.json").read_text())
    assert len(record["settings_hash"]) == 64 and record["dtype"] == "float32"
    assert not {"finished", "seconds", "tiles_per_second"} & set(record)
    timing = json.loads((finished_cohort / "timings" / "S-00.json").read_text())
    assert timing["seconds"]["segmentation"] > 0 and timing["finished"] > "2020"


def test_outputs_depend_on_neither_order_nor_run(manifest, codebook, finished_cohort, tmp_path):
    backwards = InProcessEngine(lambda slides: slides[::-1])
    run_in_process(manifest, tmp_path / "out", codebook, backwards)
    assert backwards.slide_ids[0] == "S-03"
    assert hash_files(tmp_path / "out") == hash_files(finished_cohort)


class SideBySide(InProcessEngine):
    """An engine that has as many slides under way as a worker's stages have places."""

    def run(self, job, slides, wait_for_others):
        stages = Stages()
        with ThreadPoolExecutor(stages.places) as pool:
            yield from pool.map(lambda slide: run.run_slide(job, slide, stages=stages), slides)


def test_a_slide_is_labelled_while_another_is_drawn_and_outputs_are_the_same(
    manifest, codebook, finished_cohort, tmp_path, monkeypatch
):
    """The first is drawn once the second is labelled, and that once the third is laid out."""
    at_work, most, reached = Counter(), Counter(), defaultdict(threading.Event)

    def watch(stage, name, awaited):
        do = getattr(run, name)

        def watched(*arguments, **options):
            at_work[stage] += 1
            most[stage] = max(most[stage], at_work[stage])
            most["all"] = max(most["all"], sum(at_work.values()))
            number = sum(event.is_set() for (of, _), event in reached.items() if of == stage)
            reached[stage, number].set()
            assert number or awaited is None or reached[awaited].wait(60)
            result = do(*arguments, **options)
            at_work[stage] -= 1
            return result

        monkeypatch.setattr(run, name, watched)

    watch("lay out", "lay_out", None)
    watch("label", "write_labels", ("lay out", 1))
    watch("draw", "draw_labelled", ("label", 1))
    summary, _ = run_in_process(manifest, tmp_path / "out", codebook, SideBySide())
    assert summary.done == 4 and hash_files(tmp_path / "out") == hash_files(finished_cohort)
    assert most == {"lay out": 1, "label": 1, "draw": 1, "all": most["all"]} and 2 <= most["all"] <= 3


# ------------------------------------------------------------------------------------ resuming


def test_what_is_done_is_not_done_again(manifest, codebook, place):
    (place / "S-02.json").unlink()
    before = hash_files(place)
    engine = InProcessEngine()
    summary, told = run_in_process(manifest, place, codebook, engine)
    assert engine.slide_ids == ["S-02"] and summary.done == 4
    assert told[0] == "3 of 4 slides are done, 1 to do"
    assert before.items() < hash_files(place).items()


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "assign", "concepts": 5},
        {"mpp": 2.0},
        {"tile": 96},
        {"halo": 0.125},
        {"resize": "nearest"},
        {"tissue": "all"},
        {"features": "float32"},
        {"seed": 1},
    ],
)
def test_other_settings_are_named_and_refused(manifest, codebook, place, changes):
    before = hash_files(place, without=())
    with pytest.raises(InputError) as caught:
        run_in_process(manifest, place, codebook, changes=changes)
    said = str(caught.value)
    assert "\n" not in said and "S-00, S-01, S-02, S-03;" in said and "--redo" in said
    assert next(iter(changes)) in said
    assert hash_files(place, without=()) == before


def test_other_settings_are_run_again_when_asked(manifest, codebook, place, tmp_path):
    (place / "S-03.json").unlink()
    engine = InProcessEngine()
    summary, told = run_in_process(
        manifest, place, codebook, engine, redo=True, changes={"resize": "nearest"}
    )
    assert engine.slide_ids == [f"S-{i:02d}" for i in range(4)] and summary.done == 4
    assert "S-00, S-01, S-02: run with other settings; run again" in told
    run_in_process(manifest, tmp_path / "fresh", codebook, changes={"resize": "nearest"})
    assert hash_files(place) == hash_files(tmp_path / "fresh")


def test_an_interrupted_redo_goes_on_where_it_is_asked_to(manifest, codebook, place):
    def third(slides):
        yield from slides[:2]
        raise KeyboardInterrupt

    changes = {"resize": "nearest"}
    with pytest.raises(KeyboardInterrupt):
        run_in_process(manifest, place, codebook, InProcessEngine(third), redo=True, changes=changes)
    engine = InProcessEngine()
    summary, _ = run_in_process(manifest, place, codebook, engine, changes=changes)
    assert engine.slide_ids == [] and summary.other == ["S-02", "S-03"] and summary.done == 2
    assert "2 left as they are, from other settings" in summary.to_line("out")
    run_in_process(manifest, place, codebook, engine, redo=True, changes=changes)
    assert engine.slide_ids == ["S-02", "S-03"]


def test_batch_and_threads_are_no_settings(manifest, codebook, place):
    engine = InProcessEngine()
    run_in_process(manifest, place, codebook, engine, changes={"batch": 2, "threads": 1})
    assert engine.slide_ids == []


def test_a_slides_own_mpp_and_tissue_count(manifest, codebook, place, tmp_path):
    rows = [line.split(",") for line in manifest.read_text().splitlines()[1:]]
    changed = [(i, str(manifest.parent / p), "0.9" if i == "S-03" else "", s) for i, p, _, s in rows]
    summary, _ = run_in_process(write_manifest(tmp_path / "m.csv", changed), place, codebook)
    assert summary.other == ["S-03"]
    with (tmp_path / "t.csv").open("w") as file:
        file.write("slide_id,path,tissue\n")
        mask = tmp_path / "mask.png"
        Image.fromarray(np.full((10, 10), 255, np.uint8)).save(mask)
        file.writelines(f"{i},{manifest.parent / p},{mask if i == 'S-01' else ''}\n" for i, p, *_ in rows)
    assert run_in_process(tmp_path / "t.csv", place, codebook, redo=True)[0].done == 4
    before = (place / "S-01.json").read_bytes()
    values = np.full((10, 10), 255, np.uint8)
    values[5:] = 0
    Image.fromarray(values).save(mask)  # the same name, and another mask
    assert run_in_process(tmp_path / "t.csv", place, codebook)[0].other == ["S-01"]
    run_in_process(tmp_path / "t.csv", place, codebook, redo=True)
    assert (place / "S-01.json").read_bytes() != before


def test_results_of_fseg_segment_are_not_taken_for_a_cohorts(manifest, codebook, tmp_path):
    job = make_job(tmp_path, codebook)
    with open_slide(manifest.parent / "s00.tif") as slide:
        slide.name = "S-00"
        segment_slide(slide, tmp_path, classical(), job.codebook, job.settings)
    summary, _ = run_in_process(manifest, tmp_path, codebook)
    assert summary.other == ["S-00"] and summary.done == 3


# ------------------------------------------------------------------------------------ failures


@pytest.fixture
def flawed(manifest, tmp_path) -> Path:
    """Seven slides, of which one is damaged, one no slide, and one without a resolution."""
    folder = tmp_path / "flawed"
    shutil.copytree(manifest.parent, folder)
    cut = (folder / "s01.tif").read_bytes()
    (folder / "damaged.tif").write_bytes(cut[: len(cut) // 2])
    (folder / "none.svs").write_text("this is no slide\n" * 50)
    Image.fromarray(pictures.immunohistochemistry()[:192, :192]).save(folder / "plain.png")
    rows = [line.split(",") for line in manifest.read_text().splitlines()[1:]]
    bad = [("damaged", "damaged.tif"), ("unreadable", "none.svs"), ("no-mpp", "plain.png")]
    for at, (name, path) in zip((1, 3, 5), bad, strict=True):
        rows.insert(at, [name, path, "", ""])
    return write_manifest(folder / "manifest.csv", rows)


def test_failures_have_a_reason_each_and_the_rest_goes_on(
    flawed, codebook, finished_cohort, tmp_path, capsys
):
    out = tmp_path / "out"
    arguments = ("cohort", flawed, "-o", out, "--encoder", "classical", "--codebook", codebook, "--tile", 128)
    arguments = (*arguments, "--smoothing", 0)
    assert fseg(*arguments, "--batch", 4) == 1
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last == f"fseg: 4 of 7 slides done, 3 failed ({out}/failures.csv says why)"
    with (out / "failures.csv").open() as file:
        reasons = {row["slide_id"]: row["reason"] for row in csv.DictReader(file)}
    assert list(reasons) == ["damaged", "no-mpp", "unreadable"]
    assert "no resolution (mpp) in the file" in reasons["no-mpp"]
    assert reasons["no-mpp"].startswith("no resolution")  # its path has a column of its own
    good = hash_files(finished_cohort)
    here = hash_files(out)
    # A worker is a process of its own: its pictures are of their usual size.
    others = (".json", ".zarr", ".png")
    ours, wanted = (
        {n: h for n, h in of.items() if n.startswith("S-") and not any(kind in n for kind in others)}
        for of in (here, good)
    )
    assert ours == wanted and len(ours) == 8
    # What is mended is run, and its failure forgotten.
    shutil.copy(flawed.parent / "s01.tif", flawed.parent / "damaged.tif")
    assert fseg(*arguments, "--batch", 4, "--quiet") == 1  # says that alone
    out_, err = capsys.readouterr()
    assert out_ == "" and "5 of 7 slides done, 2 failed" in err
    assert {p.name for p in (out / "failures").iterdir()} == {"no-mpp.json", "unreadable.json"}


def test_a_slide_of_other_settings_that_fails_is_in_no_table(manifest, codebook, place, monkeypatch):
    lay_out = run.lay_out

    def broken(slide, *rest):
        if slide.name == "S-01":
            raise InputError("it is gone")
        return lay_out(slide, *rest)

    monkeypatch.setattr(run, "lay_out", broken)
    summary, _ = run_in_process(manifest, place, codebook, redo=True, changes={"resize": "nearest"})
    assert summary.failed == {"S-01": "it is gone"} and (place / "S-01.json").exists()
    assert "S-01" not in (place / "areas.csv").read_text()
    assert "S-01" in (place / "failures.csv").read_text()


def crash(job, slide, **_):
    """``run_slide``, but the third slide takes its process with it."""
    if slide.slide_id == "S-02":
        os.kill(os.getpid(), signal.SIGKILL)
    return Outcome(slide.slide_id, "done")


def serve_crashing(*arguments):
    engines.run_slide = crash
    engines._serve(*arguments)


def test_a_worker_that_dies_is_one_slides_failure(manifest, codebook, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "_serve", serve_crashing)
    with Local(2) as engine:
        summary, _ = run_in_process(manifest, tmp_path / "out", codebook, engine)
    assert summary.failed == {"S-02": "its worker process died (SIGKILL, out of memory?)"}
    assert "S-02" in (tmp_path / "out" / "failures.csv").read_text()
    assert not multiprocessing.active_children()


def serve_but_on_one_device(connection, environment, *rest):
    engines.run_slide = lambda job, slide, **_: Outcome(slide.slide_id, "done")
    if environment.get("CUDA_VISIBLE_DEVICES") == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    engines._serve(connection, environment, *rest)


class WithADevice(Local):
    """A second worker's place is a device."""

    def describe(self, job):
        card = super().describe(job)
        self._places.append({"CUDA_VISIBLE_DEVICES": "1"})
        return card


def test_a_device_on_which_no_worker_starts_is_named_and_the_others_go_on(
    manifest, codebook, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(engines, "_serve", serve_but_on_one_device)
    with WithADevice(1) as engine:
        summary, _ = run_in_process(manifest, tmp_path / "out", codebook, engine)
    assert summary.done == 4 and not summary.failed
    assert [record.getMessage() for record in caplog.records] == [
        "no worker can be started on the device CUDA_VISIBLE_DEVICES=1: its worker process died (SIGKILL, "
        "out of memory?); the others go on without it"
    ]


def test_where_no_worker_starts_at_all_the_run_ends_in_one_line(manifest, codebook, tmp_path, monkeypatch):
    def start(self, job, environment):
        raise engines._NoStartError("no worker can be started: it died")

    monkeypatch.setattr(Local, "_start", start)
    with pytest.raises(InputError, match=r"no worker can be started: it died$"), Local(2) as engine:
        run_in_process(manifest, tmp_path / "out", codebook, engine)
    with Local(2) as engine, pytest.raises(InputError, match=r"no worker can be started: it died$"):
        list(engine.run(make_job(tmp_path / "out", codebook), load_manifest(manifest), False))


class PanicError(BaseException):
    """As libraries written in Rust raise."""


def test_an_error_of_the_program_is_one_slides_failure(manifest, codebook, tmp_path, monkeypatch):
    write_labels = run.write_labels

    def broken(folder, plan, *rest, **options):
        if plan.name == "S-01":
            raise ZeroDivisionError("division by zero")
        if plan.name == "S-02":
            raise MemoryError
        if plan.name == "S-03":
            raise PanicError("index out of bounds")
        return write_labels(folder, plan, *rest, **options)

    monkeypatch.setattr(run, "write_labels", broken)
    summary, _ = run_in_process(manifest, tmp_path / "out", codebook)
    assert summary.failed["S-01"].startswith("ZeroDivisionError: division by zero; this is a fault")
    assert summary.failed["S-02"].startswith("out of memory") and summary.done == 1
    assert summary.failed["S-03"].startswith("PanicError: index out of bounds")


def test_an_encoder_that_cannot_be_loaded_ends_the_run(manifest, tmp_path, capsys):
    weights = tmp_path / "w.safetensors"
    arguments = ("cohort", manifest, "-o", tmp_path / "out", "--encoder", "resnet50", "--weights", weights)
    assert fseg(*arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", ["4/4", "-1/2", "1", "a/b", "0/0"])
def test_shards_that_there_are_not(manifest, tmp_path, given, capsys):
    assert fseg("cohort", manifest, "-o", tmp_path / "out", "--shard", given) == 2
    assert f"{given}: give i/n, counted from 0" in capsys.readouterr().err


def test_a_slide_may_not_be_called_as_a_table(manifest, codebook, tmp_path):
    row = ("areas", str(manifest.parent / "s00.tif"), "", "")
    with pytest.raises(InputError, match="slide_id 'areas'"):
        run_in_process(write_manifest(tmp_path / "m.csv", [row]), tmp_path / "out", codebook)


# ------------------------------------------------------------------------------------ storage that fails


class Full:
    """Stands in for a function that finds no room on the disk, from the n-th call on."""

    def __init__(self, function, calls):
        self.function, self.left = function, calls

    def __call__(self, *arguments, **options):
        self.left -= 1
        if self.left < 0:
            raise OSError(28, "No space left on device")
        return self.function(*arguments, **options)


@pytest.mark.parametrize("calls", [0, 1])
def test_a_full_disk_stops_the_run_in_one_line(manifest, codebook, tmp_path, monkeypatch, calls):
    # The first is that of cohort.json, and then one a slide.
    monkeypatch.setattr(
        partial_folders.tempfile, "mkdtemp", Full(partial_folders.tempfile.mkdtemp, calls + 1)
    )
    engine = InProcessEngine()
    with pytest.raises(OutputError, match="No space left on device") as caught:
        run_in_process(manifest, tmp_path / "out", codebook, engine)
    assert "\n" not in str(caught.value) and len(engine.slide_ids) == calls + 1
    records = [p for p in (tmp_path / "out").glob("S-*.json")]
    assert len(records) == calls
    monkeypatch.undo()
    summary, _ = run_in_process(manifest, tmp_path / "out", codebook)
    assert summary.done == 4


def test_a_read_only_place_is_one_line(manifest, codebook, tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(partial_folders.tempfile, "mkdtemp", refuse)
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="Read-only file system"):
        run_in_process(manifest, out, codebook)
    assert not out.exists()
    out.write_text("a file")
    assert fseg("cohort", manifest, "-o", out, "--encoder", "classical") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(out) in err


def test_a_disk_that_is_full_for_labels_leaves_no_record(manifest, codebook, tmp_path, monkeypatch):
    """Where tensorstore writes, the error is its own."""
    from fseg_jax.outputs import labels

    class Store:
        def __getitem__(self, _):
            return self

        def write(self, _):
            return self

        def result(self):
            raise ValueError("RESOURCE_EXHAUSTED: Failed to write [OS error 28: No space left on device]")

    create = labels.LabelWriter._create_level
    monkeypatch.setattr(
        labels.LabelWriter,
        "_create_level",
        lambda self, i, shape: labels._Level(
            Store(), shape, self._dtype, create(self, i, shape).store.shape[0]
        ),
    )
    with pytest.raises(OutputError, match="RESOURCE_EXHAUSTED") as caught:
        run_in_process(manifest, tmp_path / "out", codebook)
    assert "\n" not in str(caught.value)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["cohort.json"]


ON_A_DISK = """
mount -t tmpfs -o size=$1k none "$2" || exit 99
cd "$3"; shift 3
step() { name=$1; shift; "$@" > $name.out 2> $name.err; echo $? > $name.code; cp -a out $name; }
step full "$@"
mount -o remount,size=64m out
step whole "$@"
mount -o remount,ro out
step refused "$@" --redo --resize nearest
"""


@pytest.mark.long
def test_a_disk_that_is_full_and_then_read_only(manifest, codebook, undisturbed, tmp_path):
    """A real one, with room for half of the slides: one line, and nothing that looks finished. With more room
    the run goes on; where nothing may be written, nothing is changed."""
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]).returncode:
        pytest.skip("no file system can be mounted here, not even for a process of its own")
    out = tmp_path / "out"
    out.mkdir()
    pages = sum(-(-path.stat().st_size // 4096) for path in undisturbed.rglob("S-*") if path.is_file())
    pages += sum(-(-p.stat().st_size // 4096) for p in undisturbed.glob("S-*.ome.zarr/**/*") if p.is_file())
    command = [sys.executable, "-m", "fseg_jax", "cohort", manifest, "-o", out, "--codebook", codebook]
    command += ["--encoder", "classical", "--tile", 128, "--batch", 4]
    arguments = [pages * 4 // 2, out, tmp_path, *command]
    subprocess.run(["unshare", "-rm", "bash", "-c", ON_A_DISK, "bash", *map(str, arguments)], check=True)

    def said(step: str) -> tuple[int, str]:
        return int((tmp_path / f"{step}.code").read_text()), (tmp_path / f"{step}.err").read_text()

    code, line = said("full")
    assert code == 2 and line.count("\n") == 1 and "No space left on device" in line
    full = tmp_path / "full"
    records = sorted(full.glob("S-*.json"))
    assert 1 <= len(records) < 4 and not list(full.rglob(".*")) and not (full / "report.html").exists()
    for record in records:
        held = hash_files(full), hash_files(undisturbed)
        ours, theirs = ({n: h for n, h in of.items() if n.startswith(record.stem)} for of in held)
        assert ours == theirs and len(ours) > len(SUFFIXES) - 1
    assert said("whole") == (0, "") and hash_files(tmp_path / "whole") == hash_files(undisturbed)
    code, line = said("refused")
    assert code == 2 and line.count("\n") == 1 and "Read-only file system" in line
    assert hash_files(tmp_path / "refused", without=()) == hash_files(tmp_path / "whole", without=())


# ------------------------------------------------------------------------ killed runs, several runs


def test_what_a_killed_run_left_is_removed_and_what_a_living_one_makes_is_not(tmp_path):
    for name in ("a", "a.b", "c"):
        (tmp_path / f".{name}.claim").touch()
        (tmp_path / f".{name}.abcd_123.partial" / "x").mkdir(parents=True)
    (tmp_path / ".mine").mkdir()
    with open_partial_folder("c", tmp_path) as living:
        recover_folder(tmp_path)
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {".mine", ".c.claim", living.name}
        with pytest.raises(BusyError, match="another run"), open_partial_folder("c", tmp_path):
            pass
    assert [path.name for path in tmp_path.iterdir()] == [".mine"]


def test_without_locks_only_what_is_old_is_removed(tmp_path, monkeypatch):
    def no_locks(*_, **__):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock, "lock_descriptor", no_locks)
    for name, age in (("new", 0), ("old", 2 * 86400)):
        folder = tmp_path / f".a.{name}_5678.partial"
        folder.mkdir()
        os.utime(folder, (time.time() - age,) * 2)
    with open_partial_folder("a", tmp_path) as folder:
        assert {p.name for p in tmp_path.iterdir()} == {".a.new_5678.partial", folder.name}


def test_a_claim_is_waited_for(tmp_path):
    order = []

    def second():
        with open_partial_folder("a", tmp_path, wait=True):
            order.append("second")

    with open_partial_folder("a", tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"] and list(tmp_path.iterdir()) == []


def test_a_slide_that_another_run_is_at_is_left_to_it(manifest, codebook, finished_cohort, tmp_path):
    """It is asked for again when all others are done, and then it is there."""
    out = tmp_path / "out"
    out.mkdir()
    with (out / ".S-01.claim").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        class Engine(InProcessEngine):
            def run(self, job, slides, wait_for_others):
                if wait_for_others:  # the other run has finished
                    for path in finished_cohort.glob("S-01*"):
                        copy = shutil.copytree if path.is_dir() else shutil.copy
                        copy(path, out / path.name)
                    fcntl.flock(held, fcntl.LOCK_UN)
                yield from super().run(job, slides, wait_for_others)

        engine = Engine()
        summary, told = run_in_process(manifest, out, codebook, engine)
    assert engine.slide_ids == [f"S-{i:02d}" for i in range(4)] + ["S-01"]
    assert summary.done == 4 and told[-1].endswith("S-01: done by another run")


def test_an_interrupted_run_ends_its_workers_and_then_clears_away_what_they_were_at(
    manifest, codebook, tmp_path
):
    out = tmp_path / "out"

    class Engine(InProcessEngine):
        is_closed = False

        def __exit__(self, *_):
            self.is_closed = True
            (out / ".S-01.claim").touch()  # of a worker that died as it was ended
            (out / ".S-01.abcd_123.partial").mkdir()

        def run(self, job, slides, wait_for_others):
            raise KeyboardInterrupt

    engine = Engine()
    with pytest.raises(KeyboardInterrupt):
        run_in_process(manifest, out, codebook, engine)
    assert engine.is_closed and [path.name for path in out.iterdir()] == ["cohort.json"]


def test_a_run_ends_where_another_begins_with_other_settings(manifest, codebook, tmp_path):
    def another(slides):
        yield slides[0]
        job = make_job(tmp_path / "out", codebook, resize="nearest")
        agree(open_storage(job.out), job, classical().card, Survey(set(), [], {}), redo=True)
        yield from slides[1:]

    with pytest.raises(OutputError, match="another run has begun there with other settings"):
        run_in_process(manifest, tmp_path / "out", codebook, InProcessEngine(another))
    assert [p.name for p in (tmp_path / "out").glob("S-*.json")] == ["S-00.json"]


def start(manifest: Path, out: Path, codebook: Path, *options: object, log: Path | None = None):
    """``fseg cohort`` as a process group of its own."""
    arguments = [
        manifest,
        "-o",
        out,
        "--encoder",
        "classical",
        "--codebook",
        codebook,
        "--tile",
        128,
        *options,
    ]
    command = [sys.executable, "-m", "fseg_jax", "cohort", *map(str, arguments), "--batch", "4"]
    stream = log.open("ab") if log else subprocess.DEVNULL
    return subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)


@pytest.fixture(scope="module")
def undisturbed(manifest, codebook, tmp_path_factory) -> Path:
    """The command's results, whose settings and pictures are a user's."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert start(manifest, out, codebook).wait(600) == 0
    return out


@pytest.mark.long
def test_killed_again_and_again_the_results_are_the_same(manifest, codebook, undisturbed, tmp_path):
    """Three times here, once when a slide is half-done; thirty times in the long test."""
    out = tmp_path / "out"
    for begun in (1, 2, 3):
        process = start(manifest, out, codebook)
        until(
            lambda begun=begun: (
                len(list(out.glob(".S-*.partial/*"))) or len(list(out.glob("S-*.json"))) >= begun
            )
        )
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert start(manifest, out, codebook).wait(600) == 0
    assert hash_files(out) == hash_files(undisturbed)


def until(true, seconds=600):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_an_interruption_is_quick_and_leaves_nothing_half_done(manifest, codebook, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    process = start(manifest, out, codebook, log=log)
    until(lambda: list(out.glob("S-*.json")))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the worker is told twice
    assert process.wait(300) == 130
    assert "interrupted" in log.read_text()
    assert not list(out.rglob(".*"))
    for path in out.glob("S-*.json"):
        assert all((out / f"{path.stem}{suffix}").exists() for suffix in SUFFIXES)


def test_what_is_written_at_an_interruption_does_not_come_back(tmp_path):
    """tensorstore writes in threads that an interruption does not reach, and makes folders that are gone."""
    rows = np.random.default_rng(0).integers(0, 9, (2048, 4096)).astype(np.uint8)

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    interrupted = 0
    try:
        for milliseconds in range(5, 105, 4):
            with suppress(KeyboardInterrupt), open_partial_folder("S", tmp_path) as folder:
                signal.setitimer(signal.ITIMER_REAL, milliseconds / 1000)
                settings = {"names": None, "colours": make_palette(8), "provenance": {}}
                writer = LabelWriter(folder / "S.ome.zarr", (1 << 16, 4096), 1.0, 8, **settings)
                for _ in range(32):
                    writer.append(rows)
                pytest.fail("it was to be interrupted")
            interrupted += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    time.sleep(0.3)
    assert interrupted == 25 and not list(tmp_path.iterdir())


def test_an_interruption_of_the_clearing_away_is_made_good_at_the_end(tmp_path, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    out = tmp_path / "new"
    with monkeypatch.context() as patch:
        patch.setattr(partial_folders, "_remove", interrupted)
        with pytest.raises(KeyboardInterrupt), open_partial_folder("S", out) as folder:
            (folder / "half").touch()
    assert (folder / "half").exists()
    partial_folders.remove_partial_folders()
    assert not out.exists()


@pytest.mark.long
def test_a_worker_ends_with_the_one_who_started_it(manifest, codebook, tmp_path):
    """Only the program is killed: its worker stops at the next tile, and lets go of its slide."""
    out = tmp_path / "out"
    process = start(manifest, out, codebook)
    until(lambda: list(out.glob("S-*.json")))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    def gone():
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    until(gone)


@pytest.mark.long
def test_two_shards_and_a_whole_run_together(manifest, codebook, undisturbed, tmp_path):
    """All at once on one place: no slide twice, none left out, and the same results."""
    out, logs = tmp_path / "out", [tmp_path / f"log{i}" for i in range(3)]
    options = [("--shard", "0/2"), ("--shard", "1/2"), ()]
    running = [start(manifest, out, codebook, *o, log=log) for o, log in zip(options, logs, strict=True)]
    assert [process.wait(600) for process in running] == [0, 0, 0]
    assert hash_files(out) == hash_files(undisturbed)
    lines = [line for log in logs for line in log.read_text().splitlines() if line.startswith("[")]
    made = [line for line in lines if line.endswith(" s")]
    assert sorted(re.search(r"\] (\S+):", line)[1] for line in made) == [f"S-{i:02d}" for i in range(4)]
    assert "S-01" not in logs[0].read_text() and "S-00" not in logs[1].read_text()
    page = (out / "report.html").read_text()
    assert all(f"S-{i:02d}" in page for i in range(4))


# ------------------------------------------------------------------------------------------ the issue's own


@pytest.fixture(scope="session")
def sixty(data, tmp_path_factory) -> Path:
    """Sixty slides of 384 pixels cut from a real one."""
    with open_slide(data / "slides" / "CMU-1-Small-Region.svs") as slide:
        image = slide.read(0, 0, slide.height, slide.width, slide.mpp)
        mpp = slide.mpp
    return write_slides(tmp_path_factory.mktemp("sixty"), image, 60, 384, mpp)


@pytest.mark.long
def test_sixty_slides_killed_thirty_times(sixty, codebook, tmp_path):
    log, undisturbed, out = tmp_path / "log", tmp_path / "undisturbed", tmp_path / "out"
    assert start(sixty, undisturbed, codebook, log=log).wait(3600) == 0
    timings = [json.loads(path.read_text()) for path in (undisturbed / "timings").iterdir()]
    slowest = max(sum(timing["seconds"].values()) for timing in timings)  # the first, which compiles
    rng = random.Random(0)
    half_done, done = 0, []
    while len(done) < 30:
        left = set(out.glob(".S-*.partial"))
        process = start(sixty, out, codebook, log=log)
        # A moment of the work, not of Python's start: from the first slide's beginning on.
        while process.poll() is None and not set(out.glob(".S-*.partial")) - left:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1.5 * slowest))
        if process.poll() is not None:
            assert process.returncode == 0
            rng.choice(sorted(out.glob("S-*.json"))).unlink()
            continue
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        half_done += bool(list(out.glob(".S-*.partial")))
        done.append(len(list(out.glob("S-*.json"))))
    assert start(sixty, out, codebook, log=log).wait(3600) == 0
    print(f"{half_done} of 30 kills met a half-done slide; slides done at each: {done}")
    assert half_done >= 10 and max(done) > 0
    compared = hash_files(undisturbed)
    assert hash_files(out) == compared
    # What is left out of that: when and how fast, and the page that says so. The same slides are timed, by
    # the same names, and from the same timings comes the same page.
    for path in (undisturbed / "timings").iterdir():
        ours, theirs = (json.loads(p.read_text()) for p in (path, out / "timings" / path.name))
        assert ours.keys() == theirs.keys() and ours["seconds"].keys() == theirs["seconds"].keys()
    shutil.rmtree(out / "timings")
    shutil.copytree(undisturbed / "timings", out / "timings")
    assert start(sixty, out, codebook, log=log).wait(3600) == 0
    everything = hash_files(undisturbed, without=())
    assert hash_files(out, without=()) == everything
    kinds = Counter(re.sub(r"^(.*/)?S-\d+", r"\1S-*", name) for name in everything)
    print(f"{len(compared)} files compared byte by byte, {len(everything) - len(compared)} more of the run:")
    print(dict(kinds))


@pytest.mark.long
def test_sixty_slides_of_which_three_fail(sixty, codebook, tmp_path):
    folder = tmp_path / "slides"
    shutil.copytree(sixty.parent, folder)
    cut = (folder / "s10.tif").read_bytes()
    (folder / "s10.tif").write_bytes(cut[: len(cut) // 2])
    (folder / "s20.tif").write_text("this is no slide\n" * 50)
    with Image.open(folder / "s30.tif") as image:
        image.save(folder / "plain.png")
    text = (folder / "manifest.csv").read_text().replace("s30.tif", "plain.png")
    (folder / "manifest.csv").write_text(text)
    log = tmp_path / "log"
    assert start(folder / "manifest.csv", tmp_path / "out", codebook, log=log).wait(3600) == 1
    last = log.read_text().strip().splitlines()[-1]
    print(last)
    assert "57 of 60 slides done, 3 failed" in last
    with (tmp_path / "out" / "failures.csv").open() as file:
        failures = list(csv.DictReader(file))
    print(failures)
    assert [row["slide_id"] for row in failures] == ["S-10", "S-20", "S-30"]
    assert len(list((tmp_path / "out").glob("S-*.json"))) == 57
