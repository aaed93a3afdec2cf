"""The layers that networks are built of, and the network as a chain of named stages.

Precision is decided here, once. With ``dtype=bfloat16`` kernels are stored in bfloat16, and products take
bfloat16 operands and sum in float32. Biases, norms, softmax and everything between products stay in float32,
except where a convolution is told to round its result.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.nn.initializers import lecun_normal, variance_scaling
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fseg_jax.encoders.frames import clear_outside, mask_grid
from fseg_jax.encoders.kernels.convolution import Plan, convolve
from fseg_jax.encoders.kernels.products import choose_precision
from fseg_jax.errors import InputError
from fseg_jax.files.kinds import suggest_names

Padding = int | str  # zeros on each side, or XLA's name of a padding


class Stage(NamedTuple):
    """A named step of a network."""

    name: str
    apply: Callable[[Array], Array]  # from the output of the step before it to its own


class Network(nnx.Module):
    """A network as a chain of named stages; any of them can be read, or continued from.

    A subclass gives ``stages()`` and ``head(features)``. Between them the first axis are the passes through
    the network, of which an image can take several. Nothing past the layer that is read is computed. For jit,
    split the network with ``graphdef, state = nnx.split(network)``, and pass the state.
    """

    def stages(self) -> Sequence[Stage]:
        """List the steps from the normalised image to the trunk's final output, in order."""
        raise NotImplementedError

    def stages_for(self, x: Float[Array, "b height width 3"]) -> Sequence[Stage]:
        """List the steps for images of such sides, which are the same for most networks."""
        return self.stages()

    def head(self, features: Float[Array, "passes ..."]) -> Float[Array, "b c"]:
        """Compute the embedding or the logits of each image from the trunk's final output."""
        raise NotImplementedError

    def layers(self) -> tuple[str, ...]:
        """List the names that ``grid``, ``features_to`` and ``from_layer`` know, in order."""
        return tuple(stage.name for stage in self.stages())

    def features_to(self, x: Float[Array, "b height width 3"], layer: str) -> Float[Array, "passes ..."]:
        """Compute the output of a named layer; InputError where the network has no such layer."""
        for stage in self.stages_for(x)[: self._position(layer) + 1]:
            x = stage.apply(x)
        return x

    def from_layer(self, features: Float[Array, "passes ..."], layer: str) -> Float[Array, "b c"]:
        """Compute the head's output from a named layer's output.

        ``from_layer(features_to(x, layer), layer)`` is ``self(x)``.
        """
        for stage in self.stages()[self._position(layer) + 1 :]:
            features = stage.apply(features)
        return self.head(features)

    def features(self, x: Float[Array, "b height width 3"]) -> Float[Array, "passes ..."]:
        """Compute the trunk's final output."""
        for stage in self.stages_for(x):
            x = stage.apply(x)
        return x

    def intermediates(self, x: Float[Array, "b height width 3"]) -> dict[str, Float[Array, "passes ..."]]:
        """Compute the output of every layer, by name."""
        outputs = {}
        for stage in self.stages_for(x):
            outputs[stage.name] = x = stage.apply(x)
        return outputs

    def grid(self, x: Float[Array, "b height width 3"], layer: str) -> Float[Array, "b h w c"]:
        """Compute the grid of features at a named layer, in float32.

        The features are as they leave the layer. Where they can be negative, the caller applies the ReLU.
        """
        return self.features_to(x, layer).astype(jnp.float32)

    def __call__(self, x: Float[Array, "b height width 3"]) -> Float[Array, "b c"]:
        """Compute the head's output for normalised images."""
        return self.head(self.features(x))

    def _position(self, layer: str) -> int:
        names = self.layers()
        if layer not in names:
            near = suggest_names(layer, names)
            raise InputError(f"this network has no layer {layer!r}: {near}give one of {_abbreviate(names)}")
        return names.index(layer)


def _abbreviate(names: Sequence[str]) -> str:
    shown = names if len(names) <= 12 else (*names[:4], "…", *names[-3:])
    return ", ".join(shown)


