"""Converted weights in the cache: made once, checked, made again; and the memory that loading takes."""

import logging
import os
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file
from tiny import (
    GATED,
    TINY,
    VIT,
    WIDE_VIT,
    get_error_line,
    list_cache_files,
    make_vit_tensors,
    raise_disk_full,
    refuse_call,
)

from fseg_jax.encoders.catalog import published as catalog
from fseg_jax.encoders.load import load_encoder
from fseg_jax.encoders.weights import cache, hub
from fseg_jax.encoders.weights.cache import check_status
from fseg_jax.encoders.weights.checkpoint import hash_file
from fseg_jax.encoders.weights.convert import convert_file
from fseg_jax.files.downloads import find_cache_folder

pytestmark = pytest.mark.usefixtures("tiny_rows", "no_hub")


def test_a_checkpoint_is_converted_once(checkpoint_file, monkeypatch):
    load_encoder("tiny", weights=checkpoint_file)
    assert list_cache_files() == [f"{hash_file(checkpoint_file)[:16]}-float32.safetensors"]
    monkeypatch.setattr("fseg_jax.encoders.weights.cache.convert_file", refuse_call)
    load_encoder("tiny", weights=checkpoint_file)


def test_a_file_of_ours_is_read_as_it_is(checkpoint_file, tmp_path, images, monkeypatch):
    ours = tmp_path / "ours"
    convert_file(checkpoint_file, ours, VIT, name="tiny")
    monkeypatch.setattr("fseg_jax.encoders.weights.cache.convert_file", refuse_call)
    tiny = load_encoder("tiny", weights=str(ours))
    assert list_cache_files() == [] and tiny.card.weights_hash == hash_file(checkpoint_file)
    monkeypatch.undo()


def test_a_file_of_ours_for_another_encoder_is_refused(checkpoint_file, tmp_path):
    ours = tmp_path / "ours.safetensors"
    convert_file(checkpoint_file, ours, VIT, name="uni")
    assert "of uni, not of tiny" in get_error_line(lambda: load_encoder("tiny", weights=ours))


def test_a_truncated_file_of_ours_is_refused(checkpoint_file, tmp_path):
    ours = tmp_path / "ours.safetensors"
    convert_file(checkpoint_file, ours, VIT, name="tiny")
    ours.write_bytes(ours.read_bytes()[:-100])
    assert "damaged or cut short" in get_error_line(lambda: load_encoder("tiny", weights=ours))


def test_first_use_fetches_and_later_use_needs_no_network(lab, checkpoint_file, images, caplog, monkeypatch):
    with caplog.at_level(logging.WARNING):
        first = load_encoder("tiny")
        load_encoder("tiny")
        load_encoder("tiny", dtype="bfloat16")
    licence = [record.getMessage() for record in caplog.records if "licence" in record.getMessage()]
    assert licence == ["tiny: licence CC-BY-4.0, see https://huggingface.co/lab/tiny. Cite Nobody, 2024"]
    assert len(lab.list_downloads()) == 1
    assert list_cache_files() == ["published-bfloat16.safetensors", "published-float32.safetensors"]
    assert first.card.weights_hash == hash_file(checkpoint_file)

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert bool((load_encoder("tiny")(images) == first(images)).all())
    # What was downloaded by whatever program serves too.
    for path in (find_cache_folder() / "encoders").rglob("*.safetensors"):
        path.unlink()
    assert load_encoder("tiny").card == first.card


def test_a_user_s_file_does_not_pass_for_the_published_one(checkpoint_file):
    load_encoder("tiny", weights=checkpoint_file)
    get_error_line(lambda: load_encoder("tiny"))


def test_a_damaged_cached_file_is_made_again(lab, images, caplog):
    expected = load_encoder("tiny")(images)
    path = find_cache_folder() / "encoders" / "tiny" / "published-float32.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-100], whole[:50], b"", whole[:-1] + bytes([whole[-1] ^ 1]), b"\xff" * len(whole)):
        path.write_bytes(damaged)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert bool((load_encoder("tiny")(images) == expected).all())
        assert "made again" in caplog.text and path.read_bytes() == whole
    assert len(lab.list_downloads()) == 1


def test_a_disk_that_fills_up_leaves_nothing_behind(lab, checkpoint_file, monkeypatch):
    monkeypatch.setattr("fseg_jax.files.atomic.os.fsync", raise_disk_full)
    assert "No space left on device" in get_error_line(lambda: load_encoder("tiny", weights=checkpoint_file))
    assert "No space left on device" in get_error_line(lambda: load_encoder("tiny"))
    assert list_cache_files() == []


def test_a_disk_without_room_is_found_out_before_the_download(lab, monkeypatch):
    usage = cache.shutil.disk_usage("/")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert "FSEG_CACHE" in get_error_line(lambda: load_encoder("tiny"))
    assert lab.requests == [] and list_cache_files() == []


