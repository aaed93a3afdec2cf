"""F-SEG: Segmentation by Factorization (Gildenblat & Hadar 2024, arXiv 2409.05697).

The spatial features of a frozen encoder are a non-negative matrix A, one row a token, one column a channel.
It is factorized (§3.1),

    A ≈ W · H,

into concepts H and their contributions W. Each pixel belongs to the concept that contributes most to it,
β_ij = argmax_m W_ijm. Where no concept contributes, the pixel is background. A concept gets its name from
cluster centres μ, which were fitted over a cohort (``codebook.py``), in one of two modes:

- ``"assign"`` (§3.2.1): solve for W and H. Each concept takes the name of the centre of highest cosine
  similarity, ŷ_ij = argmax_k μ_k · H_β / (‖μ_k‖ ‖H_β‖).
- ``"fixed"`` (§3.2.2): H = μ. Solve for W alone.

Where paper and code differ, this follows the authors' code (``segf`` 1.0.4):

- The paper resizes the finished mask to the image (§3.2). The code resizes W bilinearly and takes the argmax
  then, which is smoother. ``resize="nearest"`` is the paper's way.
- The paper reads "the final self-attention block". The code reads that block's output before the
  transformer's final norm, without prefix tokens, through a ReLU (``encoders/vit``).
- In mode "assign" the code starts from scikit-learn's random start on the transposed matrix, with 20
  concepts. ``nmf.factorize`` makes the same updates in the same order.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from fseg_jax.errors import InputError
from fseg_jax.numerics import nmf
from fseg_jax.numerics.arrays import Centers, Features, Key
from fseg_jax.numerics.axes import normalize
from fseg_jax.numerics.resample import upsample_argmax, upsample_nearest
from fseg_jax.numerics.scaling import safe_scale

Mode = Literal["fixed", "assign"]
Resize = Literal["bilinear", "nearest"]
MODES: tuple[Mode, ...] = ("fixed", "assign")
RESIZES: tuple[Resize, ...] = ("bilinear", "nearest")
_FAINT = 1e-6  # far below any contribution
CONCEPTS = 20  # concepts of a tile in mode "assign": the authors' default


class TileWeights(NamedTuple):
    """The contribution of every cluster to every token of a batch of tiles.

    Attributes:
        W: contributions.
        finite: whether all features of a tile, and all its contributions, are finite.
        converged: whether the solver converged, for each token.
    """

    W: Float[Array, "b h w k"]
    finite: Bool[Array, " b"]
    converged: Bool[Array, "b h w"]


def check_options(mode: str, resize: str) -> None:
    """Raise ``InputError`` unless mode and resize are known."""
    if mode not in MODES:
        raise InputError(f"mode {mode!r}: choose 'fixed' or 'assign'")
    if resize not in RESIZES:
        raise InputError(f"resize {resize!r}: choose 'bilinear' or 'nearest'")


def check_concepts(concepts: int, tokens: int) -> None:
    """Raise ``InputError`` if a tile has fewer tokens than concepts."""
    if concepts > tokens:
        raise InputError(f"{concepts} concepts for a tile of {tokens} tokens: choose fewer, or larger tiles")


def solve_tiles(
    features: Features,
    mu: Centers,
    key: Key,
    *,
    mode: Mode,
    concepts: int = CONCEPTS,
    tokens: Int[Array | np.ndarray, " b"] | None = None,
    mixtures: Float[Array | np.ndarray, "m c"] | None = None,
) -> TileWeights:
    """Solve for the contribution W of every cluster to every token, in either mode (§3.2.1, §3.2.2).

    In mode "assign" a cluster's contribution is the largest among the concepts of its name. So its argmax is
    the name of β, and the W of neighbouring tiles, whose concepts differ, can be blended.

    Args:
        features: ``(b, h, w, c)``.
        mu: the centres μ, ``(k, c)``. Very large or very small ones are all scaled by one power of two, which
            changes no label.
        key: of the random start of mode "assign".
        mode: "fixed" or "assign".
        concepts: how many concepts a tile has in mode "assign".
        tokens: how many tokens of each tile count, row by row. The others must be zero; they change nothing.
        mixtures: centres of tokens that see glass or two tissues, ``(m, c)``. They take part in the
            factorization and name nothing: their contributions are left out, so that a token at a border
            belongs to the tissue in it. Not in the paper.
    """
    _, h, w, _ = features.shape
    if mode == "assign":
        check_concepts(concepts, h * w)
    result: TileWeights = _solve_tiles(features, mu, key, mode, concepts, tokens, mixtures)
    return result


@partial(jax.jit, static_argnames=("mode", "concepts"))
def _solve_tiles(
    features: Features,
    mu: Centers,
    key: Key,
    mode: str,
    concepts: int,
    tokens: Int[Array | np.ndarray, " b"] | None = None,
    mixtures: Float[Array | np.ndarray, "m c"] | None = None,
) -> TileWeights:
    b, h, w, c = features.shape
    k = mu.shape[0]
    A = features.reshape(b, h * w, c).astype(jnp.float32)
    finite = jnp.isfinite(A).all((1, 2))
    A = jnp.where(finite[:, None, None], A, 0)  # a broken tile must not keep the solver going
    named = mu if mixtures is None else jnp.concatenate([mu, mixtures])
    if mode == "fixed":  # §3.2.2: H = μ
        W, converged = nmf.solve(A, named * safe_scale(jnp.max(named)))
    else:  # §3.1 and §3.2.1: A ≈ W · H, then names for H
        factors = nmf.factorize(A, concepts, key=key, rows=tokens)
        W = merge_concepts(factors.W, name_concepts(factors.H, named), named.shape[0])
        converged = jnp.broadcast_to(factors.converged[:, None], (b, h * w))
    finite &= jnp.isfinite(W).all((1, 2))
    if mixtures is not None:
        W = _fill_unnamed(W[..., :k], A, mu)
    return TileWeights(W.reshape(b, h, w, -1), finite, converged.reshape(b, h, w))


def _fill_unnamed(W: Float[Array, "b n k"], A: Float[Array, "b n c"], mu: Centers) -> Float[Array, "b n k"]:
    """Give a token to which no named cluster contributes a faint contribution of those that are like it."""
    cosine = jnp.matmul(normalize(A), normalize(mu).T, precision="highest")
    unnamed = ~jnp.any(W > 0, axis=-1, keepdims=True)
    return jnp.where(unnamed, _FAINT * jnp.maximum(cosine, 0), W)


def name_concepts(H: Float[Array, "*b m c"], mu: Centers) -> Int[Array, "*b m"]:
    """Name every concept after the centre of highest cosine similarity (§3.2.1): indices 0…k−1."""
    cosine = jnp.matmul(normalize(H), normalize(mu).T, precision="highest")
    return jnp.argmax(cosine, axis=-1).astype(jnp.int32)


def merge_concepts(W: Float[Array, "b n m"], names: Int[Array, "b m"], k: int) -> Float[Array, "b n k"]:
    """Take each cluster's largest contribution among the concepts of its name, or 0 if there are none."""

    def merge(w: Float[Array, "n m"], name: Int[Array, " m"]) -> Float[Array, "n k"]:
        return jnp.zeros((w.shape[0], k), w.dtype).at[:, name].max(w)

    return jax.vmap(merge)(W, names)


@partial(jax.jit, static_argnames=("stride", "resize"))
def label_pixels(
    W: Float[Array, "b p q k"], stride: int, resize: str = "bilinear"
) -> UInt[Array, "b height width"]:
    """Label every pixel with the cluster that contributes most, β_ij = argmax_m W_ijm: 1…k, or 0 for none.

    ``W (b, h + 2, w + 2, k)`` ≥ 0 has a frame of one token on each side. The labels are of the pixels inside
    the frame, ``(b, h·stride, w·stride)``, uint8 (uint16 when k > 255). With ``"bilinear"`` each contribution
    is resized first, and the argmax taken then. With ``"nearest"`` the argmax is taken for each token. Ties
    go to the lowest label.
    """
    dtype = jnp.uint8 if W.shape[-1] <= 255 else jnp.uint16
    if resize == "nearest":
        W = W[:, 1:-1, 1:-1]
        beta = jnp.where(jnp.any(W > 0, axis=-1), jnp.argmax(W, axis=-1) + 1, 0)
        return upsample_nearest(beta, stride).astype(dtype)
    return upsample_argmax(W, stride).astype(dtype)
