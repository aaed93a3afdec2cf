"""Operations on planes of pixels: averages, reductions, smooth surfaces, masks grown and shrunk."""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

Plane = Float[np.ndarray, "h w"]
Planes = Float[np.ndarray, "3 h w"]
Colour = Float[np.ndarray, "3"]
Mask = Bool[np.ndarray, "h w"]


def compute_density(levels: np.ndarray) -> np.ndarray:
    """Turn grey levels into optical density."""
    return np.asarray(np.log(np.float32(256) / (levels + np.float32(1))) * np.float32(1 / np.log(10)))


def fit_surface(values: Float[np.ndarray, "c h w"], where: Mask, side: int) -> Float[np.ndarray, "c h w"]:
    """Extend values from where they are known over the whole plane, as a smooth surface."""
    height, width = where.shape
    weight = reduce_plane(where.astype(np.float32), side)
    result = np.empty(values.shape, np.float32)
    for channel, plane in enumerate(values):
        total = reduce_plane(plane * where, side)
        result[channel] = enlarge(_fill_from_coarser(total, weight), side)[:height, :width]
    return result


def _fill_from_coarser(total: Plane, weight: Plane) -> Plane:
    """Fill cells of little weight from coarser cells, and smooth slightly."""
    total, weight = _smooth(total), _smooth(weight)
    full = np.minimum(weight, 0.25) / 0.25
    value = total / np.maximum(weight, 1e-6)
    if min(weight.shape) <= 1 or (weight > 0.25).all():
        everywhere = total.sum() / max(float(weight.sum()), 1e-6)
        return np.asarray(value * full + everywhere * (1 - full), np.float32)
    below = _fill_from_coarser(reduce_plane(value * full, 2), reduce_plane(full, 2))
    coarse = enlarge(below, 2)[: value.shape[0], : value.shape[1]]
    return np.asarray(value * full + coarse * (1 - full))


def _smooth(plane: Plane) -> Plane:
    for axis in (0, 1):
        plane = ndimage.correlate1d(plane, [0.25, 0.5, 0.25], axis=axis, mode="nearest")
    return plane


def average(plane: Plane, side: int) -> Plane:
    """Average over the square of ``side`` pixels round each pixel."""
    return np.asarray(ndimage.uniform_filter(plane, side, mode="nearest"))


def make_odd(pixels: float) -> int:
    """Round to an odd number, 3 or more."""
    return max(3, 2 * int(pixels / 2) + 1)


def reduce_image(image: UInt8[np.ndarray, "H W 3"], step: int) -> Planes:
    """Average blocks of ``step`` × ``step`` pixels, channel by channel; the last ones repeat the edge."""
    return np.stack([reduce_plane(image[..., channel], step) for channel in range(3)])


def reduce_plane(plane: np.ndarray, step: int) -> Plane:
    """Average blocks of ``step`` × ``step`` pixels, float32; the last ones repeat the edge."""
    if step == 1:
        return plane.astype(np.float32)
    pad = (-plane.shape[0] % step, -plane.shape[1] % step)
    if any(pad):
        plane = np.pad(plane, ((0, pad[0]), (0, pad[1])), mode="edge")
    rows = plane[::step].astype(np.float32)
    for i in range(1, step):
        rows += plane[i::step]
    total = rows[:, ::step].copy()
    for i in range(1, step):
        total += rows[:, i::step]
    return total * np.float32(1 / step**2)


def repeat(mask: Mask, step: int) -> Mask:
    """Repeat each pixel ``step`` times down and across."""
    return mask.repeat(step, 0).repeat(step, 1) if step > 1 else mask.copy()


def enlarge(plane: Plane, factor: int) -> Plane:
    """Enlarge by a whole factor, linear between the centres of pixels."""
    for axis in (1, 0):
        plane = plane.T if axis == 1 else plane
        padded = np.pad(plane, ((1, 1), (0, 0)), mode="edge")
        result = np.empty((plane.shape[0] * factor, plane.shape[1]), np.float32)
        for i in range(factor):
            offset = (i + 0.5) / factor - 0.5
            first = 0 if offset < 0 else 1
            share = np.float32(offset + 1 - first)
            before, after = (padded[k : k + plane.shape[0]] for k in (first, first + 1))
            result[i::factor] = before * (1 - share) + after * share
        plane = np.ascontiguousarray(result.T) if axis == 1 else result
    return plane


def keep_seeded(mask: Mask, seeds: Mask) -> Mask:
    """Keep the connected pieces of a mask that hold a seed."""
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    kept = np.zeros(count + 1, bool)
    kept[labels[seeds]] = True
    kept[0] = False
    return np.asarray(kept[labels])


def drop_small(mask: Mask, pixels: float) -> Mask:
    """Drop the connected pieces of fewer pixels."""
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    kept = np.bincount(labels.ravel(), minlength=count + 1) >= pixels
    kept[0] = False
    return np.asarray(kept[labels])


def dilate(mask: Mask, radius: int) -> Mask:
    """Dilate by an octagon: squares and crosses of one pixel in turn."""
    for i in range(radius):
        grown = mask.copy()
        grown[1:] |= mask[:-1]
        grown[:-1] |= mask[1:]
        across = grown if i % 2 == 0 else mask
        result = grown.copy()
        result[:, 1:] |= across[:, :-1]
        result[:, :-1] |= across[:, 1:]
        mask = result
    return mask


def erode(mask: Mask, radius: int) -> Mask:
    """Erode by an octagon."""
    return ~dilate(~mask, radius)


def close_mask(mask: Mask, radius: int) -> Mask:
    """Close gaps narrower than twice the radius; the frame closes none."""
    closed = erode(dilate(np.pad(mask, radius), radius), radius)
    return np.asarray(closed[radius:-radius, radius:-radius] | mask)
