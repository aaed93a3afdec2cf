"""What part of each cluster lies at the border of tissue."""

import math

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from fseg_jax.outputs.labels import LabelPyramid
from fseg_jax.slides.tissue import Tissue

_DEPTH = 32.0  # µm from the border
_MPP = 4.0  # of the level that is looked at
_ROWS = 1024  # that are read at once
_BLOCK = 256  # pixels of the mask's side in which distances are measured


def measure_border_shares(pyramid: LabelPyramid, tissue: Tissue) -> Float[np.ndarray, " k"]:
    """Measure the share of each cluster's area that lies within 32 µm of the border of tissue.

    The slide's frame is no border. Labels are looked at where they have about 4 µm a pixel, and the distance
    to the border is that of the tissue's mask. A cluster that is not there has 0.
    """
    k = len(pyramid.names)
    all_pixels, near_pixels = np.zeros(k + 1, np.int64), np.zeros(k + 1, np.int64)
    if tissue.mask.all():
        return np.zeros(k)
    is_near = find_near_border(tissue.mask, _DEPTH / tissue.mpp)
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


def find_near_border(mask: Bool[np.ndarray, "h w"], depth: float) -> Bool[np.ndarray, "h w"]:
    """Find the pixels of a mask at most ``depth`` pixels from its border, and those outside it.

    Distances are measured in blocks that the border passes through or near to, which few do.
    """
    is_near = ~mask
    reach = math.ceil(depth + 0.5) + 1
    for y in range(0, mask.shape[0], _BLOCK):
        for x in range(0, mask.shape[1], _BLOCK):
            top, left = max(0, y - reach), max(0, x - reach)
            part = mask[top : y + _BLOCK + reach, left : x + _BLOCK + reach]
            inner = np.s_[y - top : y - top + _BLOCK, x - left : x - left + _BLOCK]
            if part.all() or not part[inner].any():
                continue
            near = ndimage.distance_transform_edt(part)[inner] - 0.5 <= depth
            is_near[y : y + _BLOCK, x : x + _BLOCK] = near
    return is_near
