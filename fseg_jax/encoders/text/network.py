"""Text towers of models that were trained on images and words, and the way of images into the same space.

KEEP's is BERT (Devlin et al. 2019): it normalises after each branch, looks both ways, and reads the first
token. CONCH's is CoCa's (Yu et al. 2022): it normalises first, looks back only, and reads a class token
behind the text. Texts and images come out as vectors of length one: their product is how alike they are.
"""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from fseg_jax.encoders.kernels.attention import attend_whole
from fseg_jax.encoders.layers import LayerNorm, Linear, gelu

PADDING = 0  # the token behind the end of a text


@dataclass(frozen=True)
class TextConfig:
    """The configuration of a text tower, and of the way of images into its space.

    Attributes:
        kind: BERT's, as in KEEP, or CoCa's, as in CONCH.
        vocabulary: number of tokens.
        positions: number of positions; CoCa's class token has the last one.
        dim: channels of a token.
        depth: number of blocks.
        heads: attention heads of a block.
        mlp_width: width of the MLP's first product.
        channels: channels of the space of images and texts.
        image_channels: channels of the vision tower's embedding.
        image_width: width of the MLP between that and the space; 0: a product alone.
        eps: number added to variances in norms.
    """

    kind: Literal["bert", "coca"]
    vocabulary: int
    positions: int
    dim: int
    depth: int
    heads: int
    mlp_width: int
    channels: int
    image_channels: int
    image_width: int
    eps: float


class TextBlock(nnx.Module):
    """Attention and MLP, each added to its input: BERT normalises the sums, CoCa what goes into a branch."""

    def __init__(self, config: TextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(config.dim, eps=config.eps)
        self.qkv = Linear(config.dim, 3 * config.dim, dtype=dtype, rounded=dtype, rngs=rngs)
        self.proj = Linear(config.dim, config.dim, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(config.dim, eps=config.eps)
        self.fc1 = Linear(config.dim, config.mlp_width, dtype=dtype, rounded=dtype, rngs=rngs)
        self.fc2 = Linear(config.mlp_width, config.dim, dtype=dtype, rngs=rngs)
        self.config, self.dtype = config, dtype

    def __call__(self, x: Float[Array, "b n c"], mask: Bool[Array, "b m n"]) -> Float[Array, "b n c"]:
        """Apply attention to the tokens of ``mask``, then the MLP."""
        if self.config.kind == "bert":
            x = self.norm1(x + self._attend(x, mask))
            return self.norm2(x + self.fc2(gelu(self.fc1(x))))
        x = x + self._attend(self.norm1(x), mask)
        return x + self.fc2(gelu(self.fc1(self.norm2(x))))

    def _attend(self, x: Float[Array, "b n c"], mask: Bool[Array, "b m n"]) -> Float[Array, "b n c"]:
        batch, tokens, channels = x.shape
        q, k, v = (
            jnp.swapaxes(part.reshape(batch, tokens, self.config.heads, -1), 1, 2).astype(self.dtype)
            for part in jnp.split(self.qkv(x), 3, axis=-1)
        )
        attended = jnp.swapaxes(attend_whole(q, k, v, mask), 1, 2)
        return self.proj(attended.reshape(batch, tokens, channels))


class TextTower(nnx.Module):
    """A text tower, with the way of an image's embedding into its space, and the model's temperature."""

    def __init__(self, config: TextConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        is_bert = config.kind == "bert"
        draw = normal(0.02)
        self.token_embed = nnx.Param(draw(rngs.params(), (config.vocabulary, config.dim), jnp.float32))
        self.pos_embed = nnx.Param(draw(rngs.params(), (config.positions, config.dim), jnp.float32))
        self.class_token = None if is_bert else nnx.Param(draw(rngs.params(), (config.dim,), jnp.float32))
        # Of the embedded tokens in BERT, of the class token at the end in CoCa.
        self.norm = LayerNorm(config.dim, eps=config.eps)
        self.blocks = nnx.List([TextBlock(config, dtype=dtype, rngs=rngs) for _ in range(config.depth)])
        self.out = Linear(config.dim, config.channels, bias=is_bert, dtype=dtype, rngs=rngs)
        width = config.image_width
        self.image_fc1 = (
            Linear(config.image_channels, width, dtype=dtype, rounded=dtype, rngs=rngs) if width else None
        )
        self.image_out = Linear(
            width or config.image_channels, config.channels, bias=width > 0, dtype=dtype, rngs=rngs
        )
        self.logit_scale = nnx.Param(jnp.zeros((1,), jnp.float32))

    def __call__(self, tokens: Int[Array, "b n"]) -> Float[Array, "b d"]:
        """Embed texts, given as tokens with ``PADDING`` behind; CoCa's have one less than the positions."""
        return _scale_to_length_one(
            self._embed_first(tokens) if self.class_token is None else self._embed_last(tokens)
        )

    def embed_image(self, embedding: Float[Array, "b c"]) -> Float[Array, "b d"]:
        """Bring the vision tower's embedding of images into the space of the texts."""
        x = embedding if self.image_fc1 is None else gelu(self.image_fc1(embedding))
        return _scale_to_length_one(self.image_out(x))

    def _embed_first(self, tokens: Int[Array, "b n"]) -> Float[Array, "b d"]:
        """Read the first token, which has seen all that are not padding."""
        x = self.norm(self.token_embed[...][tokens] + self.pos_embed[...][None, : tokens.shape[1]])
        mask = (tokens != PADDING)[:, None]
        for block in self.blocks:
            x = block(x, mask)
        return jnp.tanh(self.out(x[:, 0]))

    def _embed_last(self, tokens: Int[Array, "b n"]) -> Float[Array, "b d"]:
        """Read the class token behind the text.

        In its authors' code the mask of what it sees is one token late: it sees the first padding too, and
        itself only where there is none. The weights were trained so.
        """
        batch, n = tokens.shape
        assert self.class_token is not None
        last = jnp.broadcast_to(self.class_token[...], (batch, 1, self.config.dim))
        x = (
            jnp.concatenate([self.token_embed[...][tokens], last], axis=1)
            + self.pos_embed[...][None, : n + 1]
        )
        seen = jnp.pad(tokens != PADDING, ((0, 0), (1, 0)), constant_values=True)[:, None]
        is_last = (jnp.arange(n + 1) == n)[None, :, None]
        mask = jnp.tril(jnp.ones((n + 1, n + 1), bool))[None] & (seen | ~is_last)
        for block in self.blocks:
            x = block(x, mask)
        return self.out(self.norm(x[:, -1]))


def _scale_to_length_one(x: Float[Array, "b d"]) -> Float[Array, "b d"]:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
