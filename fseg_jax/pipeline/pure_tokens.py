"""Which tokens are of one tissue: deep in it, and like their neighbours.

A token whose receptive field holds glass, or two tissues, is a mixture. Centres fitted on mixtures too would
name some: shells round every piece of tissue, bands between tissues.
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from fseg_jax.numerics.axes import normalize
from fseg_jax.slides.tissue import Tissue

DEPTH = 40.0  # µm from the tissue's border, from which on a token sees hardly any glass
# Tokens of a kind, pure or at the border, for each centre that is fitted on them alone. With fewer pure ones,
# centres are fitted on all tokens; with fewer at the border, there are no mixtures.
TOKENS_PER_CENTER = 16
_PURE_SHARE = 0.5  # of the deep tokens: those that differ least from their neighbours


def find_deep(tissue: Tissue) -> Tissue:
    """Mask what lies at least 40 µm from the border of tissue; the slide's frame is no border."""
    if tissue.mask.all():
        return tissue
    return tissue._replace(mask=ndimage.distance_transform_edt(tissue.mask) * tissue.mpp >= DEPTH)


def measure_change(A: Float[np.ndarray, "t t c"]) -> Float[np.ndarray, "t t"]:
    """Measure how much each token differs from its four neighbours, as unit vectors."""
    unit = normalize(A.astype(np.float32))
    change = np.zeros(A.shape[:2], np.float32)
    count = np.zeros(A.shape[:2], np.float32)
    for before, after in (
        ((slice(None, -1), slice(None)), (slice(1, None), slice(None))),
        ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
    ):
        difference = np.linalg.norm(unit[after] - unit[before], axis=-1)
        for side in (before, after):
            change[side] += difference
            count[side] += 1
    return change / np.maximum(count, 1)


def find_pure(deep: Bool[np.ndarray, "*n"], change: Float[np.ndarray, "*n"]) -> Bool[np.ndarray, "*n"]:
    """Find tokens of one tissue: of those deep in it, the half that differs least from its neighbours."""
    if not deep.any():
        return deep
    return np.asarray(deep & (change <= np.quantile(change[deep], _PURE_SHARE)))
