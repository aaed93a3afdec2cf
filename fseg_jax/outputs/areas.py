"""The areas of a slide's clusters, as CSV, with no more digits than the method can tell."""

import math
import os
from collections.abc import Sequence

import numpy as np

from fseg_jax.outputs.colours import format_hex
from fseg_jax.outputs.csv_table import write_csv

_COLUMNS = ("cluster", "name", "colour", "pixels", "area_mm2", "share", "area_step_mm2")
_BORDER = "border_share"


def count_decimals(step: float) -> int:
    """Count the decimals that a number needs whose least step is this.

    >>> [count_decimals(step) for step in (0.262144, 0.004096, 0.001, 0.000256)]
    [1, 3, 3, 4]
    """
    return max(0, math.ceil(-math.log10(step) - 1e-9))


def round_area(area_mm2: float, step_mm2: float) -> float:
    """Round an area to the digits that its least step changes.

    >>> round_area(0.137464, 0.004096)
    0.137
    """
    return round(float(area_mm2), count_decimals(step_mm2))


def write_areas(
    path: str | os.PathLike[str],
    names: Sequence[str],
    pixels: np.ndarray,
    mpp: float,
    *,
    step_mm2: float,
    colours: np.ndarray,
    border_shares: Sequence[float] | None = None,
) -> None:
    """Write the area of each cluster as CSV: cluster, name, colour, pixels, area, share of the tissue, step.

    Where it is known, ``border_share`` comes last: the share of the cluster at the border of tissue.

    Args:
        path: The file.
        names: Names of the k clusters.
        pixels: (k + 1,), the pixels of each label; 0 is background, which is no tissue.
        mpp: µm per pixel.
        step_mm2: The least area that the method tells apart, a token or the step from patch to patch: areas
            and shares have the digits that it changes.
        colours: uint8 (k, 3), the clusters' colours.
        border_shares: (k,), the share of each cluster that lies at the border of tissue; None: not known.

    Raises:
        OutputError: The file cannot be written.
    """
    tissue = max(1, int(pixels[1:].sum()))
    decimals = count_decimals(step_mm2)
    share_decimals = count_decimals(min(1.0, step_mm2 / (tissue * mpp**2 * 1e-6)))
    rows = [
        {
            "cluster": label,
            "name": name,
            "colour": format_hex(colour),
            "pixels": count,
            "area_mm2": f"{count * mpp**2 * 1e-6:.{decimals}f}",
            "share": f"{count / tissue:.{share_decimals}f}",
            "area_step_mm2": f"{step_mm2:.2g}",
        }
        for label, (name, colour) in enumerate(zip(names, colours, strict=True), 1)
        for count in [int(pixels[label])]
    ]
    columns = [*_COLUMNS]
    if border_shares is not None:
        columns.append(_BORDER)
        rows = [row | {_BORDER: f"{each:.4f}"} for row, each in zip(rows, border_shares, strict=True)]
    write_csv(path, columns, rows)
