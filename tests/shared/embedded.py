"""A picture of tissue, its embedding, and seeds on it."""

from pathlib import Path
from typing import Any

from fseg_jax import open_slide
from fseg_jax.encoders.classical import classical
from fseg_jax.pipeline.embed import PatchSettings, embed_slide

ENCODER = classical()
SETTINGS = PatchSettings(patch=64, mpp=1.0, batch=4)
SEEDS = {
    "classes": ["stroma", "crypt"],
    "seeds": [{"x": 300, "y": 60, "class": "stroma"}, {"x": 100, "y": 150, "class": "Crypt"}],
}


def embed(picture: Path, out: Path, chosen: PatchSettings = SETTINGS, **options: Any) -> dict[str, Any]:
    with open_slide(picture, 1.0) as slide:
        return embed_slide(slide, out, ENCODER, chosen, **options)
