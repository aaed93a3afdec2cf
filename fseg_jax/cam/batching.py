"""Call a compiled function on any number of images, a batch of one size after another."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

BATCH = 16  # images

Batch = UInt8[Array, "batch side side 3"]


def map_batches(
    function: Callable[[Batch], Float[Array, "batch c"]],
    images: UInt8[np.ndarray, "n side side 3"],
    *,
    done: Callable[[int], None] | None = None,
) -> Float[np.ndarray, "n c"]:
    """Apply ``function`` to all images, 16 at a time; ``done`` hears how many are done.

    The last batch is padded with black images, so that the function compiles once.
    """
    results = []
    for begin in range(0, len(images), BATCH):
        part = images[begin : begin + BATCH]
        padding = np.zeros((BATCH - len(part), *part.shape[1:]), part.dtype)
        result = function(jnp.asarray(np.concatenate([part, padding])))
        results.append(np.asarray(result)[: len(part)])
        if done:
            done(begin + len(part))
    return np.concatenate(results)
