"""Grad-CAM (Selvaraju et al. 2017), and what was made of it: where in an image a classifier sees a class.

A network is split at a layer: its features A are the trunk's, and the head makes logits y of them. The weight
of a channel k is the mean over the grid of the class's gradient, and the map is what the channels, so
weighted, speak for (§3, equations 1 and 2):

    α_k = 1/Z Σ_ij ∂y_c / ∂A_ij^k,        L = ReLU(Σ_k α_k A^k)

No hooks are needed: the gradient is ``jax.vjp`` of the head alone, at the trunk's features. ``head`` is any
pure function ``(b, h, w, c) → (b, classes)`` that treats each image by itself (batch norms evaluating, as
``network.eval()`` leaves them). Of one of our networks, at any of its layers:

    graphdef, state = nnx.split(network)                # network.eval() first

    @jax.jit
    def maps(state, x):                                 # x: images, normalised
        network = nnx.merge(graphdef, state)
        features = network.features_to(x, layer)
        return to_image(grad_cam(lambda A: network.from_layer(A, layer), features), *x.shape[1:3])

The paper of the method "CAM" (Storås 2021) counts layers as the code it published does: the number is the
index in the ``_blocks`` of lukemelas's EfficientNet, from 0 and straight on over the stages. That is our
number too: its layers 13, 14, 20 and 22 are ``blocks.13`` … ``blocks.22``, the last the last of b1's 23
blocks. What is read is the block's output, its shortcut added. The class is that of the highest logit; a
binary classifier's only logit is always it, so that the map shows what speaks for the positive class.
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

SAMPLES = 16  # of ``smooth``
NOISE = 0.15  # of ``smooth``: the middle of what its authors recommend, a tenth to a fifth of the range


class ClassGradient(NamedTuple):
    """The logits of a batch, the class taken of each image, and its logit's gradient at the features."""

    logits: Float[Array, "b k"]
    classes: Int[Array, " b"]
    gradient: Grid


def class_gradient(head: Head, features: Grid, classes: Int[Array, " b"] | None = None) -> ClassGradient:
    """Differentiate one logit an image, that of ``classes`` or else its highest, by the features.

    ``features (b, h, w, c)`` float, ``classes (b,)`` int, 0…k−1; the gradient has the features' shape.
    """
    logits, pull = jax.vjp(head, features)
    if classes is None:
        classes = jnp.argmax(logits, axis=-1)
    (gradient,) = pull(jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype))
    return ClassGradient(logits, classes, gradient)


def grad_cam(head: Head, features: Grid, classes: Int[Array, " b"] | None = None) -> Maps:
    """Map where the features speak for a class (Grad-CAM, equations 1 and 2).

    ``features (b, h, w, c)`` float, ``classes (b,)`` int, the class of each image: that of its highest logit
    unless given. Returns ``(b, h, w)`` ≥ 0, in the logit's units: ``to_image`` scales it.
    """
    gradient = class_gradient(head, features, classes).gradient
    return _weighted(gradient.mean((1, 2)), features)


def grad_cam_plus_plus(head: Head, features: Grid, classes: Int[Array, " b"] | None = None) -> Maps:
    """Map where the features speak for a class, small and repeated objects too (Grad-CAM++, Chattopadhay et
    al. 2018).

    Each pixel's gradient g counts by itself in the weight of a channel (equation 19, the score being the
    exponential of the logit):

        α_k = Σ_ij ReLU(g_ij^k) · g² / (2 g² + g³ Σ_ab A_ab^k) = Σ_ij ReLU(g_ij^k) / (2 + g_ij^k Σ_ab A_ab^k)

    The paper reads after a ReLU, where A ≥ 0 and nothing divides by zero. An MBConv block's output has both
    signs: of it the sum takes ReLU(A), which is A itself where the paper's condition holds. Arguments and
    result as in ``grad_cam``.
    """
    gradient = jax.nn.relu(class_gradient(head, features, classes).gradient)
    total = jax.nn.relu(features).sum((1, 2), keepdims=True)
    return _weighted((gradient / (2 + gradient * total)).sum((1, 2)), features)


def _weighted(weights: Float[Array, "b c"], features: Grid) -> Maps:
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
    """Average the maps of noisy copies of each image, which lessens what is accidental in them (SmoothGrad,
    Smilkov et al. 2017, §2.2, of a map instead of a gradient).

    ``method``: ``grad_cam`` or ``grad_cam_plus_plus``; ``images``: as the trunk takes them, normalised;
    ``noise``: standard deviation of the added normal noise, as a share of the image's range; ``classes`` as
    in ``grad_cam``, read from the image without noise. All images get the same ``samples`` fields of noise,
    so a map does not depend on what else is in the batch. Costs ``samples`` times a map (one more trunk and
    head unless ``classes`` are given), and the memory of one. Returns ``(b, h, w)``.
    """
    if classes is None:
        classes = jnp.argmax(head(trunk(images)), axis=-1)
    spread = noise * (images.max((1, 2, 3), keepdims=True) - images.min((1, 2, 3), keepdims=True))

    def sample(key: Key) -> Maps:
        field = jax.random.normal(key, (1, *images.shape[1:]), images.dtype)
        return method(head, trunk(images + spread * field), classes)

    return jax.lax.map(sample, jax.random.split(key, samples)).mean(0)


def to_image(maps: Maps, height: int, width: int) -> Float[Array, "b height width"]:
    """Resize maps bilinearly to their images, and then scale each to [0, 1]: its least is 0, its greatest 1.

    ``maps (b, h, w)`` → ``(b, height, width)``, half-pixel centres. A map without any contrast, such as that
    of an image in which nothing speaks for the class, is 0 everywhere; its contrast is taken to be none below
    a millionth of its size, where only rounding is left.
    """
    resized = jax.image.resize(maps, (maps.shape[0], height, width), "bilinear", antialias=False)
    low, high = resized.min((1, 2), keepdims=True), resized.max((1, 2), keepdims=True)
    contrast = high - low
    flat = contrast <= 1e-6 * jnp.maximum(jnp.abs(low), jnp.abs(high))
    return jnp.where(flat, 0, jnp.minimum((resized - low) / jnp.where(flat, 1, contrast), 1))
