"""How the benchmarks measure: both sides in turn, medians, the first call apart, and what the machine is."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

RESULTS = Path(__file__).parent / "results"
REPEATS = 5
OURS = "fseg_jax"  # what the name of each of our sides begins with
PACKAGES = (
    "fseg-jax",
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "onednn-cpu-gomp",
    "torch",
    "timm",
    "scikit-learn",
    "faiss-cpu",
    "torchnmf",
    "optax",
    "ott-jax",
    "segf",
    "openslide-python",
)


class Timing(NamedTuple):
    """Seconds: the median of the repeats, their extremes, and the first call, which compiles."""

    median: float
    fastest: float
    slowest: float
    first: float

    @classmethod
    def of(cls, times: Sequence[float], first: float) -> "Timing":
        return cls(float(np.median(times)), min(times), max(times), first)


def interleaved(sides: Mapping[str, Callable[[], Any]], repeats: int = REPEATS) -> dict[str, Timing]:
    """Time every side once, and then round after round, so that what slows the machine slows all of them."""
    first = {name: seconds(run) for name, run in sides.items()}
    rounds = [{name: seconds(run) for name, run in sides.items()} for _ in range(repeats)]
    return {name: Timing.of([one[name] for one in rounds], first[name]) for name in sides}


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """What a call takes until what it returns is ready, and that."""
    begin = time.perf_counter()
    result = jax.block_until_ready(run())
    return time.perf_counter() - begin, result


def seconds(run: Callable[[], Any]) -> float:
    """What a call takes until what it returns is ready."""
    return timed(run)[0]


def cores() -> int:
    """How many this process may use: as many threads get all peers."""
    return len(os.sched_getaffinity(0))


def row(
    what: str,
    unit: str,
    work: Mapping[str, float] | float,
    timings: Mapping[str, Timing],
    *,
    target: float | None = None,
    limit: float | None = None,
    limited_by: str = "",
    unequal: Sequence[str] = (),
    **more: Any,
) -> dict[str, Any]:
    """Print a line of a result and return it.

    The line holds ``work`` a call (of each side, or of all) over its time, our fastest side over the fastest
    of the peers, and the rate that the machine would allow at most. ``unequal`` are the sides that did not
    reach the same answer: they are shown, but not raced.
    """
    each = dict.fromkeys(timings, work) if isinstance(work, int | float) else dict(work)
    rates = {name: each[name] / timing.median for name, timing in timings.items()}
    ours = max((name for name in rates if name.startswith(OURS)), key=rates.__getitem__)
    peers = [name for name in rates if not name.startswith(OURS) and name not in unequal]
    peer = max(peers, key=rates.__getitem__, default=None)
    ratio = _short(rates[ours] / rates[peer]) if peer else None
    told = ", ".join(f"{name} {_short(rate):g}" for name, rate in rates.items())
    print(f"{what}: {told} {unit}" + (f"; {ratio:g} × {peer}" if peer else ""), flush=True)
    return {
        "what": what,
        "unit": unit,
        "rates": {name: _short(rate) for name, rate in rates.items()},
        "seconds": {name: [_short(value) for value in timing] for name, timing in timings.items()},
        "ours": ours,
        "peer": peer,
        "ratio": ratio,
        "target": target,
        "limit": limit and _short(limit),
        "limited_by": limited_by,
        "unequal": list(unequal),
        "of_limit": _short(rates[ours] / limit) if limit else None,
        **more,
    }


def save(question: str, rows: list[dict[str, Any]], *, tiny: bool, **more: Any) -> dict[str, Any]:
    """Keep a result, unless it is of tiny sizes, as ``results/speed_QUESTION.json``."""
    result = {"question": question, **machine(), **more, "rows": rows}
    if not tiny:
        text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
        (RESULTS / f"speed_{question}.json").write_text(text, encoding="utf-8")
    return result


def _commit() -> str:
    """The code's; what the benchmarks write themselves does not count as a change of it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=RESULTS, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    written = (":(top)", ":(top,exclude)benchmarks/results", ":(top,exclude)benchmarks/README.md")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *written)
    return git("describe", "--always") + ("-dirty" if changed else "")


def machine() -> dict[str, Any]:
    """What was measured on, with what, and when."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "device": jax.devices()[0].device_kind,
        "processor": _processor(),
        "cores": cores(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@cache
def matrix_rate(dtype: str) -> float:
    """Measure the operations a second of a large product, the limit of what is bound by products.

    Operands have the dtype; sums are float32.
    """
    side = 1536 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((side, side), dtype)
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    jax.block_until_ready(product(a))
    return 2 * side**3 / min(seconds(lambda: product(a)) for _ in range(7))


@cache
def memory_rate() -> float:
    """Bytes a second that are read and written by copying what no cache holds."""
    a = jnp.ones((64 if jax.default_backend() == "cpu" else 1024) * 1024 * 1024, jnp.float32)
    copy = jax.jit(lambda a: a + 1)
    jax.block_until_ready(copy(a))
    return 2 * a.nbytes / min(seconds(lambda: copy(a)) for _ in range(5))


def absent(package: str) -> bool:
    """Test whether a peer is missing; then it is left out, and the line that installs it is printed."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        print(f"{package} is not installed: left out; pip install {package}", flush=True)
        return True
    return False


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _short(value: float) -> float:
    return float(f"{value:.4g}")
