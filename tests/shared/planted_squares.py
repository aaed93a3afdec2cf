"""Images in which a square is planted, and a tiny classifier to learn them."""

from dataclasses import replace

import numpy as np

from fseg_jax.cam.classifier import ClassifierSettings, LabelledImages
from fseg_jax.encoders.efficientnet.network import EfficientNetConfig

TINY = EfficientNetConfig(
    stem=8, stages=((1, 3, 1, 1, 8), (1, 3, 2, 2, 8)), features=16, num_classes=1, bn_momentum=0.5
)
SETTINGS = ClassifierSettings(size=32, epochs=6, batch=10, learning_rate=1e-2)


def configure_tiny(name: str, classes: int) -> EfficientNetConfig:
    """Stand in for ``configure_network``, so that no test compiles 23 blocks."""
    return replace(TINY, num_classes=1 if classes == 2 else classes)


def make_squares(n: int = 48, classes: int = 2, seed: int = 0) -> LabelledImages:
    """Make noise, with a bright square in images of class 1 and a dark one in those of class 2."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    images = rng.integers(60, 190, (n, 32, 32, 3)).astype(np.uint8)
    images[labels == 1, 8:24, 8:24] = 255
    images[labels == 2, 8:24, 8:24] = 0
    return LabelledImages(images, labels)
