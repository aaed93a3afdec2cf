"""ResNet 18, 34, 50 and 101 (He et al. 2016), to read and to train.

To be read, a network has its batch norms folded into the convolutions. To be trained it has real ones;
``fold_norms`` makes the former of the latter, ``unfold_norms`` the latter of the former. F-SEG reads
``layer3``: 16 pixels a token, 1024 channels in ResNet-50, non-negative because it ends in a ReLU.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fseg_jax.encoders.frames import clear_outside
from fseg_jax.encoders.layers import (
    Conv,
    Linear,
    Network,
    Stage,
    along_channels,
    global_average,
)


@dataclass(frozen=True)
class ResNetConfig:
    """The configuration of a ResNet.

    Attributes:
        block: the kind of residual block.
        depths: blocks of each stage.
        channels: channels of each stage, before a bottleneck's expansion.
        stem_channels: channels of the stem.
        num_classes: outputs of the classifier; 0 for none.
        norms: whether each convolution has a batch norm of its own, to be trained with.
        patches: whether the stem makes channels of 4 × 4 pixels, which a 3 × 3 convolution reads, instead of
            the paper's 7 × 7 convolution and max-pool. It has the same stride of 4, sees 12 × 12 pixels
            rather than 11 × 11, and costs a fifth to train on a CPU.
    """

    block: Literal["basic", "bottleneck"]
    depths: tuple[int, ...]
    channels: tuple[int, ...] = (64, 128, 256, 512)
    stem_channels: int = 64
    num_classes: int = 0
    norms: bool = False
    patches: bool = False

    @property
    def expansion(self) -> int:
        """Channels of a block's output, in channels of the stage."""
        return 4 if self.block == "bottleneck" else 1


RESNETS = {
    "resnet18": ResNetConfig("basic", (2, 2, 2, 2)),
    "resnet34": ResNetConfig("basic", (3, 4, 6, 3)),
    "resnet50": ResNetConfig("bottleneck", (3, 4, 6, 3)),
    "resnet101": ResNetConfig("bottleneck", (3, 4, 23, 3)),
}


NORM_MOMENTUM = 0.9  # share of a running statistic that a step keeps
PATCH = 4  # pixels a side of the squares that a stem of patches makes channels of


class NormedConv(nnx.Module):
    """A convolution without a bias and its batch norm, in float32."""

    def __init__(self, conv: Conv, rngs: nnx.Rngs):
        self.conv = conv
        self.norm = nnx.BatchNorm(conv.kernel.shape[-1], momentum=NORM_MOMENTUM, epsilon=1e-5, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w i"], add: Float[Array, "b p q o"] | None = None, relu: bool = False
    ) -> Float[Array, "b p q o"]:
        """Convolve, normalise, add ``add``, and take the positive part where ``relu`` says so."""
        y: Array = self.norm(self.conv(x))
        y = y if add is None else y + add
        return jax.nn.relu(y) if relu else y

    def fold(self) -> tuple[Float[Array, "p q i o"], Float[Array, " o"]]:
        """Fold the norm, with its running statistics, into a kernel and a bias."""
        norm = self.norm
        assert norm.scale is not None and norm.bias is not None
        scale = norm.scale[...] / jnp.sqrt(norm.var[...] + norm.epsilon)
        kernel = self.conv.kernel[...].astype(jnp.float32)
        return kernel * along_channels(scale, kernel), norm.bias[...] - norm.mean[...] * scale


