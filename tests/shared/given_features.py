"""Features like those of an encoder, and an encoder that returns given features."""

import jax.numpy as jnp
import numpy as np
from scipy.ndimage import map_coordinates

from fseg_jax.encoders.encoder import EncoderCard

STRIDE = 16


def draw_smooth_features(h: int, w: int, c: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw features that mix k centres smoothly, under noise; return the features and the centres.

    Features are float32 (h, w, c), centres float32 (k, c).
    """
    r = np.random.default_rng(seed)
    centers = r.gamma(0.5, size=(k, c))
    fields = r.normal(size=(k, h // 4 + 2, w // 4 + 2))
    grid = np.mgrid[0 : h // 4 + 1 : h * 1j, 0 : w // 4 + 1 : w * 1j]
    W = np.exp(3 * np.stack([map_coordinates(f, grid, order=1) for f in fields], -1))
    A = (W / W.sum(-1, keepdims=True)) @ centers * r.gamma(8, 1 / 8, size=(h, w, c))
    return A.astype(np.float32), centers.astype(np.float32)


class FixedEncoder:
    """An encoder that returns the same features for every image."""

    def __init__(self, features: np.ndarray):
        self.features = features
        self.card = EncoderCard(
            "given", "x", features.shape[-1], STRIDE, 512, 1.0, (0.0,) * 3, (1.0,) * 3, "none", "none", ""
        )

    def __call__(self, images):
        return jnp.asarray(self.features)[None]


def make_blank_image(A: np.ndarray) -> np.ndarray:
    """Make a black image of the size that features cover."""
    return np.zeros((A.shape[0] * STRIDE, A.shape[1] * STRIDE, 3), np.uint8)
