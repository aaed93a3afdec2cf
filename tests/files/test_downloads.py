"""Files fetched by their address, from a server of our own."""

import errno
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pooch
import pytest
from stand_in_hub import StandInHub, serve

from fseg_jax import cli
from fseg_jax.errors import InputError
from fseg_jax.files import downloads

pytestmark = pytest.mark.smoke

SLIDE = b"not a slide, but the bytes that are asked for" * 100


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    with serve(StandInHub(files={"slides": {"small.svs": SLIDE}})) as hub:
        yield hub


def address(hub: StandInHub) -> str:
    return f"{hub.url}/slides/resolve/main/small.svs"


def fetch(hub: StandInHub, sha256: str | None) -> Path:
    folder = downloads.find_cache_folder() / "slides"
    return downloads.fetch(address(hub), folder, sha256=sha256, otherwise="do without it")


def left() -> list[Path]:
    return [path for path in downloads.find_cache_folder().rglob("*") if path.is_file()]


def test_the_cache_is_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("FSEG_CACHE", str(tmp_path))
    assert downloads.find_cache_folder() == tmp_path
    monkeypatch.delenv("FSEG_CACHE")
    assert downloads.find_cache_folder() == Path(pooch.os_cache("fseg_jax"))


def test_a_file_is_fetched_once_and_needs_no_network_afterwards(hub):
    digest = hashlib.sha256(SLIDE).hexdigest()
    path = fetch(hub, digest)
    assert path.read_bytes() == SLIDE
    hub.error_status = 500
    assert fetch(hub, digest) == path
    assert len(hub.list_downloads()) == 1


def test_a_file_of_another_hash_is_one_line_and_nothing_kept(hub):
    with pytest.raises(InputError, match="SHA-256") as caught:
        fetch(hub, "0" * 64)
    assert "\n" not in str(caught.value)
    assert left() == []


@pytest.mark.parametrize("code", [404, 500])
def test_a_server_that_refuses_is_one_line_and_nothing_kept(hub, code):
    hub.error_status = code
    with pytest.raises(InputError, match=r"cannot be fetched.*do without it") as caught:
        fetch(hub, None)
    assert "\n" not in str(caught.value)
    assert left() == []


def test_a_transfer_cut_short_is_one_line_and_nothing_kept(hub):
    hub.truncates = True
    with pytest.raises(InputError, match="cannot be fetched"):
        fetch(hub, None)
    assert left() == []


def test_no_network_is_one_line_and_nothing_kept():
    with pytest.raises(InputError, match="cannot be fetched") as caught:
        downloads.fetch_test_slide("http://127.0.0.1:1/CMU-1-Small-Region.svs")
    assert "without --slide" in str(caught.value) and "\n" not in str(caught.value)
    assert left() == []


def test_a_full_disk_is_one_line_and_nothing_kept(hub, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", full)
    with pytest.raises(InputError, match=r"No space left on device.*FSEG_CACHE"):
        fetch(hub, None)
    assert left() == []


def test_the_demo_without_a_network_exits_with_2(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(downloads, "TEST_SLIDE_URL", "http://127.0.0.1:1/CMU-1-Small-Region.svs")
    monkeypatch.setattr(downloads.fetch_test_slide, "__defaults__", (downloads.TEST_SLIDE_URL,))
    with pytest.raises(SystemExit) as caught:
        cli.main(["demo", "--slide", "-o", str(tmp_path / "out")])
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("fseg: error: http://127.0.0.1:1")
