"""Timing of the benchmarks' sides in turn, lines of results, and the description of the machine."""

import json
import os
import platform
import subprocess
import sys
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
OURS = "fseg_jax"  # the names of our sides begin with this
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
    """The seconds of a call.

    Attributes:
        median: of the repeats.
        fastest: of the repeats.
        slowest: of the repeats.
        first: of the first call, which compiles.
    """

    median: float
    fastest: float
    slowest: float
    first: float

    @classmethod
    def from_repeats(cls, times: Sequence[float], first: float) -> "Timing":
        """Summarise the seconds of repeated calls."""
        return cls(float(np.median(times)), min(times), max(times), first)


def time_interleaved(sides: Mapping[str, Callable[[], Any]], repeats: int = REPEATS) -> dict[str, Timing]:
    """Time every side once, then all sides in each round, so that load on the machine slows all of them."""
    first = {name: measure_seconds(run) for name, run in sides.items()}
    rounds = [{name: measure_seconds(run) for name, run in sides.items()} for _ in range(repeats)]
    return {name: Timing.from_repeats([one[name] for one in rounds], first[name]) for name in sides}


def time_call(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds until the result of a call is ready, and the result."""
    begin = time.perf_counter()
    result = jax.block_until_ready(run())
    return time.perf_counter() - begin, result


def measure_seconds(run: Callable[[], Any]) -> float:
    """Return the seconds until the result of a call is ready."""
    return time_call(run)[0]


class Cost(NamedTuple):
    """What a command took, its workers included.

    Attributes:
        wall: seconds from its start to its end.
        cpu: seconds of all cores.
        peak_mb: resident memory, of the largest of its processes.
    """

    wall: float
    cpu: float
    peak_mb: float


def measure_command(arguments: Sequence[str], checkout: Path | None = None) -> Cost:
    """Run an ``fseg`` command, of this checkout or another, and measure it."""
    environment = os.environ if checkout is None else {**os.environ, "PYTHONPATH": str(checkout)}
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "fseg_jax", *arguments],
        stdout=subprocess.DEVNULL,
        env=environment,
        cwd=checkout,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"fseg {' '.join(arguments)} failed")
    unit = 1 if sys.platform == "darwin" else 1024
    wall = time.perf_counter() - begin
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6)


def count_cores() -> int:
    """Count the cores that this process may use; every peer gets as many threads."""
    return len(os.sched_getaffinity(0))


def report_row(
    title: str,
    unit: str,
    work: Mapping[str, float] | float,
    timings: Mapping[str, Timing],
    *,
    target: float | None = None,
    limit: float | None = None,
    limited_by: str = "",
    unequal: Sequence[str] = (),
    **extra: Any,
) -> dict[str, Any]:
    """Print a row of a result and return it.

    Args:
        title: what was timed.
        unit: of the rates.
        work: units of work of a call, one number for all sides or one for each.
        timings: by the name of the side; the names of our sides begin with ``OURS``.
        target: ratio of our fastest side to the fastest peer that is to be reached.
        limit: highest rate that the machine allows.
        limited_by: what sets the limit.
        unequal: peers that did not reach the same answer: shown, but left out of the ratio.
        extra: further entries of the row.
    """
    each = dict.fromkeys(timings, work) if isinstance(work, int | float) else dict(work)
    rates = {name: each[name] / timing.median for name, timing in timings.items()}
    ours = max((name for name in rates if name.startswith(OURS)), key=rates.__getitem__)
    peers = [name for name in rates if not name.startswith(OURS) and name not in unequal]
    peer = max(peers, key=rates.__getitem__, default=None)
    ratio = _round(rates[ours] / rates[peer]) if peer else None
    summary = ", ".join(f"{name} {_round(rate):g}" for name, rate in rates.items())
    print(f"{title}: {summary} {unit}" + (f"; {ratio:g} × {peer}" if peer else ""), flush=True)
    return {
        "what": title,
        "unit": unit,
        "rates": {name: _round(rate) for name, rate in rates.items()},
        "seconds": {name: [_round(value) for value in timing] for name, timing in timings.items()},
        "ours": ours,
        "peer": peer,
        "ratio": ratio,
        "target": target,
        "limit": limit and _round(limit),
        "limited_by": limited_by,
        "unequal": list(unequal),
        "of_limit": _round(rates[ours] / limit) if limit else None,
        **extra,
    }


def save_result(question: str, rows: list[dict[str, Any]], *, tiny: bool, **extra: Any) -> dict[str, Any]:
    """Return a result, and write it to ``results/speed_QUESTION.json`` unless its sizes are tiny.

    On an accelerator it is ``results/device_QUESTION.json``.
    """
    result = {"question": question, **describe_machine(), **extra, "rows": rows}
    if not tiny:
        text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
        kind = "speed" if jax.default_backend() == "cpu" else "device"
        (RESULTS / f"{kind}_{question}.json").write_text(text, encoding="utf-8")
    return result


def _describe_commit() -> str:
    """Name the commit, with ``-dirty`` if tracked files other than the benchmarks' own results differ."""

    def run_git(*arguments: str) -> str:
        process = subprocess.run(
            ["git", *arguments], cwd=RESULTS, capture_output=True, text=True, check=False
        )
        return process.stdout.strip()

    paths = (":(top)", ":(top,exclude)benchmarks/results", ":(top,exclude)benchmarks/README.md")
    changes = run_git("status", "--porcelain", "--untracked-files=no", "--", *paths)
    return run_git("describe", "--always") + ("-dirty" if changes else "")


def describe_machine() -> dict[str, Any]:
    """Describe the device, the versions of packages, the commit and the time of a measurement."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "device": jax.devices()[0].device_kind,
        "processor": _read_processor(),
        "cores": count_cores(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "versions": versions,
        "commit": _describe_commit(),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@cache
def measure_matrix_rate(dtype: str) -> float:
    """Measure the operations a second of a large matrix product, operands of a dtype, sums float32."""
    side = 1536 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((side, side), dtype)
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    jax.block_until_ready(product(a))
    return 2 * side**3 / min(measure_seconds(lambda: product(a)) for _ in range(7))


def is_missing(package: str) -> bool:
    """Test whether a peer's package is missing, and print the command that installs it if it is."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        print(f"{package} is not installed: left out; pip install {package}", flush=True)
        return True
    return False


def _read_processor() -> str:
    """Read the processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _round(value: float) -> float:
    """Round to four significant digits."""
    return float(f"{value:.4g}")
