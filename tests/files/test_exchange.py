"""Outputs replaced by new ones, and the program killed at it: the old or the new are whole, always."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import generations
import pytest
from generations import SUFFIXES, expect_files, publish, read_files, write_files
from kill import die_before_step

from fseg_jax.errors import InputError
from fseg_jax.files.partial_folders import open_partial_folder, recover_folder, recover_outputs
from fseg_jax.files.storage import open_storage
from fseg_jax.pipeline.publish import check_outputs, finish, together


@pytest.mark.parametrize("old", [None, 2], ids=["new", "replaced"])
def test_killed_at_any_step_the_old_or_the_new_outputs_are_whole(tmp_path, old):
    """And once a record is there, so is all that it names, before anything is put in order."""
    seen = []
    for at in count():
        out = tmp_path / str(at)
        out.mkdir()
        if old is not None:
            write_files(out, old)
        before = read_files(out)
        died = die_before_step(lambda out=out: publish(out, 1), at)
        held = read_files(out)
        if "S.json" in held:
            visible = {name: text for name, text in held.items() if not name.startswith(".")}
            assert visible in (before, expect_files(1))
        recover_folder(out)
        assert read_files(out) in (before, expect_files(1)) and not list(out.glob(".*"))
        seen.append(read_files(out) == expect_files(1))
        if not died:
            break
    assert at > 40 and not seen[0] and seen == sorted(seen)  # from one step on it is the new ones
    assert sum(seen) > 20


def test_killed_again_while_it_is_put_in_order(tmp_path):
    """At any step of finishing what was begun before, too."""
    whole = tmp_path / "whole"
    write_files(whole, 2)
    decided = next(at for at in count() if dies_then_whole(tmp_path / f"a{at}", whole, at))
    for at in count():
        out = shutil.copytree(tmp_path / f"a{decided}", tmp_path / f"b{at}")
        died = die_before_step(lambda out=out: recover_folder(out), at)
        recover_outputs("S", out)
        recover_folder(out)
        assert read_files(out) == expect_files(1) and not list(out.glob(".*"))
        if not died:
            break
    assert at > 20


def dies_then_whole(out: Path, old: Path, at: int) -> bool:
    shutil.copytree(old, out)
    die_before_step(lambda: publish(out, 1), at)
    return (out / ".S.whole").exists()


def test_what_a_killed_run_had_whole_is_there_for_the_next_one(tmp_path):
    """It is not made again, and not replaced unasked."""
    for at in count():
        out = tmp_path / str(at)
        out.mkdir()
        die_before_step(lambda out=out: publish(out, 1), at)
        if (out / ".S.whole").exists():
            break
    with pytest.raises(InputError, match="exists: choose another folder, or --overwrite"):
        check_outputs([out / f"S{suffix}" for suffix in SUFFIXES], out, overwrite=False)
    assert read_files(out) == expect_files(1)


def test_what_no_run_decided_on_is_not_put_in_place(tmp_path):
    """A folder of that name that says nothing, or names what lies elsewhere."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "x").write_text("kept")
    out = tmp_path / "out"
    for said in (None, "", "[]", '{"names": ["../kept/x"], "made": ["../kept/x"]}', '{"names": 1}'):
        (out / ".S.whole").mkdir(parents=True)
        if said is not None:
            (out / ".S.whole" / ".names").write_text(said)
        publish(out, 1)
        assert read_files(out) == expect_files(1) and (tmp_path / "kept" / "x").read_text() == "kept"


def test_a_failure_half_way_is_made_good(tmp_path, monkeypatch):
    """A rename that fails once, and a signal that comes between two of them."""
    replace = Path.replace
    for error in (OSError(5, "Input/output error"), KeyboardInterrupt()):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        (tmp_path / "out").mkdir()
        write_files(tmp_path / "out", 2)
        left = [3]

        def failing(path, target, left=left, error=error):
            left[0] -= 1
            if left[0] == 0:
                raise error
            return replace(path, target)

        monkeypatch.setattr(Path, "replace", failing)
        with pytest.raises((InputError, KeyboardInterrupt)):
            publish(tmp_path / "out", 1)
        assert read_files(tmp_path / "out") == expect_files(1)