def test_a_cache_that_cannot_be_written_is_one_line(lab, checkpoint_file, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FSEG_CACHE", str(tmp_path / "file"))
    assert "FSEG_CACHE" in get_error_line(lambda: load_encoder("tiny", weights=checkpoint_file))
    monkeypatch.setenv("FSEG_CACHE", str(tmp_path / "read-only"))
    monkeypatch.setattr(cache.os, "access", lambda *_: False)
    assert "FSEG_CACHE" in get_error_line(lambda: load_encoder("tiny"))
    assert lab.requests == []


def test_writers_at_the_same_time_do_not_harm_each_other(checkpoint_file, images):
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: load_encoder("tiny", weights=checkpoint_file), range(4)))
    assert len({each.card for each in loaded}) == 1 and len(list_cache_files()) == 1
    assert len({np.asarray(each(images)).tobytes() for each in loaded}) == 1


def test_what_a_killed_process_left_is_removed_a_day_later(checkpoint_file):
    folder = find_cache_folder() / "encoders" / "tiny"
    folder.mkdir(parents=True)
    old, new = folder / ".published-float32.safetensors.abc", folder / ".published-float32.safetensors.def"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    load_encoder("tiny", weights=checkpoint_file)
    assert not old.exists() and new.exists()


def test_status_says_whether_weights_can_be_had(lab, monkeypatch):
    assert check_status(TINY).state == "reachable"
    assert check_status(GATED).state == "gated: access not granted"
    assert "https://example.org/locked" in check_status(GATED).detail
    monkeypatch.setenv("HF_TOKEN", "hf_member")
    assert check_status(GATED).state == "gated: access granted"
    monkeypatch.setenv("HF_TOKEN", "hf_mistyped")
    assert "rejects the token" in check_status(GATED).detail
    monkeypatch.delenv("HF_TOKEN")
    assert check_status(replace(TINY, files=("none.bin",))).state == "missing"
    assert check_status(replace(TINY, repo="lab/none")).state == "missing"
    assert lab.list_downloads() == []
    hub.fetch_checkpoint(TINY)
    assert check_status(TINY).state == "cached" and "converted when" in check_status(TINY).detail
    load_encoder("tiny")
    assert check_status(TINY).state == "cached" and "published-float32" in check_status(TINY).detail
    assert [(file.name, file.size > 0) for file in cache.list_cached()] == [("tiny", True)]
    lab.error_status = 500
    assert check_status(GATED).state == "offline"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert check_status(TINY).state == "cached" and check_status(GATED).state == "offline"


def test_weights_pass_through_python_one_at_a_time(tmp_path, monkeypatch):
    config = replace(VIT, dim=256, depth=6, heads=4, mlp_width=1024)
    row = replace(TINY, name="medium", config=config, layer="blocks.5", channels=256)
    monkeypatch.setitem(catalog.CATALOG, "medium", row)
    path = tmp_path / "medium.safetensors"
    save_file(make_vit_tensors(config), path)
    for _ in range(2):  # converted; then from the cache
        tracemalloc.start()
        medium = load_encoder("medium", weights=path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # NumPy's memory is traced, JAX's is not: all of the tensors at once would be the whole file.
        assert peak < path.stat().st_size / 2
    assert sum(array.nbytes for array in medium.weights) > 0.99 * path.stat().st_size


# Prints the most memory that loading took beyond what the program had, in bytes.
MEASURE = """
import re, sys
from pathlib import Path
import jax, numpy as np
from fseg_jax.encoders.catalog import published as catalog
from fseg_jax.encoders.load import load_encoder
import fseg_jax.encoders.weights.convert
from tiny import WIDE
jax.block_until_ready(jax.numpy.ones(8) + 1)
catalog.CATALOG["wide"] = WIDE

def kilobytes(name):
    return int(re.search(name + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

before = kilobytes("VmRSS")
encoder = load_encoder("wide", weights=sys.argv[1], dtype=sys.argv[2])
jax.block_until_ready(encoder.weights)
print((kilobytes("VmHWM") - before) * 1024)
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
@pytest.mark.parametrize("source", ["float32", "bfloat16"])
def test_a_large_network_loads_in_the_memory_of_its_file(source, tmp_path):
    import ml_dtypes

    path = tmp_path / "wide.safetensors"
    save_file(
        make_vit_tensors(WIDE_VIT, dtype={"bfloat16": ml_dtypes.bfloat16, "float32": np.float32}[source]),
        path,
    )
    folder = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{folder.parent / 'shared'}"}
    taken = []
    for _ in range(2):  # converted; then from the cache
        run = subprocess.run(
            [sys.executable, "-c", MEASURE, str(path), "bfloat16"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        taken.append(int(run.stdout))
    (ours,) = (find_cache_folder() / "encoders" / "wide").glob("*.safetensors")
    assert taken[0] <= 1.3 * path.stat().st_size, f"{taken[0] / path.stat().st_size:.2f} × the published file"
    assert taken[1] <= 1.3 * ours.stat().st_size, f"{taken[1] / ours.stat().st_size:.2f} × the converted file"
