"""Check what this machine can do, for ``fseg doctor``: one line a check, and what to do where one fails."""

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any, NamedTuple

from fseg_jax.files.downloads import find_cache_folder
from fseg_jax.versions import UNKNOWN, find_version

LEAST_PYTHON = (3, 11)
FREE_BYTES = 5e9  # for the largest encoder as published, or the labels of a cohort's first slides
# Extras that another check is about, or that are for work on the package.
OTHER_EXTRAS = ("cuda12", "cuda13", "tpu", "onednn", "clients", "aot", "test", "lint", "docs")
_EXTRA = re.compile(r"([\w.-]+).*\bextra == ['\"]([\w-]+)['\"]")  # a line of the package's requirements
TIMEOUT = 3.0  # seconds that the hub has to answer


class Check(NamedTuple):
    """The result of a check.

    Attributes:
        name: What was checked.
        ok: Whether it is as it should be.
        required: Whether segmenting needs it.
        message: What was seen.
        remedy: What to do where it is not as it should be.
    """

    name: str
    ok: bool
    required: bool
    message: str
    remedy: str = ""


class _Result(NamedTuple):
    ok: bool
    message: str


def check_machine() -> list[Check]:
    """Check everything. Nothing is downloaded, and the hub has a few seconds to answer."""
    return list(_run_checks())


def choose_exit_code(checks: Iterable[Check]) -> int:
    """Return 1 where a check fails that segmenting needs, else 0."""
    return int(any(check.required and not check.ok for check in checks))


def format_table(checks: Iterable[Check]) -> str:
    """Format checks as text: a line a check, and under one that fails its remedy."""
    checks = list(checks)
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        mark = "ok  " if check.ok else "FAIL" if check.required else "no  "
        lines.append(f"{mark}  {check.name:{width}}  {check.message}")
        if not check.ok:
            lines.append(f"      {'':{width}}  → {check.remedy}")
    return "\n".join(lines)


def _run_checks() -> Iterator[Check]:
    required: tuple[tuple[str, Callable[[], _Result], str], ...] = (
        ("Python", _python, f"install Python {'.'.join(map(str, LEAST_PYTHON))} or later"),
        ("JAX", _jax, "pip install --upgrade fseg-jax"),
        ("devices", _devices, "set JAX_PLATFORMS=cpu, or repair the accelerator's driver"),
        ("OpenSlide", _openslide, "pip install --upgrade openslide-python openslide-bin"),
        ("TIFF codecs", _codecs, "pip install --upgrade tifffile imagecodecs"),
        (
            "TensorStore",
            _tensorstore,
            "pip install --upgrade tensorstore, and see that $TMPDIR can be written",
        ),
        ("main job", _main_job, "run `fseg demo -o OUT -vv`, and report what it says"),
    )
    for name, look, remedy in required:
        yield _check(name, look, remedy, required=True)
    yield _check("GPU", _gpu, "pip install 'fseg-jax[cuda12]' or 'fseg-jax[cuda13]'", required=False)
    yield _check("cache", _cache, "set FSEG_CACHE to a folder that can be written", required=False)
    yield _check("cached weights", _cached, "delete what cannot be read", required=False)
    yield _check(
        "disk, cache",
        lambda: _disk(find_cache_folder()),
        "free it, or set FSEG_CACHE to another",
        required=False,
    )
    yield _check("disk, here", lambda: _disk(Path.cwd()), "free it, or write (-o) to another", required=False)
    hub = _check("hub", _hub, "see to the network, or give weights with --weights FILE", required=False)
    yield hub
    yield _check("processor", _processor, "pip install --upgrade jax", required=False)
    yield _check("extras", _extras, "pip install --upgrade fseg-jax", required=False)
    yield _check("oneDNN", _onednn, "pip install 'fseg-jax[onednn]'", required=False)
    yield _check("token", _token, "`hf auth login`, or set HF_TOKEN, for the gated encoders", required=False)
    if hub.ok:
        yield from _check_gated()


