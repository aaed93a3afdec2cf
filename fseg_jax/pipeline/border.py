"""What part of each cluster lies at the border of tissue."""

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from fseg_jax.outputs.labels import LabelPyramid
from fseg_jax.slides.tissue import Tissue

_DEPTH = 32.0  # µm from the border
_MPP = 4.0  # of the level that is looked at
_ROWS = 1024  # that are read at once


def measure_border_shares(pyramid: LabelPyramid, tissue: Tissue) -> Float[np.ndarray, " k"]:
    """Measure the share of each cluster's area that lies within 32 µm of the border of tissue.

    The slide's frame is no border. Labels are looked at where they have about 4 µm a pixel, and the distance
    to the border is that of the tissue's mask. A cluster that is not there has 0.
    """
    k = len(pyramid.names)
    all_pixels, near_pixels = np.zeros(k + 1, np.int64), np.zeros(k + 1, np.int64)
    if tissue.mask.all():
        return np.zeros(k)
    depth = (ndimage.distance_transform_edt(tissue.mask) - 0.5) * tissue.mpp
    is_near = depth <= _DEPTH
    level = pyramid.find_level(_MPP)
    mpp, (height, width) = pyramid.mpp[level], pyramid.levels[level].shape
    rows, columns = (
        np.minimum((np.arange(size) + 0.5) * mpp / tissue.mpp, limit - 1).astype(int)
        for size, limit in zip((height, width), is_near.shape, strict=True)
    )
    for top in range(0, height, _ROWS):
        labels = pyramid.read(level, slice(top, min(top + _ROWS, height)))
        near = is_near[rows[top : top + len(labels), None], columns[None]]
        all_pixels += np.bincount(labels.ravel(), minlength=k + 1)
        near_pixels += np.bincount(labels[near], minlength=k + 1)
    return np.asarray(near_pixels[1:] / np.maximum(all_pixels[1:], 1))
