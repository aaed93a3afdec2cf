"""Patch embeddings of a slide: a Zarr 3 group, written in one pass, and its export as AnnData.

``NAME.embeddings.zarr`` holds, a row a patch, ``embeddings`` float32 or float16 (n, c), ``centers`` float64
(n, 2), (y, x) in level-0 pixels, and ``grid`` int32 (n, 2), (row, column); and of the slide ``tissue``, uint8
(h, w), and ``thumbnail``, uint8 (h, w, 3), so that what comes after needs the slide no more. What it was
made with is in the group's attributes under ``fseg``.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from fseg_jax.errors import InputError, OutputError, first_line
from fseg_jax.files.zarr import make_folder_spec
from fseg_jax.outputs.rows import RowsWriter, open_rows

DTYPES = ("float32", "float16")
RECORD = ".embeddings.json"  # what comes after a slide's name
_LONGEST_SIDE = 1 << 21  # pixels of a slide
_LARGEST_PATCH = 1 << 16


class Embeddings(NamedTuple):
    """A finished group: ``embeddings`` is a tensorstore (n, c), of which nothing has been read."""

    embeddings: Any
    centers: np.ndarray
    grid: np.ndarray
    tissue: np.ndarray
    thumbnail: np.ndarray
    provenance: dict[str, Any]

    def read(self) -> np.ndarray:
        """All embeddings, (n, c), as they are stored. Raises ``InputError`` where they are damaged."""
        try:
            return self.embeddings.read().result()
        except (OSError, ValueError, RuntimeError) as error:
            name = self.provenance["slide"].get("path", "the slide")
            raise InputError(
                f"the embeddings of {name} are damaged ({first_line(error)}); fseg embed makes them again"
            ) from None


class EmbeddingsWriter(RowsWriter):
    """Write embeddings as they come, one chunk of patches in memory.

    ``path`` is a folder that does not exist yet; ``centers (n, 2)`` and ``grid (n, 2)`` say which patches
    will come, in that order; ``tissue`` and ``thumbnail`` are of the whole slide. Raises InputError where it
    cannot be written, or a value does not fit in ``dtype``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        channels: int,
        *,
        centers: np.ndarray,
        grid: np.ndarray,
        tissue: np.ndarray,
        thumbnail: np.ndarray,
        provenance: dict[str, Any],
        dtype: str = "float32",
    ) -> None:
        if dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r}: choose float32 or float16")
        beside: dict[str, np.ndarray] = {
            "centers": np.asarray(centers, np.float64),
            "grid": np.asarray(grid, np.int32),
            "tissue": np.asarray(tissue, np.uint8),
            "thumbnail": np.asarray(thumbnail, np.uint8),
        }
        shape = (len(centers), channels)
        super().__init__(path, "embeddings", shape, dtype, beside=beside, provenance=provenance)

    def _check(self, part: np.ndarray) -> None:
        if not np.isfinite(part).all():
            raise InputError(f"an embedding does not fit in {part.dtype}: choose --store float32")


def embedded_slides(folder: Path) -> list[str]:
    """The names of the slides that are embedded in a folder, by their records; empty files are none."""
    found = folder.glob(f"*{RECORD}")
    records = [path for path in found if not path.name.startswith(".") and path.is_file()]
    return sorted(path.name.removesuffix(RECORD) for path in records if path.stat().st_size)


def open_embeddings(path: str | os.PathLike[str]) -> Embeddings:
    """Open finished embeddings; they themselves are not read yet, what goes with them is.

    Raises InputError where there are none, some that were never finished, or some that contradict themselves.
    """
    try:
        rows, beside, provenance = open_rows(
            make_folder_spec(Path(path)), "embeddings", ("centers", "grid", "tissue", "thumbnail")
        )
        centers, grid, tissue, thumbnail = beside.values()
        embeddings = Embeddings(rows, centers, grid, tissue.astype(bool), thumbnail, provenance)
        _check_arrays(embeddings)
        _check_facts(embeddings)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{path} are not finished embeddings of fseg ({_reason(error)}); make them with fseg embed"
        ) from None
    return embeddings


def _reason(error: Exception) -> str:
    """Why a group is none, in a few words."""
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing" if error.args else "something is missing"
    return first_line(error)


def _check_arrays(e: Embeddings) -> None:
    """Raise ValueError where the arrays are not what ``EmbeddingsWriter`` makes of any slide."""
    n = len(e.centers)
    for key, array, wanted, dtypes in (
        ("embeddings", e.embeddings, (n, None), DTYPES),
        ("centers", e.centers, (n, 2), ("float64",)),
        ("grid", e.grid, (n, 2), ("int32",)),
        ("tissue", e.tissue, (None, None), ("bool",)),
        ("thumbnail", e.thumbnail, (None, None, 3), ("uint8",)),
    ):
        shape, dtype = tuple(array.shape), np.dtype(getattr(array.dtype, "numpy_dtype", array.dtype))
        fits = len(shape) == len(wanted) and all(w in (None, s) for s, w in zip(shape, wanted, strict=True))
        if not fits or 0 in shape or dtype.name not in dtypes:
            raise ValueError(f"{key} is {dtype.name} of shape {'×'.join(map(str, shape))}")


