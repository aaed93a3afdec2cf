"""Areas as CSV: how much tissue each cluster of a slide covers."""

import os
from collections.abc import Sequence

import numpy as np

from fseg_jax.files.atomic import replace_atomically
from fseg_jax.outputs.colours import hex_colour
from fseg_jax.outputs.csv_table import csv_text

_AREAS = ("cluster", "name", "colour", "pixels", "area_mm2", "share")


def write_areas(
    path: str | os.PathLike[str], names: Sequence[str], pixels: np.ndarray, mpp: float, *, colours: np.ndarray
) -> None:
    """Write how much tissue each cluster covers as CSV: cluster, name, colour, pixels, area_mm2, share.

    ``pixels`` is int (k + 1,), per label from background on, of ``mpp`` µm; ``share`` is of all that is not
    background. Raises InputError where the file cannot be written.
    """
    tissue = max(1, int(pixels[1:].sum()))
    rows = [
        {
            "cluster": label,
            "name": name,
            "colour": hex_colour(colour),
            "pixels": count,
            "area_mm2": f"{count * mpp**2 * 1e-6:.6f}",
            "share": f"{count / tissue:.6f}",
        }
        for label, (name, colour) in enumerate(zip(names, colours, strict=True), 1)
        for count in [int(pixels[label])]
    ]
    with replace_atomically(path) as part:
        part.write_text(csv_text(_AREAS, rows), encoding="utf-8")
