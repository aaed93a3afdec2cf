"""Tiny encoders, a stand-in hub that publishes them, and a machine that reaches no other hub."""

import logging
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file
from stand_in_hub import StandInHub, serve
from tiny import CNN, GATED, TINY, VIT, make_vit_tensors

from fseg_jax.encoders.catalog import published as catalog


@pytest.fixture
def tiny_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in (TINY, GATED, CNN):
        monkeypatch.setitem(catalog.CATALOG, row.name, row)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Hide tokens and the hub's cache, and make the hub unreachable."""
    home = tmp_path_factory.mktemp("hf")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")


@pytest.fixture
def restored_logger() -> Iterator[None]:
    """Restore the root logger after the command line has set it up."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level


@pytest.fixture
def checkpoint_file(tmp_path: Path) -> Path:
    path = tmp_path / "published.safetensors"
    save_file(make_vit_tensors(VIT), path)
    return path


@pytest.fixture
def lab(checkpoint_file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """Serve a hub with two encoders, one of them gated."""
    model = {"model.safetensors": checkpoint_file.read_bytes()}
    hub = StandInHub(
        files={"lab/tiny": dict(model), "lab/locked": dict(model)},
        gated={"lab/locked"},
        members={"hf_member"},
        tokens={"hf_stranger"},
    )
    with serve(hub):
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def images() -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).integers(0, 256, (2, 32, 48, 3), np.uint8))
