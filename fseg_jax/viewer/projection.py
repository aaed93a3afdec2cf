"""Projection of embeddings to three dimensions by UMAP (McInnes, Healy & Melville 2018), and to colours.

Patches with similar embeddings get similar colours. The axes of UMAP are arbitrary, so the points are rotated
to their principal axes: the first two are the scatter plot, all three are red, green and blue.

UMAP is fitted on the principal components that clicks are clustered in (``pca.reduce_channels``), of 20,000
patches at most, and places the other patches among those. The seed is fixed, so it runs on one thread and
repeats exactly on one machine with one set of packages; other versions of umap-learn or numba, or another
processor, give an equally good but different projection.

It is computed by a separate process, ``python -m fseg_jax.viewer.projection FOLDER NAME``, because numba
holds Python's global lock while it works, which would block the server.
"""

import hashlib
import json
import math
import os
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from fseg_jax.errors import InputError
from fseg_jax.files.atomic import replace_atomically
from fseg_jax.numerics.pca import reduce_channels
from fseg_jax.outputs.embeddings import Embeddings, open_embeddings
from fseg_jax.versions import find_versions

SAMPLE = 20_000  # patches that UMAP is fitted on, at most
NEIGHBOURS = 15
SEED = 0
FEWEST = 16  # patches for UMAP; fewer are drawn by their principal components
_BATCH = 10_000  # patches placed at once: fixed, as the result depends on it
_PERCENTILES = (1.0, 99.0)  # that become the colour values 0 and 255


def load_umap() -> ModuleType:
    """Import umap-learn.

    Raises:
        InputError: It is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns if TensorFlow is not installed
            import umap
    except ImportError:
        raise InputError("UMAP needs the package umap-learn: pip install 'fseg-jax[view]'") from None
    module: ModuleType = umap
    return module


def project(
    X: Float[np.ndarray, "n q"],
    *,
    sample: int = SAMPLE,
    seed: int = SEED,
    report: Callable[[str, float], None] = lambda phase, fraction: None,
) -> Float[np.ndarray, "n 3"]:
    """Project embeddings to three dimensions: float32, centred, axes in order of variance.

    Args:
        X: Embeddings, best those of ``reduce_channels``.
        sample: Patches to fit UMAP on, at most; it places the others.
        seed: Seed of UMAP and of the sample.
        report: Called with each phase and its fraction done.

    Raises:
        InputError: umap-learn is not installed.
    """
    n = len(X)
    if n < FEWEST:
        Y = np.zeros((n, 3), np.float32)
        Y[:, : min(3, X.shape[1])] = X[:, :3]
        return _rotate(Y)
    umap = load_umap()
    chosen = np.arange(n)
    if n > sample:
        chosen = np.sort(np.random.default_rng(seed).choice(n, sample, replace=False))
    report(f"fitting UMAP on {len(chosen):,} patches", 0.0)
    model = umap.UMAP(
        n_components=3,
        n_neighbors=min(NEIGHBOURS, len(chosen) - 1),
        init="spectral" if len(chosen) > 100 else "random",
        random_state=seed,
        n_jobs=1,
        transform_seed=seed,
    )
    Y = np.empty((n, 3), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Y[chosen] = model.fit_transform(X[chosen])
        rest = np.setdiff1d(np.arange(n), chosen, assume_unique=True)
        for start in range(0, len(rest), _BATCH):
            report(f"placing the other {len(rest):,} patches", 0.5 + 0.5 * start / len(rest))
            part = rest[start : start + _BATCH]
            Y[part] = model.transform(X[part])
    return _rotate(Y)


def _rotate(Y: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Centre points and rotate them to their principal axes; each axis points to its longer tail."""
    Y = Y.astype(np.float64) - Y.mean(0, dtype=np.float64)
    _, axes = np.linalg.eigh(Y.T @ Y)
    Y = Y @ axes[:, ::-1]
    return np.asarray(Y * np.where((Y**3).sum(0) < 0, -1, 1), np.float32)