def test_a_file_and_a_folder_take_each_others_place(tmp_path):
    (tmp_path / "S.json").mkdir()
    (tmp_path / "S.ome.zarr").write_text("a file")
    (tmp_path / "S.png").symlink_to(tmp_path / "nowhere")
    publish(tmp_path, 1)
    assert read_files(tmp_path) == expect_files(1) and not (tmp_path / "S.png").is_symlink()


def test_the_record_is_told_as_it_is_written(tmp_path):
    with open_partial_folder("S", tmp_path) as folder:
        record = finish(folder, {"a": 1}, [tmp_path / "S.json", tmp_path / "S.png"])
    assert json.loads((tmp_path / "S.json").read_text()) == record and record["a"] == 1


def test_outputs_that_belong_together_come_together(tmp_path):
    """Whatever a block makes: at no step of a kill are some of one run and some of another."""

    def work(out, generation):
        with together("r.json", out) as folder:
            (folder / "masks").mkdir()
            for name in ("masks/a.png", "table.csv", "r.json"):
                (folder / name).write_text(f"{generation}")

    names = {"masks/a.png", "table.csv", "r.json"}
    for at in count():
        out = tmp_path / str(at)
        work(out, 1)
        (out / "masks" / "of the user.png").write_text("kept")
        died = die_before_step(lambda out=out: work(out, 2), at)
        recover_folder(out)
        held = read_files(out)
        assert held.pop("masks/of the user.png") == "kept"
        assert held in (dict.fromkeys(names, "1"), dict.fromkeys(names, "2"))
        if not died:
            assert set(held.values()) == {"2"}
            break
    with pytest.raises(ZeroDivisionError), together("r.json", out) as folder:
        (folder / "r.json").write_text("3")
        raise ZeroDivisionError
    assert set(read_files(out).values()) == {"2", "kept"}


def test_small_files_of_a_cohort_are_on_the_disk_before_they_have_their_names(tmp_path, monkeypatch):
    told = []
    for name in ("fsync", "replace", "link"):
        plain = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, name=name, plain=plain, **k: (told.append(name), plain(*a, **k))[1]
        )
    place = open_storage(str(tmp_path))
    place.write("failures/a.json", b"{}")
    assert place.create("cohort.json", b"{}")
    assert told == ["fsync", "replace", "fsync", "link"]


# ------------------------------------------------------------------------------------------ kills by chance


@pytest.mark.long
def test_two_hundred_kills_by_chance(tmp_path):
    """A process that replaces outputs again and again is killed two hundred times: after each kill the
    outputs are those of one generation, the last that it told of or the one after."""
    out = tmp_path / "out"
    write_files(out, 0)
    rng, generation, met = random.Random(0), 0, {"half-made": 0, "half-placed": 0}
    for _ in range(200):
        process = subprocess.Popen(
            [sys.executable, generations.__file__, out, str(generation)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdout is not None
        process.stdout.readline()  # it is at work
        time.sleep(rng.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        told = [int(line) for line in process.stdout.read().split()]
        process.wait()
        last = max([generation + 1, *told])
        hidden = [path.name for path in out.glob(".*")]
        met["half-made"] += any(name.endswith(".partial") for name in hidden)
        met["half-placed"] += any(name.endswith(".whole") for name in hidden)
        recover_folder(out)
        held = read_files(out)
        generation = int(re.findall(r"\d+", held["S.json"])[0])
        assert (
            held == expect_files(generation) and not list(out.glob(".*")) and generation in (last, last + 1)
        )
    print(f"200 kills, {generation} generations: {met}")
    assert met["half-made"] > 10 and met["half-placed"] > 10
