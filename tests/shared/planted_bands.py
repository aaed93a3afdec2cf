"""Image sets of coloured bands, whose right answer is known, and an encoder of colours."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from fseg_jax.encoders.encoder import EncoderCard

STRIDE = 8
COLOURS = np.array([[230, 20, 20], [20, 230, 20], [20, 20, 230]], np.uint8)
YAML = """
name: planted
categories:
  - {name: red, value: 1}
  - {name: green, value: 2}
  - {name: blue, value: 3}
ignore: [0]
test: '^test'
"""


@dataclass(frozen=True)
class ColourEncoder:
    """An encoder whose features are the average colours of the tokens."""

    card: EncoderCard

    def __call__(self, images: jax.Array) -> jax.Array:
        b, height, width, _ = images.shape
        grid = images.reshape(b, height // STRIDE, STRIDE, width // STRIDE, STRIDE, 3)
        return grid.astype(jnp.float32).mean((2, 4)) / 255


def make_encoder(name: str = "colours", tile: int = 64) -> ColourEncoder:
    zero, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return ColourEncoder(EncoderCard(name, "mean", 3, STRIDE, tile, 1.0, zero, one, "none", "none", "0" * 64))


def write_dataset(
    folder: Path, *, images: int = 30, side: int = 64, shuffled: bool = False, yaml: str = YAML
) -> Path:
    """Write as many training as test images, each of one thick and two thin bands.

    Bands end at the borders of tokens. With ``shuffled`` every image gives its colours other categories.
    """
    rng = np.random.default_rng(5)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    tokens = side // STRIDE
    for n in range(2 * images):
        name = f"{'train' if n % 2 else 'test'}-{n:03d}"
        thickness = np.roll([tokens - 2 * (tokens // 4), tokens // 4, tokens // 4], rng.integers(3))
        plan = np.repeat(rng.permutation(3), thickness)[:, None].repeat(tokens, 1)
        pixels = np.kron(plan, np.ones((STRIDE, STRIDE), int))
        noise = rng.integers(-15, 16, (side, side, 3))
        picture = np.clip(COLOURS[pixels].astype(int) + noise, 0, 255).astype(np.uint8)
        category_of_colour = rng.permutation(3) if shuffled else np.arange(3)
        mask = (category_of_colour[pixels] + 1).astype(np.uint8)
        mask[:2] = 0
        Image.fromarray(picture).save(folder / "images" / f"{name}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
    (folder / "dataset.yaml").write_text(yaml)
    return folder
