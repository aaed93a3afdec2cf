"""Patch embeddings of a slide: the Zarr 3 group ``NAME.embeddings.zarr``, which is written in one pass.

- ``embeddings``: float32 or float16 (patches, channels).
- ``centers``: float64 (patches, 2), (y, x) in level-0 pixels.
- ``grid``: int32 (patches, 2), (row, column).
- ``tissue``: uint8 (h, w), the tissue mask.
- ``thumbnail``: uint8 (h, w, 3). With it and the mask, later steps do not need the slide.

The group's attributes hold its provenance under ``fseg``.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fseg_jax.errors import InputError, first_line
from fseg_jax.files.zarr import make_folder_spec
from fseg_jax.outputs.rows import RowsWriter, open_rows

DTYPES = ("float32", "float16")
RECORD = ".embeddings.json"  # ending of a record's name, after the slide's
_MAX_SIDE = 1 << 21  # pixels of a slide's side
_MAX_PATCH = 1 << 16  # pixels of a patch's side


class Embeddings(NamedTuple):
    """The embeddings of a slide's patches.

    Attributes:
        embeddings: A tensorstore (patches, channels), whose values have not been read.
        centers: (patches, 2), (y, x) of the patches' centres in level-0 pixels.
        grid: (patches, 2), (row, column) of the patches.
        tissue: (h, w), the tissue mask of the slide.
        thumbnail: (h, w, 3), the whole slide.
        provenance: What they were made with.
    """

    embeddings: Any
    centers: np.ndarray
    grid: np.ndarray
    tissue: np.ndarray
    thumbnail: np.ndarray
    provenance: dict[str, Any]

    def read(self) -> np.ndarray:
        """Read all embeddings, (patches, channels), in the type that they are stored in.

        Raises:
            InputError: They are damaged.
        """
        try:
            return np.asarray(self.embeddings.read().result())
        except (OSError, ValueError, RuntimeError) as error:
            name = self.provenance["slide"].get("path", "the slide")
            raise InputError(
                f"the embeddings of {name} are damaged ({first_line(error)}); fseg embed makes them again"
            ) from None


class EmbeddingsWriter(RowsWriter):
    """Embeddings that are being written, with one chunk of patches in memory."""

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
        """Make the group's folder, and write everything but the embeddings.

        Args:
            path: The folder, which must not exist yet.
            channels: Channels of an embedding.
            centers: (patches, 2), (y, x) of the patches' centres in level-0 pixels.
            grid: (patches, 2), (row, column) of the patches, in the order in which they are appended.
            tissue: (h, w), the tissue mask of the slide.
            thumbnail: (h, w, 3), the whole slide.
            provenance: What they are made with, as JSON.
            dtype: One of ``DTYPES``.

        Raises:
            InputError: The folder exists, or ``dtype`` is unknown.
            OutputError: The group cannot be written.
        """
        if dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r}: choose float32 or float16")
        small_arrays: dict[str, np.ndarray] = {
            "centers": np.asarray(centers, np.float64),
            "grid": np.asarray(grid, np.int32),
            "tissue": np.asarray(tissue, np.uint8),
            "thumbnail": np.asarray(thumbnail, np.uint8),
        }
        shape = (len(centers), channels)
        super().__init__(path, "embeddings", shape, dtype, small_arrays=small_arrays, provenance=provenance)

    def _check(self, part: np.ndarray) -> None:
        if not np.isfinite(part).all():
            raise InputError(f"an embedding does not fit in {part.dtype}: choose --store float32")


def list_embedded_slides(folder: Path) -> list[str]:
    """List the names of the slides that are embedded in a folder, by their records; skip empty files."""
    paths = folder.glob(f"*{RECORD}")
    records = [path for path in paths if not path.name.startswith(".") and path.is_file()]
    return sorted(path.name.removesuffix(RECORD) for path in records if path.stat().st_size)


def open_embeddings(path: str | os.PathLike[str]) -> Embeddings:
    """Open finished embeddings, and read everything but the embeddings themselves.

    Raises:
        InputError: There are none, they were never finished, or their metadata contradict each other.
    """
    try:
        rows, small_arrays, provenance = open_rows(
            make_folder_spec(Path(path)), "embeddings", ("centers", "grid", "tissue", "thumbnail")
        )
        centers, grid, tissue, thumbnail = small_arrays.values()
        embeddings = Embeddings(rows, centers, grid, tissue.astype(bool), thumbnail, provenance)
        _check_arrays(embeddings)
        _check_provenance(embeddings)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{path} are not finished embeddings of fseg ({_explain(error)}); make them with fseg embed"
        ) from None
    return embeddings


def _explain(error: Exception) -> str:
    """Explain in a few words why a group cannot be opened."""
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing" if error.args else "something is missing"
    return first_line(error)


def _check_arrays(embeddings: Embeddings) -> None:
    """Raise ``ValueError`` where the arrays do not have the shapes and types that are written."""
    n = len(embeddings.centers)
    for key, array, wanted, dtypes in (
        ("embeddings", embeddings.embeddings, (n, None), DTYPES),
        ("centers", embeddings.centers, (n, 2), ("float64",)),
        ("grid", embeddings.grid, (n, 2), ("int32",)),
        ("tissue", embeddings.tissue, (None, None), ("bool",)),
        ("thumbnail", embeddings.thumbnail, (None, None, 3), ("uint8",)),
    ):
        shape, dtype = tuple(array.shape), np.dtype(getattr(array.dtype, "numpy_dtype", array.dtype))
        fits = len(shape) == len(wanted) and all(w in (None, s) for s, w in zip(shape, wanted, strict=True))
        if not fits or 0 in shape or dtype.name not in dtypes:
            raise ValueError(f"{key} is {dtype.name} of shape {'×'.join(map(str, shape))}")


def _check_provenance(embeddings: Embeddings) -> None:
    """Check that the provenance is complete, and contradicts neither itself nor the arrays.

    Raises:
        LookupError: Something is missing.
        TypeError: Something is of another type.
        ValueError: There is a contradiction.
    """
    provenance, grid = embeddings.provenance, embeddings.grid
    slide, parameters = provenance["slide"], provenance["parameters"]
    if not (isinstance(slide["path"], str) and isinstance(provenance["encoder"]["name"], str)):
        raise TypeError("slide and encoder have no names")
    if provenance["patches"] != len(embeddings.centers):
        raise ValueError(
            f"{len(embeddings.centers)} patches are stored, {provenance['patches']!r:.40} stated"
        )
    for key in ("height", "width"):
        _check_number(f"the slide's {key}", slide[key], 1, _MAX_SIDE, int)
        _check_number(key, provenance[key], 1, _MAX_SIDE, int)
    for key, value in (("mpp", parameters["mpp"]), ("tissue_mpp", provenance["tissue_mpp"])):
        _check_number(key, value, 1e-6, 1e6, int | float)
    _check_number("the slide's mpp", slide["mpp"], 1e-6, 1e6, int | float)
    _check_number("patch", parameters["patch"], 1, _MAX_PATCH, int)
    _check_number("step", parameters["step"], 1, parameters["patch"], int)
    scale = parameters["mpp"] / slide["mpp"]
    for key, value, expected, slack in (
        ("height", provenance["height"], slide["height"] / scale, 1),
        ("width", provenance["width"], slide["width"] / scale, 1),
        ("side_level0", parameters["side_level0"], parameters["patch"] * scale, 1e-3),
    ):
        if not abs(value - expected) <= slack + 1e-6 * expected:
            raise ValueError(f"{key} is {value}, and {expected:g} by the slide's size and mpp")
    sides = np.array([provenance["height"], provenance["width"]])
    # CLAM's patches reach over the slide's edge, by nearly a patch.
    if (grid < 0).any() or (grid > (sides - 1) // parameters["step"]).any():
        raise ValueError("the grid has patches outside the slide")
    expected_centers = (grid * parameters["step"] + parameters["patch"] / 2) * scale
    if not (np.abs(embeddings.centers - expected_centers) <= 1).all():
        raise ValueError("centers and grid contradict each other")


def _check_number(name: str, value: Any, least: float, most: float, kind: Any) -> None:
    if not isinstance(value, kind) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r:.40}")
