"""Grad-CAM (Selvaraju et al. 2017) and two methods after it: where in an image a classifier sees a class.

A network is split at a layer: the trunk makes features A, and the head makes logits y of them. The weight of
a channel k is the mean over the grid of the class's gradient. The map is the sum of the channels, so
weighted, where it speaks for the class (§3, equations 1 and 2):

    α_k = 1/Z Σ_ij ∂y_c / ∂A_ij^k,        L = ReLU(Σ_k α_k A^k)

The gradient is ``jax.vjp`` of the head alone, at the trunk's features. ``head`` is any pure function
``(b, h, w, c) → (b, classes)`` that treats each image by itself (batch norms evaluating, as
``network.eval()`` leaves them). For one of our networks, at any of its layers:

    graphdef, state = nnx.split(network)                # network.eval() first

    @jax.jit
    def maps(state, x):                                 # x: images, normalized
        network = nnx.merge(graphdef, state)
        features = network.features_to(x, layer)
        heat = grad_cam(lambda A: network.from_layer(A, layer), features)
        return resize_and_scale(heat, *x.shape[1:3])

The paper "CAM" (Storås 2021) counts layers as its published code does: the number is the index in the
``_blocks`` of lukemelas's EfficientNet, from 0 and straight on over the stages. That is our number too: its
layers 13, 14, 20 and 22 are ``blocks.13`` … ``blocks.22``, the last of b1's 23 blocks. A layer's features are
the block's output, its shortcut added. The class is that of the highest logit. A binary classifier has one
logit, so its map shows what speaks for the positive class.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fseg_jax.numerics.arrays import Key

Grid = Float[Array, "b h w c"]
Head = Callable[[Grid], Float[Array, "b k"]]
Trunk = Callable[[Float[Array, "b height width 3"]], Grid]
Maps = Float[Array, "b h w"]
Method = Callable[[Head, Grid, Int[Array, " b"] | None], Maps]

SAMPLES = 16  # noisy copies of an image in ``smooth``
NOISE = 0.15  # of an image's range, in ``smooth``: its authors recommend a tenth to a fifth


class ClassGradient(NamedTuple):
    """The gradient of one logit an image."""

    logits: Float[Array, "b k"]
    classes: Int[Array, " b"]  # the class of the logit
    gradient: Grid  # at the features


def differentiate_class(head: Head, features: Grid, classes: Int[Array, " b"] | None = None) -> ClassGradient:
    """Differentiate one logit an image by the features: that of ``classes``, or the highest one.

    ``features (b, h, w, c)`` float, ``classes (b,)`` int, 0…k−1; the gradient has the features' shape.
    """
    logits, pull = jax.vjp(head, features)
    if classes is None:
        classes = jnp.argmax(logits, axis=-1)
    (gradient,) = pull(jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype))
    return ClassGradient(logits, classes, gradient)


def grad_cam(head: Head, features: Grid, classes: Int[Array, " b"] | None = None) -> Maps:
    """Map where the features speak for a class (Grad-CAM, equations 1 and 2).

    ``features (b, h, w, c)`` float. ``classes (b,)`` int is the class of each image: that of its highest
    logit unless given. Returns ``(b, h, w)`` ≥ 0, in the logit's units; ``resize_and_scale`` scales it.
    """
    gradient = differentiate_class(head, features, classes).gradient
    return _combine_channels(gradient.mean((1, 2)), features)


def grad_cam_plus_plus(head: Head, features: Grid, classes: Int[Array, " b"] | None = None) -> Maps:
    """Map where the features speak for a class, also small and repeated objects (Grad-CAM++).

    In Chattopadhay et al. (2018) each pixel's gradient g counts by itself in the weight of a channel
    (equation 19, where the score is the exponential of the logit):

        α_k = Σ_ij ReLU(g_ij^k) · g² / (2 g² + g³ Σ_ab A_ab^k) = Σ_ij ReLU(g_ij^k) / (2 + g_ij^k Σ_ab A_ab^k)

    The paper reads after a ReLU, where A ≥ 0 and nothing divides by zero. An MBConv block's output has both
    signs: the sum is of ReLU(A), which is A itself where the paper's condition holds. Arguments and result
    are as in ``grad_cam``.
    """
    gradient = jax.nn.relu(differentiate_class(head, features, classes).gradient)
    total = jax.nn.relu(features).sum((1, 2), keepdims=True)
    return _combine_channels((gradient / (2 + gradient * total)).sum((1, 2)), features)


def _combine_channels(weights: Float[Array, "b c"], features: Grid) -> Maps:
    return jax.nn.relu(jnp.einsum("bc,bhwc->bhw", weights, features, precision="highest"))


def smooth(
    method: Method,
    head: Head,
    trunk: Trunk,
    images: Float[Array, "b height width 3"],
    classes: Int[Array, " b"] | None = None,
    *,
    key: Key,
    samples: int = SAMPLES,
    noise: float | Float[Array, ""] = NOISE,
) -> Maps:
    """Average the maps of noisy copies of each image, which makes them less accidental.

    This is SmoothGrad (Smilkov et al. 2017, §2.2) of a map instead of a gradient. All images get the same
    ``samples`` fields of noise, so a map does not depend on the rest of the batch. It takes the time of
    ``samples`` maps (and one more trunk and head unless ``classes`` are given), and the memory of one.

    Args:
        method: ``grad_cam`` or ``grad_cam_plus_plus``.
        head: as in ``grad_cam``.
        trunk: from images to features.
        images: as the trunk takes them, normalized.
        classes: as in ``grad_cam``, read from the image without noise.
        key: of the noise.
        samples: how many noisy copies.
        noise: standard deviation of the noise, as a share of the image's range.

    Returns:
        Maps ``(b, h, w)``.
    """
    if classes is None:
        classes = jnp.argmax(head(trunk(images)), axis=-1)
    spread = noise * (images.max((1, 2, 3), keepdims=True) - images.min((1, 2, 3), keepdims=True))

    def sample(key: Key) -> Maps:
        field = jax.random.normal(key, (1, *images.shape[1:]), images.dtype)
        return method(head, trunk(images + spread * field), classes)

    maps: Array = jax.lax.map(sample, jax.random.split(key, samples))
    return maps.mean(0)


def resize_and_scale(maps: Maps, height: int, width: int) -> Float[Array, "b height width"]:
    """Resize maps bilinearly to their images, and then scale each from its least to its greatest: to [0, 1].

    ``maps (b, h, w)`` → ``(b, height, width)``, half-pixel centres. A map without contrast is 0 everywhere,
    such as that of an image in which nothing speaks for the class. Contrast below a millionth of its size
    counts as
    none: it is rounding.
    """
    resized = jax.image.resize(maps, (maps.shape[0], height, width), "bilinear", antialias=False)
    low, high = resized.min((1, 2), keepdims=True), resized.max((1, 2), keepdims=True)
    contrast = high - low
    flat = contrast <= 1e-6 * jnp.maximum(jnp.abs(low), jnp.abs(high))
    return jnp.where(flat, 0, jnp.minimum((resized - low) / jnp.where(flat, 1, contrast), 1))
