"""Make every test strict: shapes and dtypes are checked at run time, rank promotion is an error.

No test reads the user's cache.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Before the modules are imported: every annotated function of theirs is then checked at each call.
_HOOK = install_import_hook(
    [
        "fseg_jax.numerics",
        "fseg_jax.codebook",
        "fseg_jax.methods",
        "fseg_jax.encoders",
        "fseg_jax.cam.global_features",
    ],
    "beartype.beartype",
)

# Compiled programs are shared by the processes of a run, and kept for the next. JAX does not write one in one
# step: where it is read half-written, it is compiled again, with a warning that no test is to see on stderr.
_PROGRAMS = Path(__file__).parents[1] / ".pytest_cache" / "programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("PYTHONWARNINGS", "ignore:Error reading persistent compilation cache entry:UserWarning")
# Several processes test at once: on an accelerator none may take all of its memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


MAPS = 30_000  # of the 65,530 parts of memory that Linux lets a process have; each program takes a few


@pytest.fixture(scope="module", autouse=True)
def room_for_programs() -> Iterator[None]:
    """Compiled programs are forgotten before there are too many, of which XLA would die."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_text().splitlines()) > MAPS:
        jax.clear_caches()


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
