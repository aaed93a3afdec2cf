"""The areas of a slide's clusters, as CSV."""

import os
from collections.abc import Sequence

import numpy as np

from fseg_jax.files.atomic import replace_atomically
from fseg_jax.outputs.colours import format_hex
from fseg_jax.outputs.csv_table import format_csv

_COLUMNS = ("cluster", "name", "colour", "pixels", "area_mm2", "share")


def write_areas(
    path: str | os.PathLike[str], names: Sequence[str], pixels: np.ndarray, mpp: float, *, colours: np.ndarray
) -> None:
    """Write the area of each cluster as CSV: cluster, name, colour, pixels, area_mm2, share of the tissue.

    Args:
        path: The file.
        names: Names of the k clusters.
        pixels: (k + 1,), the pixels of each label; 0 is background, which is no tissue.
        mpp: µm per pixel.
        colours: uint8 (k, 3), the clusters' colours.

    Raises:
        OutputError: The file cannot be written.
    """
    tissue = max(1, int(pixels[1:].sum()))
    rows = [
        {
            "cluster": label,
            "name": name,
            "colour": format_hex(colour),
            "pixels": count,
            "area_mm2": f"{count * mpp**2 * 1e-6:.6f}",
            "share": f"{count / tissue:.6f}",
        }
        for label, (name, colour) in enumerate(zip(names, colours, strict=True), 1)
        for count in [int(pixels[label])]
    ]
    with replace_atomically(path) as part:
        part.write_text(format_csv(_COLUMNS, rows), encoding="utf-8")
