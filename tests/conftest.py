"""The setting of every test: shapes and dtypes are checked, rank promotion is an error, caches are empty."""

import gc
import logging
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# The hook comes before the import of these modules; it checks their annotated functions at each call.
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

# The processes of a run, and later runs, share compiled programs. JAX does not write a program in one step; a
# process that reads half of one compiles it again and warns, and tests compare stderr: hence the filter.
_PROGRAMS = Path(__file__).parents[1] / ".pytest_cache" / "programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("PYTHONWARNINGS", "ignore:Error reading persistent compilation cache entry:UserWarning")
# Most of the suite's time is compiling programs that run once. XLA compiles them in a third of it when asked
# not to optimize; `XLA_FLAGS= python -m pytest` tests what users run.
_FLAGS = "--xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):  # later ones no longer know it, and end the process over it
    _FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", _FLAGS)
# Tests run in several processes, which share an accelerator's memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


ON_DEVICES = ("numerics", "methods", "encoders")  # folders of tests of what runs on an accelerator


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that say something new on an accelerator."""
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in ON_DEVICES:
            item.add_marker(pytest.mark.device)


def pytest_collection_finish() -> None:
    """Collect garbage seldom: looking through all that is imported takes a tenth of the tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


MAX_MAPS = 30_000  # memory maps; Linux allows a process 65,530, and a compiled program takes a few


@pytest.fixture(scope="module", autouse=True)
def clear_programs() -> Iterator[None]:
    """Forget compiled programs before XLA runs out of memory maps and dies."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_text().splitlines()) > MAX_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session", autouse=True)
def small_pictures() -> Iterator[int]:
    """Do not enlarge small slides in their pictures, whose drawing would take most of such a slide's time.

    Yields how much they are enlarged outside of the tests, and in processes that the tests start.
    """
    from fseg_jax.outputs import figures

    usual = figures._MAX_ENLARGEMENT
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "_MAX_ENLARGEMENT", 1)
        yield usual


@pytest.fixture(scope="session")
def data() -> Path:
    """Return the folder of real slides, tiles and codebooks that ``FSEG_DATA`` names; skip without it."""
    folder = os.environ.get("FSEG_DATA")
    if not folder:
        pytest.skip("FSEG_DATA is not set: it names a folder with slides/, codebooks/ …")
    if not Path(folder).is_dir():
        pytest.skip(f"FSEG_DATA={folder}: no such folder")
    return Path(folder)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give every test an empty cache in place of the user's, and restore the loggers."""
    monkeypatch.setenv("FSEG_CACHE", str(tmp_path_factory.mktemp("cache")))
    handlers = logging.getLogger().handlers[:]
    levels = {name: logging.getLogger(name).level for name in ("", "fseg_jax")}
    yield
    logging.getLogger().handlers[:] = handlers  # those of the command line write to a closed stream
    for name, level in levels.items():  # --quiet of one test is not the next one's
        logging.getLogger(name).setLevel(level)
