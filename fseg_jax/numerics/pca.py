"""Principal components: many channels turned into the few coordinates that clusters are found in."""

from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fseg_jax.errors import InputError
from fseg_jax.numerics.axes import normalize
from fseg_jax.numerics.scaling import is_safe_square, safe_scale

Distance = Literal["euclidean", "cosine"]
DISTANCES: tuple[Distance, ...] = get_args(Distance)
DIMENSIONS = 64  # coordinates, at most
SLAB = 8192  # points read at once


class Coordinates(NamedTuple):
    """Points in a few coordinates.

    Attributes:
        X: the coordinates; of points whose squares are beyond float32, scaled by a power of two.
        variance_kept: the share of the points' variance that they hold.
    """

    X: Float[Array, "n q"]
    variance_kept: float


def reduce_channels(
    X: Float[Array | np.ndarray, "n c"], *, distance: str = "euclidean", dimensions: int = DIMENSIONS
) -> Coordinates:
    """Center points and rotate them onto their axes of largest variance, ``dimensions`` of them at most.

    ``X (n, c)`` float → ``(n, min(c, dimensions))`` float32. Up to ``dimensions`` channels that is exact.
    Beyond, the cost of any k clusters is kept to a share of k / dimensions (Cohen et al. 2015). With
    ``distance="cosine"`` rows are scaled to length one first, so that squared distances are 2 − 2 cos.

    Raises:
        InputError: if there is no point, or one holds a NaN or an infinity, or for another distance.
    """
    if distance not in DISTANCES:
        raise InputError(f"distance {distance!r}: choose {' or '.join(repr(d) for d in DISTANCES)}")
    n, c = X.shape
    if n == 0:
        raise InputError("there are no patches to cluster")
    slabs = [slice(i, i + SLAB) for i in range(0, n, SLAB)]
    scale = np.ones((1, 1), np.float32)

    def rows(slab: slice) -> Float[np.ndarray, "s c"]:
        x = np.asarray(X[slab], np.float32)
        return normalize(x) if distance == "cosine" else x if scale == 1 else x * scale

    total = np.zeros(c)
    for slab in slabs:
        total += rows(slab).sum(0, dtype=np.float64)
    if not np.isfinite(total).all():
        raise InputError("the embeddings hold a NaN or an infinity; look at the encoder's features")
    mean = (total / n).astype(np.float32)
    if c <= dimensions:
        return Coordinates(jnp.asarray(np.concatenate([rows(slab) - mean for slab in slabs])), 1.0)

    def sum_products() -> Float[np.ndarray, "c c"]:
        scatter = np.zeros((c, c))
        for slab in slabs:
            x = rows(slab) - mean
            scatter += x.T @ x
        return scatter

    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # the result is checked below
        scatter = sum_products()
    if not is_safe_square(np.trace(scatter) / n):
        scale = safe_scale(np.max([np.abs(rows(slab)).max() for slab in slabs], keepdims=True)[None])
        mean = mean * scale[0]
        scatter = sum_products()
    variances, axes = np.linalg.eigh(scatter)
    V = axes[:, ::-1][:, :dimensions].astype(np.float32)
    share = float(variances[-dimensions:].sum() / max(variances.sum(), np.finfo(float).tiny))
    return Coordinates(jnp.asarray(np.concatenate([(rows(slab) - mean) @ V for slab in slabs])), share)
