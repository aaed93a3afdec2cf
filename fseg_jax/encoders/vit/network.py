"""The vision transformer (Dosovitskiy et al. 2021) in all forms that published pathology encoders have.

The MLP is plain or gated (SwiGLU); there may be LayerScale and register tokens. Positions are rotary, or an
embedding, with or without entries for the class and register tokens, that is resampled to the grid of each
image. Tokens are in the order class, registers, patches (row by row). Blocks normalise first. F-SEG reads the
last block's output, before the final norm: it can be negative, and the caller applies the ReLU.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isqrt
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.nn.initializers import normal
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fseg_jax.encoders.frames import get_grid_sizes, mask_tokens
from fseg_jax.encoders.kernels.attention import attend
from fseg_jax.encoders.kernels.products import choose_precision
from fseg_jax.encoders.layers import LayerNorm, Linear, Network, Stage, along_channels, gelu
from fseg_jax.encoders.vit.positions import Resampling, resample_grid, resample_grids
from fseg_jax.encoders.vit.rotary import RotaryConfig, compute_turn, rotate
from fseg_jax.errors import InputError


@dataclass(frozen=True)
class AttentionPoolConfig:
    """CONCH's pooling: one learned query attends over all tokens."""

    dim: int  # channels
    heads: int
    bias: bool = False  # whether its products have biases