def _check_facts(e: Embeddings) -> None:
    """Raise ValueError, LookupError or TypeError where what the group states of its slide and patches is not
    there, or contradicts itself or its arrays.
    """
    made = e.provenance
    slide, parameters = made["slide"], made["parameters"]
    if not (isinstance(slide["path"], str) and isinstance(made["encoder"]["name"], str)):
        raise TypeError("slide and encoder have no names")
    if made["patches"] != len(e.centers):
        raise ValueError(f"{len(e.centers)} patches are stored, {made['patches']!r:.40} stated")
    for key in ("height", "width"):
        _check_number(f"the slide's {key}", slide[key], 1, _LONGEST_SIDE, int)
        _check_number(key, made[key], 1, _LONGEST_SIDE, int)
    for key, value in (("mpp", parameters["mpp"]), ("tissue_mpp", made["tissue_mpp"])):
        _check_number(key, value, 1e-6, 1e6, int | float)
    _check_number("the slide's mpp", slide["mpp"], 1e-6, 1e6, int | float)
    _check_number("patch", parameters["patch"], 1, _LARGEST_PATCH, int)
    _check_number("step", parameters["step"], 1, parameters["patch"], int)
    scale = parameters["mpp"] / slide["mpp"]
    for key, value, expected, slack in (
        ("height", made["height"], slide["height"] / scale, 1),
        ("width", made["width"], slide["width"] / scale, 1),
        ("side_level0", parameters["side_level0"], parameters["patch"] * scale, 1e-3),
    ):
        if not abs(value - expected) <= slack + 1e-6 * expected:
            raise ValueError(f"{key} is {value}, and {expected:g} by the slide's size and mpp")
    sides = np.array([made["height"], made["width"]])
    most = np.maximum(-(-(sides - parameters["patch"]) // parameters["step"]), 0)
    if (e.grid < 0).any() or (e.grid > most).any():
        raise ValueError("the grid has patches outside the slide")
    expected_centers = (e.grid * parameters["step"] + parameters["patch"] / 2) * scale
    if not (np.abs(e.centers - expected_centers) <= 1).all():
        raise ValueError("centers and grid contradict each other")


def _check_number(name: str, value: Any, least: float, most: float, kind: Any) -> None:
    if not isinstance(value, kind) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r:.40}")


def load_anndata() -> ModuleType:
    """Import anndata, or say how to get it: call this before long work that ends in an export."""
    try:
        import anndata
    except ImportError:
        raise InputError("AnnData needs the package anndata: pip install 'fseg-jax[anndata]'") from None
    return anndata


def anndata_keys(names: Sequence[str]) -> list[str]:
    """Names as AnnData's files can hold them, no two alike: HDF5 keeps "/" and "." for its paths."""
    fit = [name for name in names if name not in ("", ".") and "/" not in name]
    taken = set(fit)
    keys = []
    for name in names:
        if name not in fit:
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
    """Export embeddings as AnnData (.h5ad), for scanpy, squidpy and TissUUmaps.

    ``X`` is float32 (n, c); ``obsm["spatial"]`` the patches' centres, (x, y) in level-0 pixels; ``obs`` their
    ``row`` and ``column`` and, (n,) each, what ``obs`` gives (text becomes a category); ``uns["spatial"]``
    the slide's thumbnail with its scale, as squidpy draws it; ``uns["fseg"]`` the provenance, JSON; beside
    them what ``uns`` gives. Keys of ``obs`` and ``uns`` are ``anndata_keys``. Holds one chunk of X in memory.
    Raises InputError without the package anndata, or where the file cannot be written.
    """
    anndata = load_anndata()
    import h5py
    import pandas as pd

    n, channels = embeddings.embeddings.shape
    slide = embeddings.provenance["slide"]
    table = pd.DataFrame(
        {"row": embeddings.grid[:, 0], "column": embeddings.grid[:, 1]}, index=[f"{i}" for i in range(n)]
    )
    for key, values in (obs or {}).items():
        table[key] = pd.Categorical(values) if values.dtype.kind in "UO" else values
    content = anndata.AnnData(
        obs=table,
        var=pd.DataFrame(index=[f"channel_{i}" for i in range(channels)]),
        obsm={"spatial": np.ascontiguousarray(embeddings.centers[:, ::-1])},
        uns={
            "spatial": {
                anndata_keys([name])[0]: {
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
        content.write_h5ad(path)
        with h5py.File(path, "r+") as file:  # X as AnnData's format describes it, but a chunk at a time
            if "X" in file:
                del file["X"]
            rows = embeddings.embeddings.chunk_layout.read_chunk.shape[0]
            X = file.create_dataset("X", (n, channels), "f4", chunks=(min(rows, n), channels))
            X.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            for start, part in _chunks(embeddings.embeddings, rows):
                X[start : start + len(part)] = part
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


def try_anndata(
    path: Path,
    out: Path,
    embeddings: Embeddings,
    name: str,
    obs: dict[str, np.ndarray] | None = None,
    uns: dict[str, Any] | None = None,
) -> InputError | None:
    """Export as ``write_anndata`` does; where that fails, for whatever reason, no other output is to be lost.

    The file is written at ``path`` and will be published in ``out``. Returns what to raise once the others
    are there, and leaves nothing of the file.
    """
    try:
        write_anndata(path, embeddings, name, obs, uns)
    except Exception as error:
        path.unlink(missing_ok=True)
        reason = first_line(error.__cause__ or error)
        return InputError(f"{out / path.name}: cannot be written ({reason}); all other outputs are there")
    return None


def _chunks(store: Any, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, store.shape[0], rows):
        yield start, store[start : min(start + rows, store.shape[0])].read().result()
