"""Models that were trained on images and words: both come out in one space, where likeness is a cosine.

What lies in that space is the embedding of a whole image. The tokens of its patches, which F-SEG clusters, do
not: nothing has taught them to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, UInt8

from fseg_jax.encoders.catalog.names import find_row
from fseg_jax.encoders.catalog.published import CATALOG
from fseg_jax.encoders.catalog.row import Row, TextRow
from fseg_jax.encoders.kernels.products import trace_products
from fseg_jax.encoders.load import load_network
from fseg_jax.encoders.precision import parse_dtype
from fseg_jax.encoders.side_by_side import SIGN
from fseg_jax.encoders.text.tokenizer import Tokenizer
from fseg_jax.encoders.trained import SHIPPED
from fseg_jax.encoders.weights import cache, hub
from fseg_jax.errors import InputError
from fseg_jax.numerics.arrays import Array, Images

_PROMPTS = 16  # that are embedded at once


class ImageTextModel(Protocol):
    """Anything that embeds images and texts in one space, in which vectors have length one."""

    @property
    def name(self) -> str:
        """The model's name."""
        ...

    @property
    def side(self) -> int:
        """Side in pixels of the images that it was published for."""
        ...

    @property
    def scale(self) -> float:
        """What a cosine is multiplied by before the softmax: the inverse of the model's temperature."""
        ...

    def embed_images(self, images: UInt8[np.ndarray, "b side side 3"]) -> Float[np.ndarray, "b d"]:
        """Embed ``uint8 (b, side, side, 3)``."""
        ...

    def embed_texts(self, prompts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Embed prompts."""
        ...


@dataclass(frozen=True, eq=False)
class TwoTowers:
    """A vision tower and a text tower.

    Attributes:
        name: the model's name.
        side: side in pixels of the images that it was published for.
        scale: what a cosine is multiplied by before the softmax.
        tokenizer: the text tower's tokenizer.
    """

    name: str
    side: int
    scale: float
    tokenizer: Tokenizer
    _graph: Any
    _state: Any
    _normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    _dtype: str

    def embed_images(self, images: UInt8[np.ndarray, "b side side 3"]) -> Float[np.ndarray, "b d"]:
        """Embed images."""
        return np.asarray(
            _embed_images(self._graph, self._normalisation, self._dtype, self._state, jnp.asarray(images))
        )

    def embed_texts(self, prompts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Embed prompts.

        Raises:
            InputError: a prompt is too long, or has a letter that the tokenizer does not know.
        """
        tokens = self.tokenizer.encode(prompts)
        n = len(tokens)
        tokens = np.pad(tokens, ((0, -n % _PROMPTS), (0, 0)), mode="edge")  # one shape, one program
        parts = [
            _embed_texts(self._graph, self._dtype, self._state, jnp.asarray(tokens[start : start + _PROMPTS]))
            for start in range(0, len(tokens), _PROMPTS)
        ]
        return np.concatenate(parts)[:n]


@partial(jax.jit, static_argnames=("graph", "normalisation", "dtype"))
def _embed_images(
    graph: Any, normalisation: tuple[tuple[float, ...], ...], dtype: str, state: Any, images: Images
) -> Float[Array, "b d"]:
    mean, std = (jnp.asarray(values, jnp.float32) for values in normalisation)
    vision, tower = nnx.merge(graph, state)
    with trace_products(dtype):
        embedded: Array = tower.embed_image(
            vision((images.astype(jnp.float32) / 255 - mean[None, None, None]) / std[None, None, None])
        )
    return embedded


@partial(jax.jit, static_argnames=("graph", "dtype"))
def _embed_texts(graph: Any, dtype: str, state: Any, tokens: Int[Array, "b n"]) -> Float[Array, "b d"]:
    _, tower = nnx.merge(graph, state)
    with trace_products(dtype):
        embedded: Array = tower(tokens)
    return embedded


def load_image_text(
    name: str,
    *,
    weights: str | Path | None = None,
    tokenizer: str | Path | None = None,
    dtype: str = "float32",
) -> TwoTowers:
    """Load a model of images and words by the name of its encoder.

    Args:
        name: an encoder of the catalog that has a text tower.
        weights: the published checkpoint, which holds both towers, in place of the hub's.
        tokenizer: the published tokenizer, in place of the hub's.
        dtype: precision of products, as of ``load_encoder``.

    Raises:
        InputError: the encoder has no text tower; or its weights or its tokenizer are not here and cannot be
            fetched, are damaged, or are another model's.
    """
    row, text = find_text_row(name)
    path = Path(tokenizer) if tokenizer is not None else hub.fetch_tokenizer(row, text)
    reader = Tokenizer(path, text.config, text.longest, row.name)
    tower = cache.load_text_tower(row, text, Path(weights) if weights else None, parse_dtype(dtype)).tower
    network, _ = load_network(row.name, weights=weights, dtype=dtype)
    graph, state = nnx.split((network, tower))
    scale = float(np.exp(np.float64(tower.logit_scale[0])))
    normalisation = row.normalisation
    return TwoTowers(
        row.name, row.input_size, scale, reader, graph, state, (normalisation.mean, normalisation.std), dtype
    )


def find_text_row(name: str) -> tuple[Row, TextRow]:
    """Find the row of an encoder that has a text tower, and the row of that.

    Raises:
        InputError: there is no such encoder, or it has none.
    """
    known = " or ".join(row.name for row in CATALOG.values() if row.text is not None)
    is_own = name.lower() in ("classical", *SHIPPED) or name.endswith(".safetensors") or SIGN in name
    row = None if is_own else find_row(name)
    if row is None or row.text is None:
        raise InputError(
            f"the encoder {name} has no text tower, so words say nothing of its images: "
            f"give one that has with --encoder, {known}"
        )
    return row, row.text
