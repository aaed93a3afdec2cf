"""ResNet 18, 34, 50 and 101 (He et al. 2016), with the batch norms folded into the convolutions.

F-SEG reads ``layer3``: 16 pixels a token, 1024 channels in ResNet-50, and non-negative, for it ends in a
ReLU.
"""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from fseg_jax.encoders.layers import Conv, DType, Linear, Network, Stage, global_average, relu


@dataclass(frozen=True)
class ResNetConfig:
    """What makes one ResNet differ from another; ``num_classes`` is 0 for a network without a classifier."""

    block: Literal["basic", "bottleneck"]
    depths: tuple[int, ...]
    channels: tuple[int, ...] = (64, 128, 256, 512)
    stem_channels: int = 64
    num_classes: int = 0

    @property
    def expansion(self) -> int:
        """How much wider a block's output is than the stage's channels."""
        return 4 if self.block == "bottleneck" else 1


RESNETS = {
    "resnet18": ResNetConfig("basic", (2, 2, 2, 2)),
    "resnet34": ResNetConfig("basic", (3, 4, 6, 3)),
    "resnet50": ResNetConfig("bottleneck", (3, 4, 6, 3)),
    "resnet101": ResNetConfig("bottleneck", (3, 4, 23, 3)),
}


class BasicBlock(nnx.Module):
    """Two 3×3 convolutions beside a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int, *, dtype: DType, rngs: nnx.Rngs):
        self.conv1 = Conv(channels_in, channels, 3, stride=stride, padding=1, dtype=dtype, rngs=rngs)
        self.conv2 = Conv(channels, channels, 3, padding=1, dtype=dtype, rngs=rngs)
        self.downsample = _shortcut(channels_in, channels, stride, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b p q o"]:
        y = self.conv2(relu(self.conv1(x)))
        return relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nnx.Module):
    """1×1, 3×3 and 1×1 convolutions beside a shortcut; the stride is the 3×3's, as in torchvision and
    timm."""

    def __init__(self, channels_in: int, channels: int, stride: int, *, dtype: DType, rngs: nnx.Rngs):
        self.conv1 = Conv(channels_in, channels, 1, dtype=dtype, rngs=rngs)
        self.conv2 = Conv(channels, channels, 3, stride=stride, padding=1, dtype=dtype, rngs=rngs)
        self.conv3 = Conv(channels, 4 * channels, 1, dtype=dtype, rngs=rngs)
        self.downsample = _shortcut(channels_in, 4 * channels, stride, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b p q o"]:
        y = self.conv3(relu(self.conv2(relu(self.conv1(x)))))
        return relu(y + (x if self.downsample is None else self.downsample(x)))


def _shortcut(
    channels_in: int, channels_out: int, stride: int, *, dtype: DType, rngs: nnx.Rngs
) -> Conv | None:
    if stride == 1 and channels_in == channels_out:
        return None
    return Conv(channels_in, channels_out, 1, stride=stride, dtype=dtype, rngs=rngs)


class ResNet(Network):
    """A residual network whose layers are ``stem`` (after the max-pool), ``layer1``, ``layer2``, ``layer3``,
    ``layer4``."""

    def __init__(self, config: ResNetConfig, *, dtype: DType = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        block = BasicBlock if config.block == "basic" else Bottleneck
        self.conv1 = Conv(3, config.stem_channels, 7, stride=2, padding=3, dtype=dtype, rngs=rngs)
        width = config.stem_channels
        for stage, (depth, channels) in enumerate(zip(config.depths, config.channels, strict=True), 1):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                blocks.append(block(width, channels, stride, dtype=dtype, rngs=rngs))
                width = channels * config.expansion
            setattr(self, f"layer{stage}", nnx.List(blocks))
        self.fc = Linear(width, config.num_classes, dtype=dtype, rngs=rngs) if config.num_classes else None

    def stages(self) -> tuple[Stage, ...]:
        """``stem`` and one stage a ``layer``."""
        numbers = range(1, len(self.config.depths) + 1)
        return (
            Stage("stem", self._stem),
            *(Stage(f"layer{n}", _chain(getattr(self, f"layer{n}"))) for n in numbers),
        )

    def head(self, features: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """The mean over the grid, or the logits of a network with a classifier."""
        pooled = global_average(features)
        return pooled if self.fc is None else self.fc(pooled)

    def _stem(self, x: Float[Array, "b height width 3"]) -> Float[Array, "b h w c"]:
        x = relu(self.conv1(x))
        return lax.reduce_window(
            x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
        )


def _chain(blocks):
    def apply(x: Float[Array, "b h w i"]) -> Float[Array, "b p q o"]:
        for block in blocks:
            x = block(x)
        return x

    return apply
