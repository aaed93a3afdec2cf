"""Embeddings as colours: UMAP (McInnes, Healy & Melville 2018) to three dimensions, and those as RGB.

Patches that look alike to the encoder get colours that look alike. The axes of UMAP mean nothing, so they
are turned onto those of largest variance: the first two are the scatter plot, all three are red, green and
blue. One fit serves both, and a point's colour says where it lies in depth.

The fit takes the principal coordinates that clicks are clustered in too (``pca.reduce_channels``), of 20,000
patches at most; the others are placed among them. With the seed fixed it runs on one thread and repeats to
the last bit on one machine with one set of packages; other versions of umap-learn or numba, or another
processor, give a map that is as good, and not the same.

Computing it takes a program of its own, ``python -m fseg_jax.viewer.projection FOLDER NAME``, because numba
holds Python's lock while it works, and a server that waits for it would answer nobody.
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

import numpy as np
from jaxtyping import Float, UInt8

from fseg_jax.errors import InputError
from fseg_jax.files.atomic import replace_atomically
from fseg_jax.numerics.pca import reduce_channels
from fseg_jax.outputs.embeddings import Embeddings, open_embeddings
from fseg_jax.versions import find_versions

SAMPLE = 20_000  # patches that UMAP is fitted on
NEIGHBOURS = 15
SEED = 0
FEWEST = 16  # patches; fewer are drawn by their principal coordinates
_PART = 10_000  # patches placed at once: fixed, as the result depends on it
_TAILS = (1.0, 99.0)  # percentiles that become 0 and 255


def load_umap() -> ModuleType:
    """Import umap-learn, or say how to get it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TensorFlow is not here
            import umap
    except ImportError:
        raise InputError("UMAP needs the package umap-learn: pip install 'fseg-jax[view]'") from None
    return umap


def project(
    X: Float[np.ndarray, "n q"],
    *,
    sample: int = SAMPLE,
    seed: int = SEED,
    report: Callable[[str, float], None] = lambda phase, done: None,
) -> Float[np.ndarray, "n 3"]:
    """Lay patches out in three dimensions, axes in order of variance.

    ``X (n, q)`` float, best ``reduce_channels``'s → float32 ``(n, 3)``, centred. Beyond ``sample`` patches
    UMAP is fitted on that many, drawn by ``seed``, and places the rest. Raises ``InputError`` without
    umap-learn.
    """
    n = len(X)
    if n < FEWEST:
        Y = np.zeros((n, 3), np.float32)
        Y[:, : min(3, X.shape[1])] = X[:, :3]
        return _turned(Y)
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
        for start in range(0, len(rest), _PART):
            report(f"placing the other {len(rest):,} patches", 0.5 + 0.5 * start / len(rest))
            part = rest[start : start + _PART]
            Y[part] = model.transform(X[part])
    return _turned(Y)


def _turned(Y: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """The same points, centred, on their principal axes; each axis points to its longer tail."""
    Y = Y.astype(np.float64) - Y.mean(0, dtype=np.float64)
    _, axes = np.linalg.eigh(Y.T @ Y)
    Y = Y @ axes[:, ::-1]
    return (Y * np.where((Y**3).sum(0) < 0, -1, 1)).astype(np.float32)


def colours(Y: Float[np.ndarray, "n 3"]) -> UInt8[np.ndarray, "n 3"]:
    """Turn coordinates into RGB: each axis from its 1st to its 99th percentile becomes 0…255."""
    low, high = np.percentile(Y, _TAILS, axis=0)
    return (255 * np.clip((Y - low) / np.maximum(high - low, 1e-12), 0, 1)).round().astype(np.uint8)


def projection_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.umap.npz"


def _made_with(embedded: Embeddings) -> str:
    """What the map depends on but for the packages' versions, as JSON."""
    made = json.dumps(embedded.provenance, sort_keys=True).encode()
    return json.dumps(
        {
            "embeddings": hashlib.sha256(made).hexdigest(),
            "sample": SAMPLE,
            "neighbours": NEIGHBOURS,
            "seed": SEED,
        }
    )


def read_projection(folder: Path, name: str, embedded: Embeddings) -> Float[np.ndarray, "n 3"] | None:
    """The map that lies beside the embeddings; None where there is none, or it is another's, or damaged."""
    n = len(embedded.centers)
    try:
        with zipfile.ZipFile(projection_path(folder, name)) as file:
            made = str(_stored_array(file, "made_with", 1 << 16))
            Y = _stored_array(file, "coordinates", 12 * n + 1024)
    except (OSError, ValueError, LookupError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None
    fits = made == _made_with(embedded) and Y.shape == (n, 3) and Y.dtype == np.float32
    return Y if fits and np.isfinite(Y).all() else None


def _stored_array(file: zipfile.ZipFile, name: str, most: int) -> np.ndarray:
    """An array of a .npz file; ValueError where it has, or states, more bytes than ``most``."""
    with file.open(f"{name}.npy") as stored:
        data = BytesIO(stored.read(most + 1))
    np.lib.format.read_magic(data)
    shape, _, dtype = np.lib.format.read_array_header_1_0(data)
    if max(data.getbuffer().nbytes, math.prod(shape) * dtype.itemsize) > most:
        raise ValueError(f"{name} is too large")
    data.seek(0)
    return np.lib.format.read_array(data, allow_pickle=False)


def write_projection(folder: Path, name: str, embedded: Embeddings, Y: Float[np.ndarray, "n 3"]) -> None:
    """Keep a map beside its embeddings, as ``NAME.umap.npz``.

    It holds ``coordinates`` float32 (n, 3), ``colours`` uint8 (n, 3), and as JSON ``made_with`` and
    ``versions``. Raises ``OutputError`` where it cannot be written.
    """
    packages = find_versions(("fseg-jax", "umap-learn", "numba", "numpy"))
    with replace_atomically(projection_path(folder, name)) as part, part.open("wb") as file:
        np.savez_compressed(
            file,
            coordinates=Y,
            colours=colours(Y),
            made_with=np.array(_made_with(embedded)),
            versions=np.array(json.dumps(packages)),
        )


def _main() -> int:
    """Print a JSON line [what is done, how much of it] for every step; an error as one line on stderr."""
    if hasattr(os, "nice"):
        os.nice(10)  # clicks go first
    folder, name = sys.argv[1:]

    def report(phase: str, done: float) -> None:
        print(json.dumps([phase, done]), flush=True)

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
