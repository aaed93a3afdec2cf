"""Unsupervised segmentation of pathology slides, at cohort scale, on CPU, GPU or TPU.

Every public name, loaded when it is first used, so that ``fseg --help`` does not wait for JAX.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Codebook": "codebook",
    "Encoder": "encoders.encoder",
    "EncoderCard": "encoders.encoder",
    "InputError": "errors",
    "KMeansResult": "numerics.kmeans",
    "NMFResult": "numerics.nmf",
    "Settings": "pipeline.plan",
    "SlideFeatures": "pipeline.features",
    "load_encoder": "encoders.load",
    "open_features": "pipeline.features",
    "open_slide": "slides.reader",
    "segment": "pipeline.image",
    "segment_slide": "pipeline.segment",
}
_MODULES = ("kmeans", "nmf")

__all__ = [
    "Codebook",
    "Encoder",
    "EncoderCard",
    "InputError",
    "KMeansResult",
    "NMFResult",
    "Settings",
    "SlideFeatures",
    "kmeans",
    "load_encoder",
    "nmf",
    "open_features",
    "open_slide",
    "segment",
    "segment_slide",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"fseg_jax.numerics.{name}")
    if name in _HOMES:
        return getattr(import_module(f"fseg_jax.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'fseg_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
