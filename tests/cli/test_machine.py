"""What the doctor says of this machine, and of ones with something missing."""

import builtins
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from stand_in_hub import StandInHub, serve

from fseg_jax.cli import machine
from fseg_jax.cli.machine import Check
from fseg_jax.encoders import classical
from fseg_jax.encoders.catalog import published as catalog
from fseg_jax.encoders.kernels import convolution, onednn, onednn_library
from fseg_jax.encoders.kernels import processor as processors
from fseg_jax.encoders.kernels.processor import Processor
from fseg_jax.encoders.weights import hub

GATED = ("uni", "virchow")
REQUIRED = ["Python", "JAX", "devices", "OpenSlide", "TIFF codecs", "TensorStore", "main job"]


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a token or a network."""
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """A hub with two gated encoders."""
    rows = {name: catalog.CATALOG[name] for name in (*GATED, "resnet18")}
    monkeypatch.setattr(catalog, "CATALOG", rows)
    stand_in = StandInHub(
        files={rows[name].repo: {file: b"" for file in rows[name].files} for name in GATED},
        gated={rows[name].repo for name in GATED},
        members={"hf_member"},
    )
    with serve(stand_in):
        monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
        yield stand_in


def named(found: list[Check], name: str) -> Check:
    (check,) = [check for check in found if check.name == name]
    return check


def test_this_machine_can_do_the_main_job():
    found = machine.check_machine()
    failing = [check for check in found if check.required and not check.ok]
    assert [check.name for check in found if check.required] == REQUIRED
    assert failing == [] and machine.choose_exit_code(found) == 0
    assert all(check.message and "\n" not in check.message for check in found)
    assert all(check.remedy for check in found if not check.ok)
    assert named(found, "processor").ok and "float" in named(found, "processor").message
    assert not {check.name for check in found} & set(GATED)
    assert not named(found, "hub").ok and not named(found, "token").ok


def test_extras_that_are_not_here_are_said(monkeypatch):
    """But those of an accelerator, which another line is about, and of who works on the package."""
    stated = [
        "jax>=0.10",
        "wsidicom>=0.36; extra == 'dicom'",
        'obstore>=0.8; extra == "remote"',
        'boto3>=1.35; extra == "remote"',
        'jax[cuda12]; extra == "cuda12"',
        'onednn-cpu-gomp>=2023.2; (platform_system == "Linux") and extra == "onednn"',
        'ruff; extra == "lint"',
    ]
    monkeypatch.setattr(machine, "requires", lambda name: stated)
    monkeypatch.setattr(machine, "find_version", lambda name: "unknown" if name == "boto3" else "1.0")
    assert machine._extras() == (True, "dicom; not here, pip install 'fseg-jax[remote]'")
    monkeypatch.setattr(machine, "requires", lambda name: [])
    assert machine._extras() == (True, "none")


NARROW = Processor("znver4", frozenset({"avx2", "avx512f", "avx512bf16"}))
WIDE = Processor("znver3", frozenset({"avx2", "fma"}))


@pytest.mark.parametrize(
    "kind, precision, path",
    [
        (
            NARROW,
            "AVX-512-BF16: fast in bfloat16; --dtype bfloat16 takes less time",
            "each in its own precision",
        ),
        (WIDE, "AVX2: fast in float32, the default; bfloat16 takes longer", "all in float32"),
    ],
)
def test_what_the_processor_is_fast_at_and_how_it_convolves_is_said(monkeypatch, kind, precision, path):
    monkeypatch.setattr(processors, "detect_processor", lambda: kind)
    monkeypatch.setattr(convolution, "detect_processor", lambda: kind)
    assert machine._processor() == (True, precision)
    monkeypatch.setattr(onednn_library, "load_library", lambda: SimpleNamespace(version="3.2.0"))
    monkeypatch.setattr(onednn, "supports", lambda *_: True)
    assert machine._onednn() == (True, f"3.2.0, for convolutions on the CPU, {path}")
    monkeypatch.setattr(onednn, "supports", lambda *_: False)
    assert machine._onednn().message == "3.2.0, which has no convolution for this processor: XLA's are taken"


def test_a_processor_that_xla_does_not_describe_is_said(monkeypatch):
    monkeypatch.setattr(processors, "detect_processor", lambda: Processor("", frozenset()))
    assert machine._processor() == (
        True,
        "of a kind that XLA does not name: float32, the default, is the one to take",
    )


def test_a_line_a_check_and_a_remedy_under_a_failure():
    found = [
        Check("a", True, True, "fine"),
        Check("bc", False, False, "gone", "bring it back"),
        Check("d", False, True, "broken", "mend it"),
    ]
    assert machine.format_table(found).splitlines() == [
        "ok    a   fine",
        "no    bc  gone",
        "          → bring it back",
        "FAIL  d   broken",
        "          → mend it",
    ]
    assert machine.choose_exit_code(found) == 1 and machine.choose_exit_code(found[:2]) == 0


def test_each_gate_is_asked_for(lab, monkeypatch):
    found = machine.check_machine()
    assert named(found, "hub").ok
    for name in GATED:
        check = named(found, name)
        assert not check.ok and not check.required and catalog.CATALOG[name].page in check.remedy
    monkeypatch.setenv("HF_TOKEN", "hf_member")

    del lab.files[catalog.CATALOG["virchow"].repo]
    found = machine.check_machine()
    assert named(found, "uni") == Check("uni", True, False, "gated: access granted")
    assert named(found, "virchow").message == "missing"
    assert named(found, "token").ok and "hf_member" not in machine.format_table(found)
    assert lab.list_downloads() == []


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        assert not hub.is_reachable(timeout=0.2)
        assert hub.check_access(catalog.CATALOG["uni"], timeout=0.2).state == "offline"
        assert time.monotonic() - start < 3


def test_nothing_is_asked_where_the_hub_is_switched_off(lab, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not named(machine.check_machine(), "hub").ok
    assert lab.requests == []


def test_a_missing_library_fails_with_its_remedy(monkeypatch):
    original = builtins.__import__

    def without_openslide(name, *arguments, **keywords):
        if name == "openslide":
            raise ModuleNotFoundError("Couldn't locate OpenSlide shared library.\nTry installing it")
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_openslide)
    found = machine.check_machine()
    check = named(found, "OpenSlide")
    assert not check.ok and "openslide-bin" in check.remedy
    assert check.message.endswith("OpenSlide shared library. Try installing it")
    assert machine.choose_exit_code(found) == 1


def test_codecs_are_tried_and_not_only_imported(monkeypatch):
    import imagecodecs

    monkeypatch.setattr(imagecodecs, "jpeg2k_decode", lambda data: 0 * imagecodecs.jpeg_decode(data))
    assert not named(machine.check_machine(), "TIFF codecs").ok
    monkeypatch.setattr(imagecodecs, "jpeg2k_decode", lambda _: imagecodecs.jpeg_decode(b""))
    assert not named(machine.check_machine(), "TIFF codecs").ok


def test_the_main_job_is_tried(monkeypatch):
    def broken():
        raise MemoryError

    monkeypatch.setattr(classical, "classical", broken)
    found = machine.check_machine()
    assert not named(found, "main job").ok and named(found, "main job").message == "MemoryError"
    assert machine.choose_exit_code(found) == 1


def test_a_gpu_that_jax_does_not_see_has_a_remedy(monkeypatch):
    import jax

    if jax.default_backend() != "cpu":
        pytest.skip("JAX sees a GPU here")
    monkeypatch.setattr(machine.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    check = named(machine.check_machine(), "GPU")
    assert not check.ok and not check.required and "cuda" in check.remedy


def test_a_cache_that_cannot_be_written_and_a_full_disk_are_said(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FSEG_CACHE", str(tmp_path / "file" / "cache"))
    usage = machine.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    found = machine.check_machine()
    assert not named(found, "cache").ok and "FSEG_CACHE" in named(found, "cache").remedy
    assert not named(found, "disk, cache").ok and not named(found, "disk, here").ok
    assert machine.choose_exit_code(found) == 0


def test_what_is_cached_is_listed(monkeypatch, tmp_path):
    monkeypatch.setenv("FSEG_CACHE", str(tmp_path / "not there yet"))
    found = machine.check_machine()
    assert named(found, "cached weights").message == "none yet" and named(found, "cache").ok
    assert not (tmp_path / "not there yet").exists()
    file = tmp_path / "not there yet" / "encoders" / "uni" / "published-bfloat16.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(2_000_000))
    assert "uni published-bfloat16 2 MB" in named(machine.check_machine(), "cached weights").message
