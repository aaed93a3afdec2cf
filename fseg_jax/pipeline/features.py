"""The public reader of kept features, ``NAME.features.zarr``: tokens, and where they lie."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fseg_jax.errors import InputError
from fseg_jax.files.storage import open_storage
from fseg_jax.pipeline.tokens import KEPT_SUFFIX, KeptFeatures, read_kept, read_rows


class SlideFeatures:
    """The features of a slide's tokens, each token of tissue once, from the top row of tiles down.

    Attributes:
        channels: Channels of a token.
        centres_um: float64 (n, 2), (x, y) of the tokens' centres in µm from the corner that the slide's
            coordinates count from.
        centres: float64 (n, 2), the same in pixels of the slide's finest level.
        side_um: µm of a token's side.
        made_with: What made them: ``slide`` (path, identity, height, width, mpp, frame), ``encoder`` (its
            card), ``mpp`` and ``dtype``.
        grid: int64 (n, 2), (row, column) of the tokens in the grid over the whole slide.
    """

    def __init__(self, kept: KeptFeatures) -> None:
        self._kept = kept
        plan = kept.plan
        stride, halo, pitch = plan.grid.stride, plan.grid.halo // plan.grid.stride, plan.grid.pitch
        cells, rows = [], []
        for index, (row, column) in enumerate(kept.tiles.tolist()):
            inside = np.argwhere(plan.core_mask(row, column))
            rows.append(np.column_stack([np.full(len(inside), index), inside]))
            cells.append(inside - halo + np.array([row, column]) * (pitch // stride))
        self._at = np.concatenate(rows) if rows else np.zeros((0, 3), np.int64)
        self.grid: Int[np.ndarray, "n 2"] = np.concatenate(cells) if cells else np.zeros((0, 2), np.int64)
        self.channels = int(kept.rows.shape[3])
        self.side_um = plan.mpp * stride
        self.centres_um: Float[np.ndarray, "n 2"] = (self.grid[:, ::-1] + 0.5) * self.side_um
        self.centres: Float[np.ndarray, "n 2"] = self.centres_um / plan.slide.mpp
        self.made_with: dict[str, Any] = {
            key: kept.provenance[key] for key in ("slide", "encoder", "mpp", "dtype")
        }

    def __len__(self) -> int:
        return len(self._at)

    def read(self, first: int = 0, after: int | None = None) -> Float[np.ndarray, "m channels"]:
        """Read the features of tokens ``first`` … ``after`` - 1 (to the last without): float32.

        Raises:
            InputError: The file is damaged.
        """
        at = self._at[first:after]
        if not len(at):
            return np.zeros((0, self.channels), np.float32)
        start = int(at[0, 0])
        values = read_rows(self._kept, slice(start, int(at[-1, 0]) + 1))
        return np.asarray(values[at[:, 0] - start, at[:, 1], at[:, 2]], np.float32)

    def read_batches(self, tokens: int = 65536) -> Iterator[Float[np.ndarray, "m channels"]]:
        """Read all features in order, ``tokens`` at a time, so that memory does not grow with the slide."""
        for first in range(0, len(self), tokens):
            yield self.read(first, first + tokens)


def open_features(path: str | Path) -> SlideFeatures:
    """Open the features that ``fseg cohort --keep-features`` kept of a slide.

    Args:
        path: ``NAME.features.zarr``, in a folder or at ``s3://`` or ``gs://``.

    Raises:
        InputError: There are none, or they are damaged.
    """
    text = str(path).rstrip("/")
    place, _, name = text.rpartition("/")
    if not name.endswith(KEPT_SUFFIX):
        raise InputError(f"{path}: is not called NAME{KEPT_SUFFIX}, as kept features are")
    return SlideFeatures(read_kept(open_storage(place or "."), name.removesuffix(KEPT_SUFFIX)))