def _check(name: str, look: Callable[[], _Result], remedy: str, *, required: bool) -> Check:
    try:
        ok, message = look()
    except Exception as error:
        # Whatever is broken is one line of the table; the other checks go on.
        reason = " ".join(str(error).split())[:200]
        ok, message = False, f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return Check(name, ok, required, message, "" if ok else remedy)


def _python() -> _Result:
    return _Result(sys.version_info >= LEAST_PYTHON, f"{platform.python_version()}, {platform.platform()}")


def _jax() -> _Result:
    import flax  # noqa: F401
    import jax  # noqa: F401

    return _Result(True, ", ".join(f"{name} {find_version(name)}" for name in ("jax", "jaxlib", "flax")))


def _devices() -> _Result:
    import jax

    devices = [f"{device.device_kind} ({_memory(device)})" for device in jax.local_devices()]
    counted = [f"{devices.count(device)} × {device}" for device in dict.fromkeys(devices)]
    return _Result(bool(devices), f"{', '.join(counted)}; {os.cpu_count()} CPU cores")


def _memory(device: Any) -> str:
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is not None:
        return f"{limit / 1e9:.1f} GB"
    if device.platform != "cpu" or not hasattr(os, "sysconf"):
        return "memory unknown"
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.1f} GB"


def _gpu() -> _Result:
    import jax

    if any(device.platform == "gpu" for device in jax.local_devices()):
        return _Result(True, "used")
    if shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists():
        return _Result(False, "this machine has an NVIDIA GPU, and JAX does not see it")
    return _Result(True, "none; not needed")


def _openslide() -> _Result:
    import openslide

    return _Result(True, f"{openslide.__library_version__}, openslide-python {openslide.__version__}")


def _codecs() -> _Result:
    import imagecodecs
    import numpy as np
    import tifffile

    # Smooth, so that what loses a little stays within a few grey levels.
    image = np.stack([np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8) * 3] * 3, axis=-1)
    jpeg = imagecodecs.jpeg_decode(imagecodecs.jpeg_encode(image, level=95))
    jpeg2000 = imagecodecs.jpeg2k_decode(imagecodecs.jpeg2k_encode(image, level=0))
    wrong = [
        name
        for name, decoded in (("JPEG", jpeg), ("JPEG 2000", jpeg2000))
        if decoded.shape != image.shape or np.abs(decoded.astype(int) - image).max() > 8
    ]
    if wrong:
        return _Result(False, f"{' and '.join(wrong)} decoded wrongly")
    versions = f"tifffile {tifffile.__version__}, imagecodecs {imagecodecs.__version__}"
    return _Result(True, f"JPEG and JPEG 2000 decode; {versions}")


def _tensorstore() -> _Result:
    import numpy as np
    import tensorstore as ts

    from fseg_jax.files.zarr import make_folder_spec

    written = np.arange(16, dtype=np.uint8).reshape(4, 4)
    with tempfile.TemporaryDirectory() as folder:
        store = make_folder_spec(Path(folder))
        spec = {"driver": "zarr3", "kvstore": store, "metadata": {"codecs": [{"name": "zstd"}]}}
        ts.open(spec, create=True, dtype=ts.uint8, shape=written.shape).result().write(written).result()
        read = ts.open({"driver": "zarr3", "kvstore": store}).result().read().result()
    return _Result(
        bool(np.array_equal(read, written)), f"{find_version('tensorstore')} writes and reads Zarr"
    )


def _main_job() -> _Result:
    import jax.numpy as jnp
    import numpy as np

    from fseg_jax.encoders.classical import classical
    from fseg_jax.numerics import nmf

    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    features = classical()(jnp.asarray(image))
    tokens = features.reshape(1, -1, features.shape[-1])
    weights = nmf.solve_weights(tokens, tokens[0, :3])
    done = bool(jnp.isfinite(weights).all() and (weights >= 0).all())
    return _Result(done, "an image is encoded and factorized" if done else "the factorization went wrong")


def _cache() -> _Result:
    folder = find_cache_folder()
    with tempfile.TemporaryFile(dir=_find_existing(folder)):
        return _Result(True, f"{folder} can be written")


