"""Images of many sizes in arrays of one shape, so that one program serves them all.

Each image lies in the top left corner of its frame; its edges are replicated to the right and below. Its
features shall be those that it has alone. So every layer that looks at neighbours asks this module where the
image ends: a convolution finds zeros beyond it, attention no tokens, a mean no values, and positions are
those of the image's own grid. Outside of ``declare_sizes``, images fill their arrays and nothing is masked.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class _Frame(NamedTuple):
    sizes: Int[Array, "b 2"]  # rows and columns of the images, pixels
    sides: tuple[int, int]  # rows and columns of the frame, pixels


_FRAME: ContextVar[_Frame | None] = ContextVar("frame", default=None)


@contextmanager
def declare_sizes(sizes: Int[Array, "b 2"], height: int, width: int) -> Iterator[None]:
    """Declare, while an encoder is traced on frames of ``height × width``, the sizes of the images in them.

    ``sizes`` are rows and columns in pixels, multiples of the encoder's stride.
    """
    token = _FRAME.set(_Frame(sizes, (height, width)))
    try:
        yield
    finally:
        _FRAME.reset(token)


def get_grid_sizes(h: int, w: int, copies: int = 1) -> Int[Array, "b 2"] | None:
    """Get the rows and columns of a grid of ``h × w`` that belong to each image; None where all do.

    ``copies`` is how often each image follows itself in the batch.
    """
    frame = _FRAME.get()
    if frame is None:
        return None
    height, width = frame.sides
    sizes = jnp.stack([frame.sizes[:, 0] * h // height, frame.sizes[:, 1] * w // width], axis=1)
    return jnp.repeat(sizes, copies, axis=0)


def mask_grid(h: int, w: int) -> Bool[Array, "b h w"] | None:
    """Mask the places of a grid of ``h × w`` that belong to each image; None where all do."""
    sizes = get_grid_sizes(h, w)
    if sizes is None:
        return None
    rows, columns = (
        jnp.arange(n)[None] < size[:, None]
        for n, size in zip((h, w), (sizes[:, 0], sizes[:, 1]), strict=True)
    )
    return rows[:, :, None] & columns[:, None]


def mask_tokens(patch: int, prefix: int, copies: int = 1) -> Bool[Array, "b n"] | None:
    """Mask the tokens of a transformer that belong to each image; None where all do.

    The first ``prefix`` tokens always belong to it. ``copies`` is how often each image follows itself in the
    batch.
    """
    frame = _FRAME.get()
    if frame is None:
        return None
    mask = mask_grid(frame.sides[0] // patch, frame.sides[1] // patch)
    assert mask is not None
    mask = jnp.repeat(mask, copies, axis=0)
    return jnp.pad(mask.reshape(len(mask), -1), ((0, 0), (prefix, 0)), constant_values=True)


def repeat_edges(x: Float[Array, "*b h w"], size: Int[Array, "2"]) -> Float[Array, "*b h w"]:
    """Replace values beyond the first ``size`` rows and columns by the nearest within them."""
    rows, columns = (jnp.minimum(jnp.arange(n), size[axis] - 1) for axis, n in enumerate(x.shape[-2:]))
    return x[..., rows[:, None], columns[None]]


def clear_outside(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Set values beyond each image to zero, as a convolution pads an image that ends there."""
    mask = mask_grid(*x.shape[1:3])
    return x if mask is None else jnp.where(mask[..., None], x, 0)
