"""The export of patch embeddings as AnnData (.h5ad), for scanpy, squidpy and TissUUmaps."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fseg_jax.errors import InputError, OutputError, first_line
from fseg_jax.outputs.embeddings import Embeddings


def import_anndata() -> ModuleType:
    """Import the package anndata; call this first where an export ends long work.

    Raises:
        InputError: The package is not installed.
    """
    try:
        import anndata
    except ImportError as error:
        is_there = find_spec("anndata") is not None  # but not with what else is installed
        why = f", which cannot be imported ({first_line(error)})" if is_there else ""
        raise InputError(f"AnnData needs the package anndata{why}: pip install 'fseg-jax[anndata]'") from None
    module: ModuleType = anndata
    return module


def list_category_colours(values: np.ndarray, colours: Mapping[str, str]) -> np.ndarray:
    """List the colours of a column's categories in their order, as scanpy wants them in ``uns``.

    Args:
        values: The column's texts; its categories are those that occur, sorted.
        colours: Each one's colour.
    """
    return np.array([colours[value] for value in np.unique(values).tolist()])


def make_anndata_keys(names: Sequence[str]) -> list[str]:
    """Make keys for AnnData from names, no two alike: in HDF5 "/" and "." are parts of paths."""
    usable = [name for name in names if name not in ("", ".") and "/" not in name]
    taken = set(usable)
    keys = []
    for name in names:
        if name not in usable:
            name = name.replace("/", "_").replace(".", "_") or "_"
            while name in taken:
                name += "_"
            taken.add(name)
        keys.append(name)
    return keys


def write_anndata(
    path: str | os.PathLike[str],
    embeddings: Embeddings,
    name: str,
    obs: dict[str, np.ndarray] | None = None,
    uns: dict[str, Any] | None = None,
) -> None:
    """Export embeddings as AnnData, with one chunk of them in memory.

    - ``X``: float32 (patches, channels).
    - ``obs``: ``row`` and ``column`` of the patches.
    - ``obsm["spatial"]``: (x, y) of the patches' centres in level-0 pixels.
    - ``uns["spatial"]``: the slide's thumbnail with its scale, as squidpy draws it.
    - ``uns["fseg"]``: the provenance, JSON.

    Args:
        path: The file.
        embeddings: The embeddings.
        name: The slide's name.
        obs: More columns of ``obs``, (patches,) each, by ``make_anndata_keys``; text becomes a category.
        uns: More entries of ``uns``, by ``make_anndata_keys``.

    Raises:
        InputError: The package anndata is not installed.
        OutputError: The file cannot be written.
    """
    anndata = import_anndata()
    import h5py
    import pandas as pd

    n, channels = embeddings.embeddings.shape
    slide = embeddings.provenance["slide"]

    def index(texts: Sequence[str]) -> Any:
        # Of objects: anndata 0.11 does not write the strings of pandas 3.
        return pd.Index(np.array(texts, object), dtype=object)

    table = pd.DataFrame(
        {"row": embeddings.grid[:, 0], "column": embeddings.grid[:, 1]},
        index=index([f"{i}" for i in range(n)]),
    )
    for key, values in (obs or {}).items():
        if values.dtype.kind in "UO":
            texts, codes = np.unique(values, return_inverse=True)
            values = pd.Categorical.from_codes(codes, index(texts.tolist()))
        table[key] = values
    table.columns = index([str(key) for key in table.columns])
    content = anndata.AnnData(
        obs=table,
        var=pd.DataFrame(index=index([f"channel_{i}" for i in range(channels)])),
        obsm={"spatial": np.ascontiguousarray(embeddings.centers[:, ::-1])},
        uns={
            "spatial": {
                make_anndata_keys([name])[0]: {
                    "images": {"hires": embeddings.thumbnail},
                    "scalefactors": {
                        "tissue_hires_scalef": embeddings.thumbnail.shape[1] / slide["width"],
                        "spot_diameter_fullres": embeddings.provenance["parameters"]["side_level0"],
                    },
                }
            },
            "fseg": json.dumps(embeddings.provenance, ensure_ascii=False),
            **(uns or {}),
        },
    )
    try:
        # Without HDF5's lock, which some file systems refuse: nobody else knows the file yet.
        with h5py.File(path, "w", locking=False) as file:
            anndata.io.write_elem(file, "/", content)
            if "X" in file:  # it is written as anndata would, but a chunk at a time
                del file["X"]
            rows = embeddings.embeddings.chunk_layout.read_chunk.shape[0]
            X = file.create_dataset("X", (n, channels), "f4", chunks=(min(rows, n), channels))
            X.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            for start, part in _yield_chunks(embeddings.embeddings, rows):
                X[start : start + len(part)] = part
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


def try_write_anndata(
    path: Path,
    out: Path,
    embeddings: Embeddings,
    name: str,
    obs: dict[str, np.ndarray] | None = None,
    uns: dict[str, Any] | None = None,
) -> InputError | None:
    """Export as ``write_anndata`` does, but return an error instead of raising it, and remove the file then.

    The caller raises the error after it has published its other outputs, so that they are not lost.

    Args:
        path: The file, in a temporary folder.
        out: The folder where it will be published, for the error's message.
        embeddings: The embeddings.
        name: The slide's name.
        obs: More columns of ``obs``.
        uns: More entries of ``uns``.
    """
    try:
        write_anndata(path, embeddings, name, obs, uns)
    except Exception as error:
        path.unlink(missing_ok=True)
        reason = first_line(error.__cause__ or error)
        return InputError(f"{out / path.name}: cannot be written ({reason}); all other outputs are there")
    return None


def _yield_chunks(store: Any, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, store.shape[0], rows):
        yield start, store[start : min(start + rows, store.shape[0])].read().result()