class BasicBlock(nnx.Module):
    """Two 3×3 convolutions, added to a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int, conv: "_MakeConv"):
        self.conv1 = conv(channels_in, channels, 3, stride)
        self.conv2 = conv(channels, channels, 3, 1)
        self.downsample = _shortcut(channels_in, channels, stride, conv)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b p q o"]:
        """Apply the block."""
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.conv2(self.conv1(x, relu=True), add=shortcut, relu=True)


class Bottleneck(nnx.Module):
    """1×1, 3×3 and 1×1 convolutions, added to a shortcut.

    The 3×3 has the stride, as in torchvision and timm.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, conv: "_MakeConv"):
        self.conv1 = conv(channels_in, channels, 1, 1)
        self.conv2 = conv(channels, channels, 3, stride)
        self.conv3 = conv(channels, 4 * channels, 1, 1)
        self.downsample = _shortcut(channels_in, 4 * channels, stride, conv)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b p q o"]:
        """Apply the block."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.conv2(self.conv1(x, relu=True), relu=True)
        return self.conv3(y, add=shortcut, relu=True)


# Makes a convolution of channels in and out, the side of the kernel, and the stride.
_MakeConv = Callable[[int, int, int, int], Conv | NormedConv]


def _shortcut(channels_in: int, channels_out: int, stride: int, conv: _MakeConv) -> Conv | NormedConv | None:
    if stride == 1 and channels_in == channels_out:
        return None
    return conv(channels_in, channels_out, 1, stride)


class ResNet(Network):
    """A residual network; its layers are ``stem`` (after the max-pool) and ``layer1`` … ``layer4``."""

    def __init__(self, config: ResNetConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        block = BasicBlock if config.block == "basic" else Bottleneck

        def conv(channels_in: int, channels_out: int, kernel: int, stride: int) -> Conv | NormedConv:
            layer = Conv(
                channels_in,
                channels_out,
                kernel,
                stride=stride,
                padding=kernel // 2,
                bias=not config.norms,
                dtype=dtype,
                rounded=jnp.float32 if config.norms else dtype,
                rngs=rngs,
            )
            return NormedConv(layer, rngs) if config.norms else layer

        if config.patches:
            self.conv1 = conv(3 * PATCH**2, config.stem_channels, 3, 1)
        else:
            self.conv1 = conv(3, config.stem_channels, 7, 2)
        width = config.stem_channels
        for stage, (depth, channels) in enumerate(zip(config.depths, config.channels, strict=True), 1):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                blocks.append(block(width, channels, stride, conv))
                width = channels * config.expansion
            setattr(self, f"layer{stage}", nnx.List(blocks))
        self.fc = Linear(width, config.num_classes, dtype=dtype, rngs=rngs) if config.num_classes else None

    def stages(self) -> tuple[Stage, ...]:
        """List ``stem`` and one stage a ``layer``."""
        numbers = range(1, len(self.config.depths) + 1)
        return (
            Stage("stem", self._stem),
            *(Stage(f"layer{n}", _chain(getattr(self, f"layer{n}"))) for n in numbers),
        )

    def head(self, features: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """Compute the mean over the grid, or the logits in a network with a classifier."""
        pooled = global_average(features)
        return pooled if self.fc is None else self.fc(pooled)

    def _stem(self, x: Float[Array, "b height width 3"]) -> Float[Array, "b h w c"]:
        if self.config.patches:
            return self.conv1(_to_patches(x), relu=True)
        return _max_pool(clear_outside(self.conv1(x, relu=True)))


@jax.custom_jvp
def _max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b p q c"]:
    """Max-pool non-negative numbers over 3 × 3, with a stride of 2."""
    y: Array = lax.platform_dependent(x, cpu=_max_pool_by_bits, default=_max_pool_by_windows)
    return y


def _max_pool_by_bits(x: Float[Array, "b h w c"]) -> Float[Array, "b p q c"]:
    """Max-pool as ``_max_pool`` does, for a CPU.

    Non-negative numbers have the order of their bits as integers, of which XLA's CPU compares whole vectors:
    bfloat16 takes a thirtieth of the time.
    """
    bits = lax.bitcast_convert_type(x, jnp.int16 if x.dtype == jnp.bfloat16 else jnp.int32)
    bits = jnp.pad(bits, ((0, 0), (1, 1), (1, 1), (0, 0)))
    ends = [side - 2 for side in bits.shape[1:3]]
    shifted = [bits[:, i : ends[0] + i : 2, j : ends[1] + j : 2] for i in range(3) for j in range(3)]
    return lax.bitcast_convert_type(reduce(jnp.maximum, shifted), x.dtype)


@_max_pool.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return jax.jvp(_max_pool_by_windows, primals, tangents)


def _max_pool_by_windows(x: Float[Array, "b h w c"]) -> Float[Array, "b p q c"]:
    window, strides, pads = (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    y: Array = lax.reduce_window(x, -jnp.inf, lax.max, window, strides, pads)
    return y


def fold_norms(network: ResNet) -> ResNet:
    """Fold the batch norms of a network, as they are in ``eval`` mode, into its convolutions; float32."""
    folded = ResNet(replace(network.config, norms=False), rngs=nnx.Rngs(0))
    places: dict[Any, Any] = dict(nnx.iter_modules(folded))
    for path, module in nnx.iter_modules(network):
        if isinstance(module, NormedConv):
            places[path].kernel[...], places[path].bias[...] = module.fold()
    if folded.fc is not None and network.fc is not None:
        nnx.update(folded.fc, nnx.state(network.fc))
    return folded


def unfold_norms(network: ResNet, x: Float[Array, "b h w 3"]) -> ResNet:
    """Give a network whose norms are folded batch norms again, to be trained further.

    In ``eval`` mode the result computes what the network does, and ``fold_norms`` gives that network again.
    Its running statistics are those of ``x``: in ``train`` mode it computes the same of the batch ``x``.

    Args:
        network: The network, without norms.
        x: Images to take the statistics of, normalised as the network takes them.
    """
    normed = ResNet(replace(network.config, norms=True), rngs=nnx.Rngs(0))
    folded: dict[Any, Any] = dict(nnx.iter_modules(network))
    convs = {path: module for path, module in nnx.iter_modules(normed) if isinstance(module, NormedConv)}
    for path, module in convs.items():
        module.conv.kernel[...] = folded[path].kernel[...].astype(jnp.float32)
        module.norm.momentum = 0.0  # a running statistic is that of the last batch
    graphdef, state = nnx.split(normed)

    @jax.jit
    def measure(state: nnx.State[Any, Any]) -> nnx.State[Any, Any]:
        model = nnx.merge(graphdef, state, copy=True)
        model.train()  # type: ignore[no-untyped-call]
        model.features(x)
        for path, module in nnx.iter_modules(model):
            if isinstance(module, NormedConv):
                norm = module.norm
                assert norm.scale is not None and norm.bias is not None
                norm.scale[...] = jnp.sqrt(norm.var[...] + norm.epsilon)
                norm.bias[...] = folded[path].bias[...].astype(jnp.float32) + norm.mean[...]
        return nnx.state(model)

    # Each pass sets the norms whose inputs the pass before it set.
    for _ in convs:
        state = measure(state)
    unfolded = nnx.merge(graphdef, state)
    for _, layer in nnx.iter_modules(unfolded):
        if isinstance(layer, NormedConv):
            layer.norm.momentum = NORM_MOMENTUM
    if unfolded.fc is not None and network.fc is not None:
        nnx.update(unfolded.fc, nnx.state(network.fc))
    return unfolded


def _to_patches(x: Float[Array, "b height width 3"]) -> Float[Array, "b h w c"]:
    b, height, width, channels = x.shape
    h, w = height // PATCH, width // PATCH
    x = x.reshape(b, h, PATCH, w, PATCH, channels)
    return jnp.moveaxis(x, 2, 3).reshape(b, h, w, PATCH * PATCH * channels)


def _chain(blocks: Iterable[BasicBlock | Bottleneck]) -> Callable[[Array], Array]:
    def apply(x: Float[Array, "b h w i"]) -> Float[Array, "b p q o"]:
        for block in blocks:
            x = block(x)
        return x

    return apply
