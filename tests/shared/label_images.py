"""Label images with regions of many forms."""

import numpy as np

from fseg_jax.outputs.labels import choose_label_dtype


def draw_smooth_labels(shape, k, seed=0):
    """Draw rounded regions of up to six labels in a round piece of tissue."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    rng = np.random.default_rng(seed)
    waves = [
        sum(np.sin(a * x / 40 + b * y / 40 + c) for a, b, c in rng.uniform(-2, 2, (4, 3)))
        for _ in range(min(k, 6))
    ]
    labels = (np.argmax(waves, axis=0) + 1).astype(choose_label_dtype(k))
    h, w = shape
    labels[(y - h / 2) ** 2 / h**2 + (x - w / 2) ** 2 / w**2 > 0.2] = 0
    return labels