@dataclass(frozen=True)
class ViTConfig:
    """The configuration of a ViT.

    Attributes:
        patch: side of a patch in pixels.
        dim: channels of a token.
        depth: number of blocks.
        heads: attention heads of a block.
        mlp_width: width of the MLP's first product; a gated MLP halves it.
        mlp: plain (``gelu``) or gated (``swiglu``).
        image_size: side in pixels of the images that the stored position embedding is for.
        class_token: whether there is a class token.
        registers: number of register tokens.
        embed_prefix: whether the position embedding has entries for the class and register tokens too (the
            negation of timm's ``no_embed_class``).
        layer_scale: whether each branch is scaled by channel.
        qkv_bias: whether q, k and v have biases.
        eps: number added to variances in norms.
        resampling: the bicubic interpolation of the position embedding to another grid.
        pool: CONCH's attention pooling, in place of the class token (or of the mean, in a network without
            one).
        rotary: rotary positions, in place of the position embedding.
        apart: whether red, green and blue pass through the network apart, each as an image of one channel,
            and their features are put side by side.
    """

    patch: int
    dim: int
    depth: int
    heads: int
    mlp_width: int
    mlp: Literal["gelu", "swiglu"] = "gelu"
    image_size: int = 224
    class_token: bool = True
    registers: int = 0
    embed_prefix: bool = True
    layer_scale: bool = False
    qkv_bias: bool = True
    eps: float = 1e-6
    resampling: Resampling = "antialiased"
    pool: AttentionPoolConfig | None = None
    rotary: RotaryConfig | None = None
    apart: bool = False

    @property
    def channels(self) -> int:
        """Channels of the features of a patch."""
        return self.dim * self.copies

    @property
    def copies(self) -> int:
        """Number of passes that an image takes."""
        return 3 if self.apart else 1

    @property
    def prefix(self) -> int:
        """Number of tokens before the patches."""
        return int(self.class_token) + self.registers

    @property
    def positions(self) -> tuple[int, int]:
        """Rows and columns of the stored position embedding."""
        return (self.image_size // self.patch,) * 2


# The published sizes, plain, with patches of 16 pixels.
TINY = ViTConfig(patch=16, dim=192, depth=12, heads=3, mlp_width=768)
SMALL = ViTConfig(patch=16, dim=384, depth=12, heads=6, mlp_width=1536)
BASE = ViTConfig(patch=16, dim=768, depth=12, heads=12, mlp_width=3072)
LARGE = ViTConfig(patch=16, dim=1024, depth=24, heads=16, mlp_width=4096)
HUGE = ViTConfig(patch=16, dim=1280, depth=32, heads=16, mlp_width=5120)
GIANT = ViTConfig(patch=16, dim=1408, depth=40, heads=16, mlp_width=6144)
GIGANTIC = ViTConfig(patch=16, dim=1664, depth=48, heads=16, mlp_width=8192)
VITS = {
    "tiny": TINY,
    "small": SMALL,
    "base": BASE,
    "large": LARGE,
    "huge": HUGE,
    "giant": GIANT,
    "gigantic": GIGANTIC,
}
DINOV2_GIANT = ViTConfig(
    patch=14, dim=1536, depth=40, heads=24, mlp_width=8192, mlp="swiglu", layer_scale=True
)


def add_registers(config: ViTConfig) -> ViTConfig:
    """Add DINOv2's four register tokens, which have no positions, and LayerScale to a configuration."""
    return replace(config, registers=4, embed_prefix=False, layer_scale=True)


def configure_dinov3(size: ViTConfig, *, gate: int | None = None) -> ViTConfig:
    """Make a configuration DINOv3's: rotary positions, registers, LayerScale, no biases of q, k and v.

    ``gate`` is the width of its gated MLP; a plain one has the size's.
    """
    config = replace(
        size, registers=4, layer_scale=True, qkv_bias=False, eps=1e-5, image_size=256, rotary=RotaryConfig()
    )
    return config if gate is None else replace(config, mlp="swiglu", mlp_width=2 * gate)


DINOV3 = {
    "small": configure_dinov3(SMALL),
    "small_plus": configure_dinov3(SMALL, gate=1536),
    "base": configure_dinov3(BASE),
    "large": configure_dinov3(LARGE),
    "huge_plus": configure_dinov3(replace(HUGE, heads=20), gate=5120),
    "7b": configure_dinov3(replace(GIANT, dim=4096, heads=32), gate=8192),
}


class Attention(nnx.Module):
    """Self-attention over all tokens of an image; scores and softmax are float32."""

    def __init__(self, config: ViTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.qkv = Linear(
            config.dim, 3 * config.dim, bias=config.qkv_bias, dtype=dtype, rounded=dtype, rngs=rngs
        )
        self.proj = Linear(config.dim, config.dim, dtype=dtype, rngs=rngs)
        self.config, self.dtype = config, dtype

    def __call__(self, x: Float[Array, "b n c"], grid: tuple[int, int] | None) -> Float[Array, "b n c"]:
        """Attend; the patches lie on a grid of these rows and columns, or on a square."""
        tokens, config = x.shape[1], self.config
        q, k, v = lax.platform_dependent(x, tpu=self._project_by_heads, default=self._project)
        if config.rotary is not None:
            grid = grid or (isqrt(tokens - config.prefix),) * 2
            turn = compute_turn(config.rotary, grid, q.shape[-1], config.copies)
            q, k = (rotate(config.rotary, part, turn, config.prefix) for part in (q, k))
        mask = mask_tokens(config.patch, config.prefix, config.copies)
        return self.proj(attend(q, k, v, self.dtype, mask).reshape(x.shape))

    def _project(self, x: Float[Array, "b n c"]) -> tuple[Array, ...]:
        """Compute q, k and v, ``(b, n, heads, d)`` each, by one product."""
        batch, tokens, _ = x.shape
        return tuple(
            part.reshape(batch, tokens, self.config.heads, -1) for part in jnp.split(self.qkv(x), 3, axis=-1)
        )

    def _project_by_heads(self, x: Float[Array, "b n c"]) -> tuple[Array, ...]:
        """Compute the same by a product each, which a TPU writes as attention reads it.

        Of one product it would write the parts once more, and then each anew with the tokens last.
        """
        heads, kernel, bias = self.config.heads, self.qkv.kernel[...], self.qkv.bias
        x = x.astype(kernel.dtype)
        multiply = partial(
            jnp.einsum, precision=choose_precision(kernel.dtype), preferred_element_type=self.dtype
        )
        q, k, v = (
            multiply("bnc,chd->bhnd", x, part.reshape(len(part), heads, -1))
            for part in jnp.split(kernel, 3, axis=-1)
        )
        if bias is not None:
            q, k, v = (y + b for y, b in zip((q, k, v), bias[...].reshape(3, 1, heads, 1, -1), strict=True))
        q, k, v = (y.astype(self.dtype) for y in (q, k, v))
        # Whole before the scores, into which a TPU would draw these products and make them twice.
        q, k = lax.optimization_barrier(q), lax.optimization_barrier(k)
        return tuple(jnp.swapaxes(y, 1, 2) for y in (q, k, v))


class Mlp(nnx.Module):
    """Two products with an exact GELU between them, or gated: SiLU of one half times the other half."""

    def __init__(self, config: ViTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.gated = config.mlp == "swiglu"
        hidden = config.mlp_width // 2 if self.gated else config.mlp_width
        self.fc1 = Linear(config.dim, config.mlp_width, dtype=dtype, rounded=dtype, rngs=rngs)
        self.fc2 = Linear(hidden, config.dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Apply the MLP to each token."""
        x = self.fc1(x)
        if self.gated:
            gate, value = jnp.split(x.astype(jnp.float32), 2, axis=-1)
            return self.fc2(jax.nn.silu(gate) * value)
        return self.fc2(gelu(x))


class Block(nnx.Module):
    """Attention and MLP: each normalises first, may be scaled by channel, and is added to its input."""

    def __init__(self, config: ViTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(config.dim, eps=config.eps)
        self.attn = Attention(config, dtype=dtype, rngs=rngs)
        self.ls1 = nnx.Param(jnp.ones((config.dim,), jnp.float32)) if config.layer_scale else None
        self.norm2 = LayerNorm(config.dim, eps=config.eps)
        self.mlp = Mlp(config, dtype=dtype, rngs=rngs)
        self.ls2 = nnx.Param(jnp.ones((config.dim,), jnp.float32)) if config.layer_scale else None

    def __call__(
        self, x: Float[Array, "b n c"], grid: tuple[int, int] | None = None
    ) -> Float[Array, "b n c"]:
        """Apply attention, then the MLP; the patches lie on this grid, or on a square."""
        y = self.attn(self.norm1(x), grid)
        x = x + (y if self.ls1 is None else y * along_channels(self.ls1[...], y))
        y = self.mlp(self.norm2(x))
        return x + (y if self.ls2 is None else y * along_channels(self.ls2[...], y))


class AttentionPool(nnx.Module):
    """One learned query over all tokens (CoCa's contrastive pooling), then a norm: CONCH's embedding."""

    def __init__(self, config: ViTConfig, pool: AttentionPoolConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.query = nnx.Param(normal(1.0)(rngs.params(), (pool.dim,), jnp.float32))
        self.ln_q = LayerNorm(pool.dim, eps=1e-5)
        self.ln_k = LayerNorm(config.dim, eps=1e-5)
        self.to_q = Linear(pool.dim, pool.dim, bias=pool.bias, dtype=dtype, rngs=rngs)
        self.to_kv = Linear(config.dim, 2 * pool.dim, bias=pool.bias, dtype=dtype, rngs=rngs)
        self.to_out = Linear(pool.dim, pool.dim, bias=pool.bias, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(pool.dim, eps=1e-5)
        self.heads, self.dtype = pool.heads, dtype

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b d"]:
        """Pool the tokens of each image."""
        batch, tokens, _ = x.shape
        k, v = jnp.split(self.to_kv(self.ln_k(x)).reshape(batch, tokens, 2 * self.heads, -1), 2, axis=2)
        q = self.to_q(self.ln_q(self.query[...])).reshape(1, 1, self.heads, -1)
        pooled = attend(jnp.broadcast_to(q, (batch, *q.shape[1:])), k, v, self.dtype)
        return self.norm(self.to_out(pooled.reshape(batch, -1)))


class ViT(Network):
    """A vision transformer; its layers are ``patch_embed``, ``embed``, ``blocks.0`` … and ``norm``.

    At ``embed`` positions are added and the class and register tokens join.
    """

    def __init__(self, config: ViTConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        embed = normal(0.02)
        entries = config.positions[0] * config.positions[1] + (config.prefix if config.embed_prefix else 0)
        colours = 1 if config.apart else 3
        self.patch_embed = Linear(colours * config.patch**2, config.dim, dtype=dtype, rngs=rngs)
        self.cls_token = (
            nnx.Param(embed(rngs.params(), (1, config.dim), jnp.float32)) if config.class_token else None
        )
        self.reg_token = (
            nnx.Param(embed(rngs.params(), (config.registers, config.dim), jnp.float32))
            if config.registers
            else None
        )
        self.pos_embed = (
            nnx.Param(embed(rngs.params(), (entries, config.dim), jnp.float32))
            if config.rotary is None
            else None
        )
        self.blocks = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.depth)])
        self.norm = LayerNorm(config.dim, eps=config.eps)
        self.pool = (
            None if config.pool is None else AttentionPool(config, config.pool, dtype=dtype, rngs=rngs)
        )

    def stages(self) -> Sequence[Stage]:
        """List ``patch_embed``, ``embed``, one stage a block, ``norm``.

        Rotary positions are those of a square grid.
        """
        return self._list_stages(None)

    def stages_for(self, x: Float[Array, "b height width 3"]) -> Sequence[Stage]:
        """List the same stages for images of such sides."""
        return self._list_stages((x.shape[1] // self.config.patch, x.shape[2] // self.config.patch))

    def _list_stages(self, grid: tuple[int, int] | None) -> Sequence[Stage]:
        blocks = (
            Stage(f"blocks.{index}", partial(block, grid=grid)) for index, block in enumerate(self.blocks)
        )
        return (
            Stage("patch_embed", self._embed_patches),
            Stage("embed", self._add_positions),
            *blocks,
            Stage("norm", self.norm),
        )

    def head(self, features: Float[Array, "passes n c"]) -> Float[Array, "b d"]:
        """Return CONCH's pooling or the class token, or the mean of the patches where there is neither."""
        if self.pool is not None:
            return self.pool(features)
        pooled = features[:, 0] if self.config.class_token else features[:, self.config.prefix :].mean(1)
        return pooled.reshape(-1, self.config.channels)

    def grid(self, x: Float[Array, "b height width 3"], layer: str) -> Float[Array, "b h w c"]:
        """Compute the patch tokens at a named layer, on their grid; class and register tokens are dropped.

        They can be negative: the caller applies the ReLU that F-SEG puts before the factorization.
        """
        tokens = self.features_to(x, layer)
        if tokens.ndim == 3:
            tokens = tokens[:, self.config.prefix :]
        batch, copies = x.shape[0], self.config.copies
        h, w = x.shape[1] // self.config.patch, x.shape[2] // self.config.patch
        return tokens.reshape(batch, copies, h, w, -1).transpose(0, 2, 3, 1, 4).reshape(batch, h, w, -1)

    def _embed_patches(self, x: Float[Array, "b height width 3"]) -> Float[Array, "passes h w c"]:
        batch, height, width, _ = x.shape
        patch = self.config.patch
        if height % patch or width % patch:
            raise InputError(
                f"an image of {height} × {width} pixels: this encoder's patches are {patch} pixels, "
                f"give both sides as multiples of {patch}"
            )
        h, w = height // patch, width // patch
        if self.config.apart:
            batch, x = 3 * batch, x.transpose(0, 3, 1, 2)
        x = x.reshape(batch, h, patch, w, patch, -1).transpose(0, 1, 3, 2, 4, 5)
        return self.patch_embed(x.reshape(batch, h, w, -1))

    def _add_positions(self, x: Float[Array, "passes h w c"]) -> Float[Array, "passes n c"]:
        batch, h, w, channels = x.shape
        config = self.config
        x = x.reshape(batch, h * w, channels)
        parts = [token[...] for token in (self.cls_token, self.reg_token) if token is not None]
        prefix = jnp.concatenate(parts) if parts else jnp.zeros((0, channels), jnp.float32)
        if self.pos_embed is not None:
            table = self.pos_embed[...]
            prefix_entries = config.prefix if config.embed_prefix else 0
            grid = table[prefix_entries:]
            if (sizes := get_grid_sizes(h, w, config.copies)) is None:
                positions = resample_grid(grid, config.positions, (h, w), config.resampling)[None]
            else:
                positions = resample_grids(grid, config.positions, (h, w), sizes, config.resampling)
            x = x + positions
            if prefix_entries:
                prefix = prefix + table[:prefix_entries]
        if not parts:
            return x
        return jnp.concatenate([jnp.broadcast_to(prefix, (batch, *prefix.shape)), x], axis=1)
