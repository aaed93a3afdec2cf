"""EfficientNet b0–b7 and Lite0–4 (Tan & Le 2019): inverted residuals, to read and to train.

b0–b7 squeeze and excite. Lite, for small devices, does not; its activation is ReLU6, and its stem and last
convolution have one size at every scale.

There are two dialects: PyTorch's (symmetric padding, batch norm eps 1e-5) and TensorFlow's ("same" padding,
which is not symmetric at stride 2, and eps 1e-3). Batch norms are not folded: with ``network.train()`` they
use the batch's statistics, and dropout and dropped branches are active; with ``network.eval()`` they use the
running statistics.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fseg_jax.encoders.layers import Conv, Linear, Network, Padding, Stage, global_average


@dataclass(frozen=True)
class EfficientNetConfig:
    """The configuration of an EfficientNet; ``stem``, ``stages`` and ``features`` are b0's, to be scaled.

    Attributes:
        width: factor of channels.
        depth: factor of blocks.
        padding: the dialect's padding.
        bn_eps: number added to variances in batch norms.
        bn_momentum: share of a running statistic that stays at a step of training.
        num_classes: outputs of the classifier; 0 for none.
        dropout: rate before the classifier, in training.
        drop_connect: rate of the last block's branch, in training; it rises linearly from block to block.
        stem: channels of the stem.
        stages: (blocks, kernel, stride, expansion, channels) of each stage.
        features: channels of the last convolution.
        activation: the activation between convolutions.
        squeeze: whether blocks squeeze and excite.
        scale_ends: whether the stem and the last convolution are scaled by the width, and the first and last
            stages by the depth.
    """

    width: float = 1.0
    depth: float = 1.0
    padding: Literal["symmetric", "same"] = "symmetric"
    bn_eps: float = 1e-5
    bn_momentum: float = 0.9
    num_classes: int = 1000
    dropout: float = 0.2
    drop_connect: float = 0.2
    stem: int = 32
    stages: tuple[tuple[int, int, int, int, int], ...] = (
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    )
    features: int = 1280
    activation: Literal["silu", "relu6"] = "silu"
    squeeze: bool = True
    scale_ends: bool = True

    def channels(self, base: int) -> int:
        """Scale b0's channels by the width: to a multiple of 8, at least nine tenths of the product."""
        product = base * self.width
        rounded = max(8, int(product + 4) // 8 * 8)
        return rounded if rounded >= 0.9 * product else rounded + 8

    def end_channels(self, base: int) -> int:
        """Scale the channels of the stem or of the last convolution, where those are scaled."""
        return self.channels(base) if self.scale_ends else base

    def repeats(self) -> tuple[int, ...]:
        """List the number of blocks of each stage."""
        last = len(self.stages) - 1
        return tuple(
            math.ceil(stage[0] * self.depth) if self.scale_ends or 0 < index < last else stage[0]
            for index, stage in enumerate(self.stages)
        )

    def blocks(self) -> tuple["BlockConfig", ...]:
        """List the blocks in order, stage after stage."""
        width, blocks = self.end_channels(self.stem), []
        for repeats, (_, kernel, stride, expansion, base) in zip(self.repeats(), self.stages, strict=True):
            channels = self.channels(base)
            for index in range(repeats):
                first_stride = stride if index == 0 else 1
                blocks.append(BlockConfig(width, channels, kernel, first_stride, expansion))
                width = channels
        return tuple(blocks)


@dataclass(frozen=True)
class BlockConfig:
    """The configuration of one inverted residual."""

    channels_in: int
    channels_out: int
    kernel: int  # side, pixels
    stride: int
    expansion: int  # width of its middle, in input channels


# Width, depth and dropout. Input sizes in training were 224, 240, 260, 300, 380, 456, 528 and 600 pixels;
# Lite's 224, 240, 260, 280 and 300.
SCALES = {
    "b0": (1.0, 1.0, 0.2),
    "b1": (1.0, 1.1, 0.2),
    "b2": (1.1, 1.2, 0.3),
    "b3": (1.2, 1.4, 0.3),
    "b4": (1.4, 1.8, 0.4),
    "b5": (1.6, 2.2, 0.4),
    "b6": (1.8, 2.6, 0.5),
    "b7": (2.0, 3.1, 0.5),
    "lite0": (1.0, 1.0, 0.2),
    "lite1": (1.0, 1.1, 0.2),
    "lite2": (1.1, 1.2, 0.3),
    "lite3": (1.2, 1.4, 0.3),
    "lite4": (1.4, 1.8, 0.3),
}
ACTIVATIONS = {"silu": jax.nn.silu, "relu6": jax.nn.relu6}


def configure_efficientnet(
    scale: str, *, tensorflow: bool = False, num_classes: int = 1000
) -> EfficientNetConfig:
    """Make the configuration of b0 … b7 or lite0 … lite4, in PyTorch's dialect or TensorFlow's."""
    width, depth, dropout = SCALES[scale]
    config = EfficientNetConfig(width, depth, num_classes=num_classes, dropout=dropout)
    if tensorflow:
        config = replace(config, padding="same", bn_eps=1e-3, bn_momentum=0.99)
    if scale.startswith("lite"):
        config = replace(config, activation="relu6", squeeze=False, scale_ends=False)
    return config


class ConvNorm(nnx.Module):
    """A convolution without a bias and its batch norm, in float32."""

    def __init__(
        self,
        config: EfficientNetConfig,
        channels_in: int,
        channels_out: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        padding: Padding = "SAME" if config.padding == "same" else (kernel - 1) // 2
        self.conv = Conv(
            channels_in,
            channels_out,
            kernel,
            stride=stride,
            padding=padding,
            groups=groups,
            bias=False,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(
            channels_out, momentum=config.bn_momentum, epsilon=config.bn_eps, dtype=jnp.float32, rngs=rngs
        )

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b p q o"]:
        """Convolve and normalise."""
        y: Array = self.norm(self.conv(x))
        return y


class SqueezeExcite(nnx.Module):
    """A gate between 0 and 1 for each channel, computed from the means of all channels."""

    def __init__(self, channels: int, squeezed: int, *, rngs: nnx.Rngs):
        self.reduce = Linear(channels, squeezed, rngs=rngs)
        self.expand = Linear(squeezed, channels, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Multiply by the gates."""
        gate = jax.nn.sigmoid(self.expand(jax.nn.silu(self.reduce(global_average(x)))))
        return x * gate[:, None, None, :]


class MBConv(nnx.Module):
    """An inverted residual: expand, convolve by channel, squeeze and excite, project, add the shortcut.

    Nothing is expanded where the expansion is 1.
    """

    def __init__(
        self,
        config: EfficientNetConfig,
        block: BlockConfig,
        drop: float,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        middle = block.channels_in * block.expansion
        self.expand = (
            ConvNorm(config, block.channels_in, middle, 1, dtype=dtype, rngs=rngs)
            if block.expansion > 1
            else None
        )
        # The depthwise convolution and the gate stay in float32: they take next to no arithmetic, and most of
        # the accuracy that bfloat16 costs is lost there.
        self.depthwise = ConvNorm(
            config,
            middle,
            middle,
            block.kernel,
            stride=block.stride,
            groups=middle,
            dtype=jnp.float32,
            rngs=rngs,
        )
        # The squeezed channels are a quarter of the block's input, not of the expanded channels.
        squeezed = max(1, round(block.channels_in / 4))
        self.se = SqueezeExcite(middle, squeezed, rngs=rngs) if config.squeeze else None
        self.project = ConvNorm(config, middle, block.channels_out, 1, dtype=dtype, rngs=rngs)
        self.shortcut = block.stride == 1 and block.channels_in == block.channels_out
        self.drop = nnx.Dropout(drop, broadcast_dims=(1, 2, 3))
        self.activate = ACTIVATIONS[config.activation]

    def __call__(self, x: Float[Array, "b h w i"], rngs: nnx.Rngs | None = None) -> Float[Array, "b p q o"]:
        """Apply the block; ``rngs`` draws whether its branch is dropped, in training."""
        y = x if self.expand is None else self.activate(self.expand(x))
        y = self.activate(self.depthwise(y))
        y = self.project(y if self.se is None else self.se(y))
        return x + self.drop(y, rngs=rngs) if self.shortcut else y


class EfficientNet(Network):
    """An EfficientNet; its layers are ``stem``, each block (``blocks.0`` …) and ``top``, the last 1×1."""

    def __init__(self, config: EfficientNetConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        blocks = config.blocks()
        stem, features = config.end_channels(config.stem), config.end_channels(config.features)
        self.activate = ACTIVATIONS[config.activation]
        self.stem = ConvNorm(config, 3, stem, 3, stride=2, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(
            [
                MBConv(config, block, config.drop_connect * index / len(blocks), dtype=dtype, rngs=rngs)
                for index, block in enumerate(blocks)
            ]
        )
        self.top = ConvNorm(config, blocks[-1].channels_out, features, 1, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout)
        self.classifier = (
            Linear(features, config.num_classes, dtype=dtype, rngs=rngs) if config.num_classes else None
        )

    def stages(self, rngs: nnx.Rngs | None = None) -> Sequence[Stage]:
        """List ``stem``, one stage a block, ``top``; ``rngs`` draws the dropped branches of training."""
        blocks = (
            Stage(f"blocks.{index}", partial(block, rngs=rngs)) for index, block in enumerate(self.blocks)
        )
        return (
            Stage("stem", lambda x: self.activate(self.stem(x))),
            *blocks,
            Stage("top", lambda x: self.activate(self.top(x))),
        )

    def head(self, features: Float[Array, "b h w c"], rngs: nnx.Rngs | None = None) -> Float[Array, "b k"]:
        """Compute the logits, or the mean over the grid in a network without a classifier."""
        pooled = global_average(features)
        return pooled if self.classifier is None else self.classifier(self.dropout(pooled, rngs=rngs))

    def __call__(
        self, x: Float[Array, "b height width 3"], rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b k"]:
        """Compute the logits of normalised images.

        In training, give ``rngs``, and keep the network's state, which holds new running statistics.
        """
        for stage in self.stages(rngs):
            x = stage.apply(x)
        return self.head(x, rngs)
