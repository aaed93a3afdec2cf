"""A picture of tissue, its embedding, and seeds on it."""

from pathlib import Path
from typing import Any

from fseg_jax import open_slide
from fseg_jax.encoders.classical import classical
from fseg_jax.pipeline.embed import PatchSettings, embed_slide
from fseg_jax.pipeline.patch_records import PatchEncoder, PatchParameters, PatchProvenance
from fseg_jax.pipeline.slide_facts import SlideFacts

ENCODER = classical()
SETTINGS = PatchSettings(patch=64, mpp=1.0, batch=4)
SEEDS = {
    "classes": ["stroma", "crypt"],
    "seeds": [{"x": 300, "y": 60, "class": "stroma"}, {"x": 100, "y": 150, "class": "Crypt"}],
}


def make_facts(height: int, width: int, patch: int, step: int) -> PatchProvenance:
    """Make the provenance of patches at 1 µm per pixel, with the tissue's mask at the same resolution."""
    slide = SlideFacts("slide.png", None, "", height, width, 1.0)
    parameters = PatchParameters(patch, 1 - step / patch, 1.0, "find", 0.25, "float32", None, step, patch)
    encoder = PatchEncoder(ENCODER.card)
    return PatchProvenance(1, "SIC", {}, "cpu", slide, encoder, parameters, height, width, 1.0, 1)


def embed(picture: Path, out: Path, settings: PatchSettings = SETTINGS, **options: Any) -> dict[str, Any]:
    with open_slide(picture, 1.0) as slide:
        return embed_slide(slide, out, ENCODER, settings, **options)
