"""Images of many sizes in arrays of one shape, so that one program serves them all.

Each image lies in the top left corner of its frame, its edges replicated to the right and below. Its
features are to be those that it has alone, so whatever looks around itself asks here where the image ends: a
convolution finds zeros beyond it, attention no tokens, a mean no values, and positions are those of the
image's own grid. Unless an encoder is traced within ``framed``, images fill their arrays, and nothing here
does anything.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class _Frame(NamedTuple):
    sizes: Int[Array, "b 2"]  # of the images, in pixels
    sides: tuple[int, int]  # of the frame


_FRAME: ContextVar[_Frame | None] = ContextVar("frame", default=None)


@contextmanager
def declare_sizes(sizes: Int[Array, "b 2"], height: int, width: int) -> Iterator[None]:
    """Say, while a function of frames of ``height × width`` pixels is traced, how large the images in them
    are: rows and columns in pixels, multiples of the encoder's stride.
    """
    token = _FRAME.set(_Frame(sizes, (height, width)))
    try:
        yield
    finally:
        _FRAME.reset(token)


def get_grid_sizes(h: int, w: int) -> Int[Array, "b 2"] | None:
    """How many rows and columns of a grid of ``h × w`` belong to each image; None where all do."""
    frame = _FRAME.get()
    if frame is None:
        return None
    height, width = frame.sides
    return jnp.stack([frame.sizes[:, 0] * h // height, frame.sizes[:, 1] * w // width], axis=1)


def mask_grid(h: int, w: int) -> Bool[Array, "b h w"] | None:
    """Which places of a grid of ``h × w`` belong to each image; None where all do."""
    sizes = get_grid_sizes(h, w)
    if sizes is None:
        return None
    rows, columns = (
        jnp.arange(n)[None] < size[:, None]
        for n, size in zip((h, w), (sizes[:, 0], sizes[:, 1]), strict=True)
    )
    return rows[:, :, None] & columns[:, None]


def mask_tokens(patch: int, prefix: int) -> Bool[Array, "b n"] | None:
    """Which tokens of a transformer belong to each image, the first ``prefix`` always; None where all do."""
    frame = _FRAME.get()
    if frame is None:
        return None
    own = mask_grid(frame.sides[0] // patch, frame.sides[1] // patch)
    assert own is not None
    return jnp.pad(own.reshape(len(own), -1), ((0, 0), (prefix, 0)), constant_values=True)


def repeat_edges(x: Float[Array, "*b h w"], size: Int[Array, "2"]) -> Float[Array, "*b h w"]:
    """The same, but beyond so many rows and columns what is at their edge."""
    rows, columns = (jnp.minimum(jnp.arange(n), size[axis] - 1) for axis, n in enumerate(x.shape[-2:]))
    return x[..., rows[:, None], columns[None]]


def clear_outside(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """The same, but zero beyond each image: what a convolution's own padding is at an edge."""
    own = mask_grid(*x.shape[1:3])
    return x if own is None else jnp.where(own[..., None], x, 0)