def _cached() -> _Result:
    from fseg_jax.encoders.weights.cache import list_cached

    files = list_cached()
    total = sum(file.size for file in files)
    each = "; ".join(f"{file.name} {file.path.stem} {file.size / 1e6:,.0f} MB" for file in files)
    return _Result(True, f"{total / 1e9:.1f} GB: {each}" if files else "none yet")


def _disk(folder: Path) -> _Result:
    free = shutil.disk_usage(_find_existing(folder)).free
    return _Result(free >= FREE_BYTES, f"{free / 1e9:.0f} GB free in {folder}")


def _find_existing(folder: Path) -> Path:
    """Return the folder, or the nearest above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _processor() -> _Result:
    from fseg_jax.encoders.kernels.processor import detect_processor

    kind = detect_processor()
    if not kind.extensions:
        return _Result(True, "of a kind that XLA does not name: float32, the default, is the one to take")
    if kind.multiplies_bfloat16:
        return _Result(True, f"{kind.instruction_set}: fast in bfloat16; --dtype bfloat16 takes less time")
    return _Result(True, f"{kind.instruction_set}: fast in float32, the default; bfloat16 takes longer")


def _extras() -> _Result:
    """List the extras for what is read, written and shown, and what brings those that are not installed."""
    try:
        required = requires("fseg-jax") or []
    except PackageNotFoundError:
        return _Result(True, "not known: the package is not installed, as in a checkout")
    found = [_EXTRA.match(line) for line in required]
    needed: dict[str, list[str]] = {}
    for package, extra in [match.groups() for match in found if match]:
        if extra not in OTHER_EXTRAS:
            needed.setdefault(extra, []).append(package)
    missing = [extra for extra in needed if any(find_version(name) == UNKNOWN for name in needed[extra])]
    here = ", ".join(extra for extra in needed if extra not in missing) or "none"
    lacks = f"; not here, pip install 'fseg-jax[{','.join(missing)}]'" if missing else ""
    return _Result(True, here + lacks)


def _onednn() -> _Result:
    import jax

    from fseg_jax.encoders.kernels.convolution import library_version

    version = library_version()
    if version is not None:
        taken = _describe_precisions()
        if taken:
            return _Result(True, f"{version}, for convolutions on the CPU, {taken}")
        return _Result(True, f"{version}, which has no convolution for this processor: XLA's are taken")
    if jax.default_backend() != "cpu" or (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return _Result(True, "none; not needed")
    return _Result(False, "none: ResNets and he-small take up to twice the time")


def _describe_precisions() -> str:
    """Say in which precisions oneDNN convolves here, as ``convolution.py`` chooses; empty: in none."""
    import jax.numpy as jnp

    from fseg_jax.encoders.kernels.convolution import Plan, choose_spec

    plan = Plan(1, ((1, 1), (1, 1)), 1, True, jnp.float32)
    shapes = (1, 16, 16, 64), (3, 3, 64, 64)
    if choose_spec(*shapes, plan, False) is None:
        return ""
    narrow = choose_spec(*shapes, plan._replace(dtype=jnp.bfloat16), False)
    return "each in its own precision" if narrow and narrow.half else "all in float32"


def _hub() -> _Result:
    from fseg_jax.encoders.weights.hub import is_reachable

    reachable = is_reachable(timeout=TIMEOUT)
    return _Result(reachable, "reachable" if reachable else "not reachable")


def _token() -> _Result:
    from huggingface_hub import get_token

    present = bool(get_token())
    return _Result(present, "present" if present else "none")


def _check_gated() -> Iterator[Check]:
    """Check whether the weights of each gated encoder can be downloaded; all are asked for at once."""
    from fseg_jax.encoders.catalog.published import CATALOG
    from fseg_jax.encoders.weights.hub import check_access

    rows = [row for row in CATALOG.values() if row.gated]
    with ThreadPoolExecutor(max(len(rows), 1)) as pool:
        for row, status in zip(
            rows, pool.map(lambda row: check_access(row, timeout=TIMEOUT), rows), strict=True
        ):
            ok = status.state == "gated: access granted"
            yield Check(row.name, ok, False, status.state, "" if ok else status.detail)
