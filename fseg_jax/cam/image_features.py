"""The features that images are clustered by: LIRE's, or the mean of an encoder's."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Array, Float

from fseg_jax.cam.batching import Batch, map_batches
from fseg_jax.cam.image_folder import resize_images
from fseg_jax.cam.image_labels import LabelledFolder
from fseg_jax.errors import InputError
from fseg_jax.files.kinds import suggest_names
from fseg_jax.process import Progress

LIRE = "lire"  # the paper's four features, in LIRE's scales
LIRE_EVEN = "lire-even"  # the same, scaled so that none outweighs the others
LIRE_SIDE = 256  # pixels of the images that LIRE's features are taken from


def describe_images(
    images: LabelledFolder, name: str, progress: Progress | None = None
) -> tuple[Float[np.ndarray, "n c"], LabelledFolder]:
    """Describe each readable image by the features called ``name``, and return these images with them.

    ``name`` is "lire", "lire-even" or an encoder's name; an encoder's features are averaged over the image.

    Raises:
        InputError: The name is none of these, or no image can be read.
    """
    side, describe = _load_descriptor(name)
    resized = resize_images(images.files, side, progress)
    total = len(resized.files)
    done = partial(_report, progress, total) if progress else None
    X = map_batches(describe, resized.images, done=done)
    if name == LIRE_EVEN:
        from fseg_jax.cam.global_features import scale_evenly

        X = scale_evenly(X)
    return X, images.without([path for path, _ in resized.unreadable])


def _report(progress: Progress, total: int, done: int) -> None:
    progress("describe images", done, total)


def _load_descriptor(name: str) -> tuple[int, Callable[[Batch], Float[Array, "batch c"]]]:
    """Load the function from a batch to its features, and the side of the images that it takes."""
    if name in (LIRE, LIRE_EVEN):
        from fseg_jax.cam.global_features import global_features

        return LIRE_SIDE, lambda batch: global_features(batch)
    from fseg_jax.encoders.catalog.published import CATALOG
    from fseg_jax.encoders.load import load_encoder

    near = suggest_names(name, (LIRE, LIRE_EVEN))
    if near and name.lower() not in CATALOG and not Path(name).exists():
        raise InputError(f"--features {name}: {near}it is lire, lire-even, or an encoder's name")
    encoder = load_encoder(name)
    return encoder.card.tile, lambda batch: encoder(batch).mean((1, 2))
