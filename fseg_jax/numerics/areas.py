"""Sums over rectangles of a mask, from its summed-area table (Crow 1984). Host side, NumPy."""

import numpy as np
from jaxtyping import Bool, Int64


def summed_area_table(mask: Bool[np.ndarray, "h w"]) -> Int64[np.ndarray, "h+1 w+1"]:
    """Count the true pixels above and to the left of every corner between pixels.

    The count of any rectangle is then four look-ups.

    >>> table = summed_area_table(np.array([[True, False], [True, True]]))
    >>> table.tolist()
    [[0, 0, 0], [0, 1, 1], [0, 2, 3]]
    >>> int(table[2, 2] - table[1, 2] - table[2, 0] + table[1, 0])  # the second row
    2
    """
    table = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int64)
    table[1:, 1:] = mask.cumsum(0).cumsum(1)
    return table
