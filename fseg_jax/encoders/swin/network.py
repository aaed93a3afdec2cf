"""The Swin transformer (Liu et al. 2021) with CTransPath's convolutional stem.

Tokens attend within windows of 7×7, shifted by half a window in every other block. The grid is halved before
each stage but the first. Layers are read before that: ``layers.3``, which F-SEG reads, has 32 pixels a token,
and ``layers.2`` has 16. Features can be negative; the caller applies the ReLU.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import normal
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from fseg_jax.encoders.frames import clear_outside, get_grid_sizes
from fseg_jax.encoders.kernels.products import choose_precision
from fseg_jax.encoders.layers import Conv, LayerNorm, Linear, Network, Stage, gelu, relu
from fseg_jax.errors import InputError

AnyArray = np.ndarray | Array  # of numpy where it is constant, of jax where it depends on images' sizes


@dataclass(frozen=True)
class SwinConfig:
    """The configuration of a Swin.

    Attributes:
        dim: channels of the first stage; each later stage has twice as many. The stem's two 3×3 convolutions
            have an eighth and a quarter of them.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        window: side of a window in tokens.
        mlp_ratio: width of the MLP in channels of its stage.
        eps: number added to variances in norms.
    """

    dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    mlp_ratio: int = 4
    eps: float = 1e-5

    @property
    def stride(self) -> int:
        """Pixels a token at the last stage."""
        return 4 << (len(self.depths) - 1)


class ConvStem(nnx.Module):
    """Two strided 3×3 convolutions (their batch norms folded in), a 1×1, and a norm."""

    def __init__(self, config: SwinConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        thin, thick = config.dim // 8, config.dim // 4
        self.conv1 = Conv(3, thin, 3, stride=2, padding=1, dtype=dtype, rngs=rngs)
        self.conv2 = Conv(thin, thick, 3, stride=2, padding=1, dtype=dtype, rngs=rngs)
        self.conv3 = Conv(thick, config.dim, 1, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(config.dim, eps=config.eps)

    def __call__(self, x: Float[Array, "b height width 3"]) -> Float[Array, "b h w c"]:
        """Apply the stem: 4 pixels a token."""
        return self.norm(self.conv3(relu(self.conv2(relu(self.conv1(x))))))


class WindowAttention(nnx.Module):
    """Self-attention within a window, with a learned bias for each relative position."""

    def __init__(self, dim: int, heads: int, window: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.qkv = Linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)
        table = normal(0.02)(rngs.params(), ((2 * window - 1) ** 2, heads), jnp.float32)
        self.relative_position_bias_table = nnx.Param(table)
        self.heads, self.window, self.dtype = heads, window, dtype

    def __call__(
        self, x: Float[Array, "b windows n c"], mask: Float[AnyArray, "images windows n n"] | None
    ) -> Float[Array, "b windows n c"]:
        """Attend within each window; ``mask`` is added to the scores."""
        batch, windows, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(batch, windows, tokens, 3, self.heads, channels // self.heads)
        q, k, v = qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :]
        scores = jnp.einsum(
            "bwmhd,bwnhd->bwhmn",
            (q * q.shape[-1] ** -0.5).astype(self.dtype),
            k.astype(self.dtype),
            precision=choose_precision(self.dtype),
            preferred_element_type=jnp.float32,
        )
        bias = self.relative_position_bias_table[...][_relative_positions(self.window)]
        scores = scores + bias.transpose(2, 0, 1)[None, None]
        if mask is not None:
            scores = scores + mask[:, :, None]
        attended = jnp.einsum(
            "bwhmn,bwnhd->bwmhd",
            jax.nn.softmax(scores, axis=-1).astype(self.dtype),
            v.astype(self.dtype),
            precision=choose_precision(self.dtype),
            preferred_element_type=jnp.float32,
        )
        return self.proj(attended.reshape(x.shape))


class Block(nnx.Module):
    """Windowed attention and a GELU MLP: each normalises first and is added to its input."""

    def __init__(
        self, config: SwinConfig, dim: int, heads: int, shift: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.norm1 = LayerNorm(dim, eps=config.eps)
        self.attn = WindowAttention(dim, heads, config.window, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, eps=config.eps)
        self.fc1 = Linear(dim, config.mlp_ratio * dim, dtype=dtype, rounded=dtype, rngs=rngs)
        self.fc2 = Linear(config.mlp_ratio * dim, dim, dtype=dtype, rngs=rngs)
        self.window, self.shift = config.window, shift

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Apply attention, then the MLP."""
        x = x + self._attend(self.norm1(x))
        return x + self.fc2(gelu(self.fc1(self.norm2(x))))

    def _attend(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        batch, h, w, channels = x.shape
        side = self.window
        sizes = get_grid_sizes(h, w)
        # An axis of one window has nothing to shift.
        if sizes is None:
            shift = tuple(self.shift if size > side else 0 for size in (h, w))
            x = jnp.roll(x, (-shift[0], -shift[1]), (1, 2))
        else:
            shifts = jnp.where(sizes > side, self.shift, 0)
            x = _roll(clear_outside(x), sizes, -shifts)
        # A grid that the window does not divide is padded, as timm does.
        rows, columns = -(-h // side), -(-w // side)
        x = jnp.pad(x, ((0, 0), (0, rows * side - h), (0, columns * side - w), (0, 0)))
        x = x.reshape(batch, rows, side, columns, side, channels).transpose(0, 1, 3, 2, 4, 5)
        if sizes is not None:
            mask = _shift_mask(rows, columns, side, -(-sizes // side), shifts)
        elif any(shift):
            mask = _shift_mask(rows, columns, side, np.array([[rows, columns]]), np.array([shift]))
        else:
            mask = None
        x = self.attn(x.reshape(batch, rows * columns, side * side, channels), mask)
        x = x.reshape(batch, rows, columns, side, side, channels).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, rows * side, columns * side, channels)[:, :h, :w]
        return jnp.roll(x, shift, (1, 2)) if sizes is None else _roll(x, sizes, shifts)


class PatchMerging(nnx.Module):
    """A halving of the grid: 2×2 tokens become one of twice the channels."""

    def __init__(self, dim: int, *, eps: float, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = LayerNorm(4 * dim, eps=eps)
        self.reduction = Linear(4 * dim, 2 * dim, bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b p q d"]:
        """Merge tokens."""
        batch, h, w, channels = x.shape
        x = x.reshape(batch, h // 2, 2, w // 2, 2, channels).transpose(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(x.reshape(batch, h // 2, w // 2, 4 * channels)))


class SwinStage(nnx.Module):
    """The halving of the grid, where there is one, and a stage's blocks."""

    def __init__(self, config: SwinConfig, stage: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        dim = config.dim * 2**stage
        self.downsample = PatchMerging(dim // 2, eps=config.eps, dtype=dtype, rngs=rngs) if stage else None
        shifts = [config.window // 2 * (index % 2) for index in range(config.depths[stage])]
        self.blocks = nnx.List(
            [Block(config, dim, config.heads[stage], shift, dtype=dtype, rngs=rngs) for shift in shifts]
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b p q d"]:
        """Apply the stage."""
        if self.downsample is not None:
            x = self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x


class Swin(Network):
    """A Swin transformer; its layers are ``patch_embed``, ``layers.0`` … ``layers.3`` and ``norm``."""

    def __init__(self, config: SwinConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.patch_embed = ConvStem(config, dtype=dtype, rngs=rngs)
        self.trunk = nnx.List(
            [SwinStage(config, stage, dtype=dtype, rngs=rngs) for stage in range(len(config.depths))]
        )
        self.norm = LayerNorm(config.dim * 2 ** (len(config.depths) - 1), eps=config.eps)

    def stages(self) -> Sequence[Stage]:
        """List ``patch_embed``, one stage a ``layers`` entry, ``norm``."""
        stages = (Stage(f"layers.{index}", stage) for index, stage in enumerate(self.trunk))
        return (Stage("patch_embed", self._stem), *stages, Stage("norm", self.norm))

    def head(self, features: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
        """Average over the grid."""
        return features.mean((1, 2))

    def _stem(self, x: Float[Array, "b height width 3"]) -> Float[Array, "b h w c"]:
        height, width = x.shape[1:3]
        stride, smallest = self.config.stride, self.config.stride * self.config.window
        if height % stride or width % stride or min(height, width) < smallest:
            raise InputError(
                f"an image of {height} × {width} pixels: give this encoder sides that are multiples of "
                f"{stride} and at least {smallest}"
            )
        return self.patch_embed(x)


def _relative_positions(window: int) -> Int[np.ndarray, "n n"]:
    """Find, for each pair of tokens of a window, the row of the bias table for the offset between them."""
    rows, columns = np.divmod(np.arange(window * window), window)
    down = rows[:, None] - rows[None, :] + window - 1
    right = columns[:, None] - columns[None, :] + window - 1
    table_rows: np.ndarray = down * (2 * window - 1) + right
    return table_rows


def _shift_mask(
    rows: int, columns: int, side: int, counts: Int[AnyArray, "b 2"], shift: Int[AnyArray, "b 2"]
) -> Float[AnyArray, "b windows n n"]:
    """Mask, by −100, pairs of tokens that share a window only because the grid was rolled by ``shift``.

    Each image has ``counts`` of the ``rows × columns`` windows.
    """

    def regions(axis: int, windows: int) -> Int[AnyArray, "b length"]:
        position = np.arange(windows * side)[None]
        count, offset = counts[:, axis, None], shift[:, axis, None]
        return (position >= (count - 1) * side) * 1 + (position >= count * side - offset) * (offset > 0)

    region = 3 * regions(0, rows)[:, :, None] + regions(1, columns)[:, None]
    windows = region.reshape(-1, rows, side, columns, side).swapaxes(2, 3)
    windows = windows.reshape(-1, rows * columns, side * side)
    mask: AnyArray = (windows[..., None] != windows[..., None, :]) * np.float32(-100)
    return mask


def _roll(
    x: Float[Array, "b h w c"], sizes: Int[Array, "b 2"], shift: Int[Array, "b 2"]
) -> Float[Array, "b h w c"]:
    """Roll each image by its shift within its own rows and columns; values beyond stay."""

    def roll_image(x: Array, size: Array, shift: Array) -> Array:
        positions = (jnp.arange(n) for n in x.shape[:2])
        rows, columns = (
            jnp.where(position < size[axis], (position - shift[axis]) % size[axis], position)
            for axis, position in enumerate(positions)
        )
        return x[rows[:, None], columns[None]]

    return jax.vmap(roll_image)(x, sizes, shift)
