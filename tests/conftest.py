"""Strictness for every test: shapes and dtypes checked at run time, no silent rank promotion, no user's
cache."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Before the modules are imported: every annotated function of theirs is then checked at each call.
_HOOK = install_import_hook(
    [
        "fseg_jax.nmf",
        "fseg_jax.nnls",
        "fseg_jax.kmeans",
        "fseg_jax.kmeans_pass",
        "fseg_jax.kmeans_stream",
        "fseg_jax.codebook",
        "fseg_jax.methods",
        "fseg_jax.encoders",
    ],
    "beartype.beartype",
)

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real slides, tiles and codebooks that ``FSEG_DATA`` names; skips without it."""
    folder = os.environ.get("FSEG_DATA")
    if not folder:
        pytest.skip("FSEG_DATA is not set: it names a folder with slides/, codebooks/ …")
    if not Path(folder).is_dir():
        pytest.skip(f"FSEG_DATA={folder}: no such folder")
    return Path(folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("FSEG_CACHE", str(tmp_path_factory.mktemp("cache")))
    handlers = logging.getLogger().handlers[:]
    yield
    logging.getLogger().handlers[:] = handlers  # the command line's write to a stream that a test has closed