class Conv(nnx.Module):
    """A convolution over (B, H, W, C); its kernel is (height, width, in / groups, out).

    ``rounded`` is the dtype that the result is rounded to. The next convolution reads no more digits than
    that, and half of the memory traffic between them is saved.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: Padding = 0,
        groups: int = 1,
        bias: bool = True,
        dtype: DTypeLike = jnp.float32,
        rounded: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        shape = (kernel, kernel, channels_in // groups, channels_out)
        init = variance_scaling(2.0, "fan_out", "normal")
        self.kernel = nnx.Param(init(rngs.params(), shape, dtype))
        self.bias = nnx.Param(jnp.zeros((channels_out,), jnp.float32)) if bias else None
        self.stride, self.padding, self.groups, self.rounded = stride, padding, groups, jnp.dtype(rounded)

    def __call__(
        self, x: Float[Array, "b h w i"], add: Float[Array, "b p q o"] | None = None, relu: bool = False
    ) -> Float[Array, "b p q o"]:
        """Convolve, add the bias and ``add``, and take the positive part where ``relu`` says so."""
        kernel = self.kernel[...]
        if kernel.shape[:2] != (1, 1):
            x = clear_outside(x)
        if isinstance(self.padding, str):
            strides = (self.stride, self.stride)
            pads = tuple(lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, self.padding))
        else:
            pads = ((self.padding, self.padding),) * 2
        bias = None if self.bias is None else self.bias[...]
        return convolve(x, kernel, bias, add, Plan(self.stride, pads, self.groups, relu, self.rounded))


class Linear(nnx.Module):
    """An affine map of the last axis; its kernel is (in, out).

    ``rounded`` is the dtype that the result is rounded to: that of the product which it goes into.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        bias: bool = True,
        dtype: DTypeLike = jnp.float32,
        rounded: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(lecun_normal()(rngs.params(), (channels_in, channels_out), dtype))
        self.bias = nnx.Param(jnp.zeros((channels_out,), jnp.float32)) if bias else None
        self.rounded = jnp.dtype(rounded)

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        """Multiply by the kernel, summing in float32, and add the bias."""
        kernel = self.kernel[...]
        bias = None if self.bias is None else self.bias[...]

        def apply(x: Array, kernel: Array, bias: Array | None, dtype: DTypeLike) -> Array:
            precision = choose_precision(kernel.dtype)
            y = jnp.matmul(x, kernel, precision=precision, preferred_element_type=dtype)
            return (y if bias is None else y + along_channels(bias, y)).astype(self.rounded)

        x, exact = x.astype(kernel.dtype), partial(apply, dtype=jnp.float32)
        if self.rounded == jnp.float32:
            return exact(x, kernel, bias)
        # An accelerator writes half as much; a CPU's products of bfloat16 are slow where they are rounded.
        y: Array = lax.platform_dependent(
            x, kernel, bias, cpu=exact, default=partial(apply, dtype=self.rounded)
        )
        return y


class LayerNorm(nnx.Module):
    """A normalisation of the last axis to mean 0 and variance 1, in float32 whatever the network's dtype."""

    def __init__(self, channels: int, *, eps: float):
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        """Normalise, scale and shift."""
        x = x.astype(jnp.float32)
        mean = x.mean(-1, keepdims=True)
        # The centred values are squared: the mean of squares less the squared mean would lose digits on large
        # activations.
        variance = jnp.square(x - mean).mean(-1, keepdims=True)
        scale, bias = along_channels(self.scale[...], x), along_channels(self.bias[...], x)
        return (x - mean) * (lax.rsqrt(variance + self.eps) * scale) + bias


def along_channels(vector: Float[Array, " c"], like: Float[Array, "*batch c"]) -> Float[Array, "*ones c"]:
    """Reshape a vector of a number a channel to the rank of ``like``, to be added or multiplied."""
    return vector.reshape((1,) * (like.ndim - 1) + (-1,))


def relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Compute max(x, 0)."""
    return jax.nn.relu(x)


def gelu(x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
    """Compute x · Φ(x) in float32; exactly, or for x in bfloat16 far within the rounding to it.

    An erf takes a sixth of a transformer's time on a GPU. So for bfloat16 Φ(x) is 1 / (1 + exp(−p(x))), with
    an odd polynomial p that was fitted to log Φ(x) − log Φ(−x). It is off by less than a quarter of what the
    rounding is off by, or by 2e-6.
    """
    if x.dtype != jnp.bfloat16:
        return jax.nn.gelu(x, approximate=False)
    x = x.astype(jnp.float32)
    square = jnp.minimum(x * x, 36)  # beyond 6, Φ is 0 or 1; the polynomial turns round later
    return x * jax.nn.sigmoid(x * (1.59411011 + square * (0.0746816296 - 0.000790490359 * square)))


def global_average(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """Average over each image's grid, in float32."""
    x, mask = x.astype(jnp.float32), mask_grid(*x.shape[1:3])
    return x.mean((1, 2)) if mask is None else x.mean((1, 2), where=mask[..., None])