def colour_points(Y: Float[np.ndarray, "n 3"]) -> UInt8[np.ndarray, "n 3"]:
    """Turn coordinates into RGB: each axis from its 1st to its 99th percentile becomes 0…255."""
    low, high = np.percentile(Y, _PERCENTILES, axis=0)
    fractions = np.clip((Y - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.asarray((255 * fractions).round().astype(np.uint8))


def locate_projection(folder: Path, name: str) -> Path:
    """Return the path of a slide's projection."""
    return folder / f"{name}.umap.npz"


def _describe_inputs(embedded: Embeddings) -> str:
    """Describe all that the projection depends on, except versions of packages, as JSON."""
    provenance = json.dumps(embedded.provenance, sort_keys=True).encode()
    return json.dumps(
        {
            "embeddings": hashlib.sha256(provenance).hexdigest(),
            "sample": SAMPLE,
            "neighbours": NEIGHBOURS,
            "seed": SEED,
        }
    )


def read_projection(folder: Path, name: str, embedded: Embeddings) -> Float[np.ndarray, "n 3"] | None:
    """Read the projection of embeddings; None if it is missing, damaged, or of other embeddings."""
    n = len(embedded.centers)
    try:
        with zipfile.ZipFile(locate_projection(folder, name)) as file:
            inputs = str(_read_array(file, "made_with", 1 << 16))
            Y = _read_array(file, "coordinates", 12 * n + 1024)
    except (OSError, ValueError, LookupError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None
    fits = inputs == _describe_inputs(embedded) and Y.shape == (n, 3) and Y.dtype == np.float32
    return Y if fits and np.isfinite(Y).all() else None


def _read_array(file: zipfile.ZipFile, name: str, max_bytes: int) -> np.ndarray[Any, Any]:
    """Read an array of a .npz file.

    Raises:
        ValueError: It has, or its header states, more than ``max_bytes``.
    """
    with file.open(f"{name}.npy") as member:
        data = BytesIO(member.read(max_bytes + 1))
    np.lib.format.read_magic(data)
    shape, _, dtype = np.lib.format.read_array_header_1_0(data)
    if max(data.getbuffer().nbytes, math.prod(shape) * dtype.itemsize) > max_bytes:
        raise ValueError(f"{name} is too large")
    data.seek(0)
    return np.asarray(np.lib.format.read_array(data, allow_pickle=False))


def write_projection(folder: Path, name: str, embedded: Embeddings, Y: Float[np.ndarray, "n 3"]) -> None:
    """Write a projection beside its embeddings, as ``NAME.umap.npz``.

    Arrays: ``coordinates`` float32 (n, 3), ``colours`` uint8 (n, 3), ``made_with`` and ``versions`` as JSON.

    Raises:
        OutputError: The file cannot be written.
    """
    versions = find_versions(("fseg-jax", "umap-learn", "numba", "numpy"))
    with replace_atomically(locate_projection(folder, name)) as part, part.open("wb") as file:
        np.savez_compressed(
            file,
            coordinates=Y,
            colours=colour_points(Y),
            made_with=np.array(_describe_inputs(embedded)),
            versions=np.array(json.dumps(versions)),
        )


def _main() -> int:
    """Compute a projection; print a JSON line [phase, fraction done] for each step, an error on stderr."""
    if hasattr(os, "nice"):
        os.nice(10)  # the server's clicks have priority
    folder, name = sys.argv[1:]

    def report(phase: str, fraction: float) -> None:
        print(json.dumps([phase, fraction]), flush=True)

    try:
        embedded = open_embeddings(Path(folder) / f"{name}.embeddings.zarr")
        report("reading the embeddings", 0.0)
        Y = project(np.asarray(reduce_channels(embedded.read()).X), report=report)
        write_projection(Path(folder), name, embedded, Y)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main())
