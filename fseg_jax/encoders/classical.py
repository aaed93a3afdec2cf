"""The encoder ``classical``: stain and texture, a baseline that needs no weights and no download.

A token is 16 × 16 pixels. Its features say how much haematoxylin and eosin there is, how they are spread, and
how rough they are at two scales.

- Colour deconvolution (Ruifrok & Johnston 2001): optical density OD = −log₁₀(I / 255) unmixed with their
  haematoxylin and eosin vectors and the vector orthogonal to both.
- Local histograms of both stains: eight soft bins each, so that a small change of stain changes the
  histogram little.
- Gradient energy of both stains at two scales, 1 and 4 pixels.

All of them are averaged over the token and, by a small binomial window, over its neighbours, because 16 µm
are too small to show a tissue. Histograms are averages over pixels: a token of two tissues has the
mixture of their histograms, as a factorization A ≈ W·H assumes.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from fseg_jax.encoders.encoder import EncoderCard, JaxEncoder
from fseg_jax.encoders.frames import get_grid_sizes, repeat_edges
from fseg_jax.numerics.arrays import Array

VERSION = 1  # raised whenever the features of an image change
STRIDE = 16  # pixels a token
BINS = 8  # of a histogram
MAX_DENSITY = (1.2, 0.9)  # optical density at the middle of the last bin: haematoxylin, eosin

# Ruifrok & Johnston (2001), rows haematoxylin and eosin, in optical density of R, G, B.
STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]])


def _basis() -> Float[np.ndarray, "3 3"]:
    """Compute unit rows, in optical density: haematoxylin, eosin, and the residual direction."""
    stains = STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)
    residual = np.cross(stains[0], stains[1])
    return np.vstack([stains, residual / np.linalg.norm(residual)])


BASIS = _basis()
# Optical density @ UNMIXING = (haematoxylin, eosin).
UNMIXING = np.linalg.inv(BASIS)[:, :2].astype(np.float32)
# From the interleaved optical densities of 16 pixels to those of one stain. This product takes a tenth of the
# time on a CPU that separating the colours takes.
UNMIXING_ROW = np.stack([np.kron(np.eye(STRIDE, dtype=np.float32), UNMIXING[:, [s]]) for s in (0, 1)])


def _pool(x: Float[Array, "*b H W"], side: int) -> Float[Array, "*b h w"]:
    *batch, height, width = x.shape
    rows = x.reshape(*batch, height // side, side, width).mean(-2)
    return rows.reshape(*batch, height // side, width // side, side).mean(-1)


def _blur(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Apply the binomial window (1 2 1) / 4 in both directions, edges replicated."""
    for axis in (1, 2):
        padding = [(0, 0)] * 4
        padding[axis] = (1, 1)
        padded = jnp.pad(x, padding, mode="edge")
        n = x.shape[axis]
        previous, current, following = (jnp.take(padded, jnp.arange(i, i + n), axis=axis) for i in range(3))
        x = 0.25 * previous + 0.5 * current + 0.25 * following
    return x


def _gradient_energy(x: Float[Array, "s H W"]) -> Float[Array, "s H W"]:
    """Compute the root of the squared central differences in both directions, edges replicated."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1)), mode="edge")
    dy = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    dx = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    return jnp.sqrt(dy * dy + dx * dx + 1e-8)


def encode_stains(weights: None, x: Float[Array, "b H W 3"]) -> Float[Array, "b h w 20"]:
    """Encode images in [0, 1] whose sides are multiples of 16.

    Channels are 2 × 8 bins of histograms and 2 × 2 gradient energies. ``weights`` is not used.
    """
    # One image at a time: intermediate arrays stay in the processor's cache, and memory does not grow with
    # the batch.
    sizes = get_grid_sizes(*x.shape[1:3])
    if sizes is None:
        return _blur(jax.lax.map(_image_features, x))
    grid = jax.lax.map(lambda image: _image_features(*image), (x, sizes))
    grid = jax.vmap(repeat_edges)(jnp.moveaxis(grid, -1, 1), sizes // STRIDE)
    return _blur(jnp.moveaxis(grid, 1, -1))


def _image_features(x: Float[Array, "H W 3"], size: Int[Array, "2"] | None = None) -> Float[Array, "h w 20"]:
    height, width, _ = x.shape
    # Optical density of haematoxylin and eosin, ≥ 0 (Ruifrok & Johnston 2001).
    optical = -jnp.log10(jnp.maximum(x, 1 / 255))
    interleaved = optical.reshape(height, width // STRIDE, 3 * STRIDE)
    planes = [jnp.matmul(interleaved, row, precision="highest") for row in UNMIXING_ROW]
    density = jnp.maximum(jnp.stack(planes).reshape(2, height, width), 0)
    # Soft bins: a value is shared between the two bins whose middles are nearest, in proportion.
    maximum = jnp.asarray(MAX_DENSITY, jnp.float32).reshape(2, 1, 1)
    position = jnp.minimum(density / maximum, 1) * (BINS - 1)
    histograms = [_pool(jnp.maximum(1 - jnp.abs(position - center), 0), STRIDE) for center in range(BINS)]
    fine = _pool(_gradient_energy(density), STRIDE)
    quarter = _pool(density, 4)
    quarter = quarter if size is None else repeat_edges(quarter, size // 4)
    coarse = _pool(_gradient_energy(quarter), STRIDE // 4)
    stained = jnp.stack(histograms, axis=1).reshape(2 * BINS, *fine.shape[1:])
    # Scale the energies to the range of the histograms: about 1 in the roughest tissue.
    return jnp.moveaxis(jnp.concatenate([stained, 4 * fine, 4 * coarse]), 0, -1)


def classical() -> JaxEncoder:
    """Make the encoder ``classical``: stride 16, 20 channels, 1 µm per pixel, no weights.

    >>> classical().card.channels
    20
    """
    definition = repr((VERSION, STRIDE, BINS, MAX_DENSITY, STAINS.tolist()))
    card = EncoderCard(
        name="classical",
        layer="features",
        channels=2 * BINS + 4,
        stride=STRIDE,
        tile=512,
        mpp=1.0,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        licence="Apache-2.0",
        citation="Ruifrok AC, Johnston DA. Quantification of histochemical staining by color deconvolution. "
        "Anal Quant Cytol Histol 2001; 23:291–299",
        weights_hash=hashlib.sha256(definition.encode()).hexdigest(),
    )
    return JaxEncoder(card, encode_stains, None)
