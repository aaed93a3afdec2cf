"""Patches, or dense tokens, as other programs read them: HDF5 of TRIDENT's layout, and parquet."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from fseg_jax.errors import InputError, OutputError
from fseg_jax.outputs.embeddings import Embeddings
from fseg_jax.outputs.patch_h5 import write_patch_file
from fseg_jax.pipeline.features import SlideFeatures
from fseg_jax.pipeline.patch_records import read_provenance
from fseg_jax.pipeline.slide_facts import SlideFacts

_ROWS = 4096
_MAGNIFICATION = 10.0  # µm per pixel times magnification


class PatchTable(NamedTuple):
    """Features with their places, whatever they are of.

    Attributes:
        corners: (n, 2), (x, y) of the squares' corners in level-0 pixels.
        channels: Channels of a feature.
        attributes: What TRIDENT states of its patches.
        parts: The features in order, float32 (m, channels) each.
    """

    corners: Float[np.ndarray, "n 2"]
    channels: int
    attributes: dict[str, Any]
    parts: Iterator[Float[np.ndarray, "m channels"]]


def tabulate_patches(embedded: Embeddings) -> PatchTable:
    """Tabulate a slide's patches."""
    facts = read_provenance(embedded)
    side = facts.parameters.side_level0
    step = facts.parameters.step * side / facts.parameters.patch
    store = embedded.embeddings

    def read() -> Iterator[np.ndarray]:
        for first in range(0, store.shape[0], _ROWS):
            yield np.asarray(store[first : min(first + _ROWS, store.shape[0])].read().result(), np.float32)

    attributes = _describe(facts.slide, facts.parameters.patch, side, side - step, facts.parameters.mpp)
    attributes["encoder"] = facts.encoder.card.name
    return PatchTable(embedded.centers[:, ::-1] - side / 2, store.shape[1], attributes, read())


def tabulate_tokens(features: SlideFeatures) -> PatchTable:
    """Tabulate a slide's dense tokens."""
    slide = SlideFacts.from_json(features.made_with["slide"])
    mpp, side = features.made_with["mpp"], features.side_um / slide.mpp
    attributes = _describe(slide, round(features.side_um / mpp), side, 0.0, mpp)
    attributes["encoder"] = features.made_with["encoder"]["name"]
    return PatchTable(
        features.centres - side / 2, features.channels, attributes, features.read_batches(_ROWS)
    )


def _describe(slide: SlideFacts, patch: int, side: float, overlap: float, mpp: float) -> dict[str, Any]:
    return {
        "patch_size": patch,
        "patch_size_level0": round(side),
        "level0_magnification": round(_MAGNIFICATION / slide.mpp),
        "target_magnification": round(_MAGNIFICATION / mpp),
        "overlap": round(overlap),
        "level0_width": slide.width,
        "level0_height": slide.height,
        "level0_mpp": slide.mpp,
        "name": Path(slide.path).stem,
        "savetodir": None,
    }


def write_embeddings_h5(path: Path, embedded: Embeddings) -> None:
    """Write a slide's patches as HDF5 (``outputs.patch_h5``)."""
    write_table_h5(path, tabulate_patches(embedded))


def write_table_h5(path: Path, table: PatchTable) -> None:
    """Write features with their places as HDF5 (``outputs.patch_h5``)."""
    write_patch_file(path, table.parts, table.corners, table.channels, table.attributes)


def write_table_parquet(path: Path, table: PatchTable) -> None:
    """Write features with their places as parquet: ``x``, ``y``, ``side`` and the list ``features``.

    Raises:
        InputError: The package pyarrow is not installed.
        OutputError: The file cannot be written.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError("parquet needs the package pyarrow: pip install 'fseg-jax[parquet]'") from None
    vector = pyarrow.list_(pyarrow.float32(), table.channels)
    schema = pyarrow.schema(
        [("x", pyarrow.float64()), ("y", pyarrow.float64()), ("features", vector)],
        metadata={key: str(value) for key, value in table.attributes.items()},
    )
    first = 0
    try:
        with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
            for part in table.parts:
                corners = table.corners[first : first + len(part)]
                values = pyarrow.FixedSizeListArray.from_arrays(part.ravel(), table.channels)
                columns = [pyarrow.array(corners[:, 0]), pyarrow.array(corners[:, 1]), values]
                writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))
                first += len(part)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None
