"""A hub with tiny encoders, and the tests' machine without any other."""

import logging
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file
from stand_in import StandIn, running
from tiny import CNN, GATED, TINY, VIT, make_vit_tensors

from fseg_jax.encoders.catalog import published as catalog


@pytest.fixture
def tiny_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in (TINY, GATED, CNN):
        monkeypatch.setitem(catalog.CATALOG, row.name, row)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Without a token, a network or anything in the hub's cache."""
    home = tmp_path_factory.mktemp("hf")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")


@pytest.fixture
def log() -> Iterator[None]:
    """Puts the root logger back as it was before the command line set it up."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level


@pytest.fixture
def published(tmp_path: Path) -> Path:
    path = tmp_path / "published.safetensors"
    save_file(make_vit_tensors(VIT), path)
    return path


@pytest.fixture
def lab(published: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A hub that holds both encoders, one of them behind a gate."""
    model = {"model.safetensors": published.read_bytes()}
    stand_in = StandIn(
        files={"lab/tiny": dict(model), "lab/locked": dict(model)},
        gated={"lab/locked"},
        members={"hf_member"},
        tokens={"hf_stranger"},
    )
    with running(stand_in):
        monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
        yield stand_in


@pytest.fixture
def images() -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).integers(0, 256, (2, 32, 48, 3), np.uint8))
