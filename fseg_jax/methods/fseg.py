"""F-SEG: Segmentation by Factorization (Gildenblat & Hadar 2024, arXiv 2409.05697).

The spatial features of a frozen encoder are a matrix A (rows·columns × channels), non-negative. It is
factorized,

    A ≈ W × H,                                                                        (§3.1)

and each pixel belongs to the concept that contributes most to it, β_ij = argmax_m W_ijm; one to which none
contributes belongs to none, and is background. What a concept is
called comes from cluster centres μ fitted over a cohort (``codebook.py``), in one of two ways:

- ``mode="assign"`` (§3.2.1): W and H are both solved for, and each concept takes the name of the centre of
  highest cosine similarity, ŷ_ij = argmax_k μ_k · H_β / (‖μ_k‖ ‖H_β‖).
- ``mode="fixed"`` (§3.2.2): H is the centres themselves, and only W is solved for.

Where code and paper differ, this follows the authors' code (``segf`` 1.0.4): the paper resizes the finished
mask to the image (§3.2), the code resizes W bilinearly and takes the argmax then, which is smoother;
``resize="nearest"`` is the paper's. The paper reads "the final self-attention block", the code that block's
output before the transformer's final norm, prefix tokens dropped, then ReLU (``encoders/vit.py``). The
code's start for ``"assign"`` is scikit-learn's random one on the transposed matrix, k = 20;
``nmf.factorize`` makes the same updates in the same order.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt, UInt8

from fseg_jax.codebook import Codebook
from fseg_jax.encoders.encoder import Encoder, EncoderCard, encode_framed
from fseg_jax.encoders.fingerprint import fingerprints_match, take_fingerprint
from fseg_jax.errors import InputError
from fseg_jax.numerics import nmf
from fseg_jax.numerics.arrays import Centres, Features, Key
from fseg_jax.numerics.axes import first, to_ordinary, unit
from fseg_jax.numerics.packing import packed

CONCEPTS = 20  # of mode "assign", a tile: the authors' default
MODES = ("fixed", "assign")
RESIZES = ("bilinear", "nearest")
FEW, MANY = 2, 16  # clusters interpolated in a cell between tokens: by all cells; by those that need more


class TileWeights(NamedTuple):
    """What ``tile_weights`` found: the contributions, whether all features of a tile (and what came of them)
    are finite, and for which tokens the solver converged.
    """

    W: Float[Array, "b h w k"]
    finite: Bool[Array, " b"]
    converged: Bool[Array, "b h w"]


def segment(
    image: np.ndarray,
    encoder: Encoder,
    codebook: Codebook,
    *,
    mode: str = "fixed",
    resize: str = "bilinear",
    concepts: int = CONCEPTS,
    seed: int = 0,
) -> UInt[np.ndarray, "height width"]:
    """Segment one image into the clusters of a codebook.

    ``image``: ``uint8 (height, width, 3)`` RGB of any size, at the encoder's mpp; its edges are replicated
    up to a multiple of the stride, as the authors do. It is taken whole up to 512 pixels a side (the
    encoder's tile, where that is larger), and beyond in overlapping tiles of that side, whose W are blended.
    Whatever the sizes of the images, six programs are compiled at most: each image is put into the smallest
    of a few frames that holds it (``frame_sides``), which changes neither its features nor its factorization
    but for rounding (of an encoder of your own, the features near its right and lower edges).

    Returns the clusters 1…k of the codebook's rows, uint8 (uint16 when k > 255), and 0 where no cluster has
    any weight: features of zero. Raises ``InputError`` for an image of another kind, a codebook of another
    encoder, features that are not finite, or fewer tokens than concepts. For slides, use
    ``cohort.worker.segment_slide``.
    """
    check(mode, resize)
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"an image of {image.dtype} {image.shape}: uint8 (height, width, 3) is needed")
    card = encoder.card
    check_codebook(codebook, encoder)
    stride, (height, width) = card.stride, image.shape[:2]
    image = np.pad(image, [(0, -height % stride), (0, -width % stride), (0, 0)], mode="edge")
    h, w = image.shape[0] // stride, image.shape[1] // stride
    centers, key = jax.device_put(codebook.centers), jax.random.key(seed)
    largest = frame_sides(card)[-1] // stride
    rows, columns = min(h, largest), min(w, largest)
    if mode == "assign":
        check_concepts(concepts, rows * columns)
    W = np.zeros((h, w, len(centers)), np.float32)
    for y, down in _spans(h, largest):
        for x, across in _spans(w, largest):
            tile = image[y * stride : (y + rows) * stride, x * stride : (x + columns) * stride]
            own = _framed_weights(tile, encoder, centers, key, mode, concepts)
            W[y : y + rows, x : x + columns] += down[:, None, None] * across[:, None] * own
    return _labels(W, card, resize)[:height, :width]


PATCHES = (256, 512)  # pixels of a side: what images mostly are that are no slides


def frame_sides(card: EncoderCard) -> tuple[int, ...]:
    """The sides in pixels of the frames that images are put into: those that patches mostly have, rounded up
    to the encoder's stride, and its tile's.
    """
    return tuple(sorted({-(-side // card.stride) * card.stride for side in (*PATCHES, card.tile)}))


def _spans(n: int, tile: int) -> list[tuple[int, Float[np.ndarray, " length"]]]:
    """Where tiles begin along an axis of n tokens, the last moved back inside, and what each of their tokens
    counts: the more the deeper it lies in its tile.
    """
    halo, length = max(1, round(tile / 16)), min(n, tile)
    starts = [*range(0, n - tile, tile - 2 * halo), n - length]
    place = np.arange(length, dtype=np.float32) + 0.5
    ramp = np.minimum(np.minimum(place, length - place) / (2 * halo), 1)
    total = np.zeros(n, np.float32)
    for start in starts:
        total[start : start + length] += ramp
    return [(start, ramp / total[start : start + length]) for start in starts]


def _framed_weights(
    image: UInt8[np.ndarray, "height width 3"],
    encoder: Encoder,
    centers: Centres,
    key: Key,
    mode: str,
    concepts: int,
) -> Float[np.ndarray, "h w k"]:
    """W of an image that fits into a frame: what it would be without one."""
    card, size = encoder.card, np.array(image.shape[:2], np.int32)
    side = next(side for side in frame_sides(card) if side >= size.max())
    framed = np.pad(image, [(0, side - size[0]), (0, side - size[1]), (0, 0)], mode="edge")
    h, w = (size // card.stride).tolist()
    features = np.asarray(encode_framed(encoder, jax.device_put(framed[None]), size[None]))
    A = features[0, :h, :w].reshape(h * w, -1)
    # Tokens in one row, so that two numbers of them are enough.
    rows = next(n for n in ((side // card.stride) ** 2 for side in frame_sides(card)[-2:]) if n >= len(A))
    A = np.pad(A, [(0, rows - len(A)), (0, 0)])
    own = np.array([h * w], np.int32)
    W, finite, _ = tile_weights(
        jax.device_put(A[None, None]), centers, key, mode=mode, concepts=concepts, tokens=own
    )
    if not np.asarray(finite).all():
        raise InputError(f"the features of the encoder {card.name!r} hold a NaN or an infinity")
    return np.asarray(W)[0, 0, : h * w].reshape(h, w, -1)


def _labels(
    W: Float[np.ndarray, "h w k"], card: EncoderCard, resize: str
) -> UInt[np.ndarray, "height width"]:
    """The labels of an image, made in blocks of one size."""
    h, w, _ = W.shape
    side, stride = -(-PATCHES[0] // card.stride), card.stride
    W = np.pad(W, [(1, 1 + -h % side), (1, 1 + -w % side), (0, 0)], mode="edge")
    return np.block(
        [
            [
                np.asarray(
                    block_labels(jax.device_put(W[None, y : y + side + 2, x : x + side + 2]), stride, resize)
                )[0]
                for x in range(0, w, side)
            ]
            for y in range(0, h, side)
        ]
    )


def check(mode: str, resize: str) -> None:
    """Raise ``InputError`` unless mode and resize are ones there are."""
    if mode not in MODES:
        raise InputError(f"mode {mode!r}: choose 'fixed' or 'assign'")
    if resize not in RESIZES:
        raise InputError(f"resize {resize!r}: choose 'bilinear' or 'nearest'")


def check_codebook(codebook: Codebook, encoder: Encoder) -> None:
    """Raise ``InputError`` unless a codebook was made with this encoder, as far as it says with which.

    Where the hash of either's weights is unknown and the codebook holds a fingerprint, the encoder's own is
    taken and compared.
    """
    card, theirs = encoder.card, codebook.provenance
    codebook.check(card.name, card.channels, card.weights_hash)
    if not theirs.fingerprint or (theirs.weights_hash and card.weights_hash):
        return
    if not fingerprints_match(take_fingerprint(encoder), theirs.fingerprint):
        raise InputError(
            f"the codebook was made with another encoder than this {card.name!r}: on one picture their "
            "features are unlike; use the encoder, weights and layer it was made with, or another codebook"
        )


def check_concepts(concepts: int, tokens: int) -> None:
    """Raise ``InputError`` unless a tile has as many tokens as it is to have concepts."""
    if concepts > tokens:
        raise InputError(f"{concepts} concepts for a tile of {tokens} tokens: choose fewer, or larger tiles")


def tile_weights(
    features: Features,
    centers: Centres,
    key: Key,
    *,
    mode: str,
    concepts: int = CONCEPTS,
    tokens: Int[Array | np.ndarray, " b"] | None = None,
) -> TileWeights:
    """Solve for the contribution of every cluster to every token of a batch of tiles, in either mode.

    ``features (b, h, w, c)``, ``centers (k, c)`` → ``W (b, h, w, k)`` and what is known of it. Centres that
    are not of ordinary size are all scaled by one power of two, which changes no label. In mode "assign" a
    cluster's contribution is the largest of the concepts that bear its name, so that its argmax is the name
    of β, and W of neighbouring tiles, whose concepts differ, can be blended.
    ``tokens`` says how many of each tile's tokens, row by row, are its own, where the rest are zero: those
    change nothing.
    """
    _, h, w, _ = features.shape
    if mode == "assign":
        check_concepts(concepts, h * w)
    return _tile_weights(features, centers, key, mode, concepts, tokens)


@partial(jax.jit, static_argnames=("mode", "concepts"))
def _tile_weights(
    features: Features,
    centers: Centres,
    key: Key,
    mode: str,
    concepts: int,
    tokens: Int[Array | np.ndarray, " b"] | None = None,
) -> TileWeights:
    b, h, w, c = features.shape
    A = features.reshape(b, h * w, c).astype(jnp.float32)
    finite = jnp.isfinite(A).all((1, 2))
    A = jnp.where(finite[:, None, None], A, 0)  # a broken tile must not keep the solver going
    if mode == "fixed":
        W, converged = nmf.solve(A, centers * to_ordinary(jnp.max(centers)))
    else:
        found = nmf.factorize(A, concepts, key=key, rows=tokens)
        W = name_weights(found.W, name_concepts(found.H, centers), centers.shape[0])
        converged = jnp.broadcast_to(found.converged[:, None], (b, h * w))
    finite &= jnp.isfinite(W).all((1, 2))
    return TileWeights(W.reshape(b, h, w, -1), finite, converged.reshape(b, h, w))


def name_concepts(H: Float[Array, "*b m c"], centers: Centres) -> Int[Array, "*b m"]:
    """Give every concept the centre of highest cosine similarity (§3.2.1): indices 0…k−1."""
    cosine = jnp.matmul(unit(H), unit(centers).T, precision="highest")
    return jnp.argmax(cosine, axis=-1).astype(jnp.int32)


def name_weights(W: Float[Array, "b n m"], names: Int[Array, "b m"], k: int) -> Float[Array, "b n k"]:
    """The contribution of each cluster: the largest among the concepts of its name, zero if none bears it."""

    def one(w: Float[Array, "n m"], name: Int[Array, " m"]) -> Float[Array, "n k"]:
        return jnp.zeros((w.shape[0], k), w.dtype).at[:, name].max(w)

    return jax.vmap(one)(W, names)


@partial(jax.jit, static_argnames=("stride", "resize"))
def block_labels(
    W: Float[Array, "b p q k"], stride: int, resize: str = "bilinear"
) -> UInt[Array, "b height width"]:
    """Turn blocks of W ≥ 0, framed by one token on each side, into the labels of the pixels inside the frame:
    1…k, or 0 where no weight is positive.

    ``W (b, h + 2, w + 2, k)`` → ``(b, h·stride, w·stride)``, uint8 (uint16 when k > 255). With
    ``"bilinear"`` each contribution is resized first (half-pixel centres, as in torch's
    ``interpolate(align_corners=False)``) and the argmax taken then; with ``"nearest"`` the argmax is taken a
    token. Ties go to the lowest label.
    """
    k = W.shape[-1]
    dtype = jnp.uint8 if k <= 255 else jnp.uint16
    if resize == "nearest":
        inside = W[:, 1:-1, 1:-1]
        labels = jnp.where(jnp.any(inside > 0, axis=-1), jnp.argmax(inside, axis=-1) + 1, 0).astype(dtype)
        return jnp.repeat(jnp.repeat(labels, stride, axis=1), stride, axis=2)
    W = jnp.moveaxis(W, -1, 0)
    begin = (stride + 1) // 2  # half tokens of the frame
    h, w = (stride * (size - 2) for size in W.shape[2:])
    offset = 0.0  # of pixels from tokens' centres
    if stride % 2 == 0:
        offset = 0.5
        W, stride = _halfway(_halfway(W, 2), 3), stride // 2  # in smaller cells far fewer clusters can win
    t = (jnp.arange(stride, dtype=W.dtype) + offset) / stride
    b, p, q = W.shape[1], W.shape[2] - 1, W.shape[3] - 1
    labels = jnp.swapaxes(_cells(W, t).reshape(b, p, q, stride, stride), 2, 3)
    labels = labels.reshape(b, p * stride, q * stride).astype(dtype)
    return labels[:, begin : begin + h, begin : begin + w]


def _halfway(W: Float[Array, "k b p q"], axis: int) -> Float[Array, "k b p2 q2"]:
    """The weights with those halfway between two neighbours put in between, along one axis."""
    n = W.shape[axis]
    before, after = (jax.lax.slice_in_dim(W, i, n - 1 + i, axis=axis) for i in (0, 1))
    pairs = jnp.stack([before, (before + after) * 0.5], axis + 1)
    shape = (*W.shape[:axis], 2 * (n - 1), *W.shape[axis + 1 :])
    last = jax.lax.slice_in_dim(W, n - 1, n, axis=axis)
    return jnp.concatenate([pairs.reshape(shape), last], axis)


def _cells(W: Float[Array, "k b p q"], t: Float[Array, " side"]) -> Int[Array, "n pixels"]:
    """The labels 0…k of the pixels of the b · (p − 1) · (q − 1) cells that have the weights ``W`` at their
    corners, interpolated at ``t`` of the way from one corner to the next, down and across.

    A cluster can only have the largest weight at a pixel if its largest corner is at least the largest of all
    clusters' smallest corners. Few can, so that few are interpolated.
    """
    k, _, p, q = W.shape
    side = len(t)
    places = jnp.arange(W[0].size).reshape(W.shape[1:])
    # A cell's corners: top left, top right, bottom left, bottom right.
    corners = [(y, x) for y in (slice(p - 1), slice(1, p)) for x in (slice(q - 1), slice(1, q))]
    # Two by two: a CPU takes a reduction of four one entry at a time.
    a, b, c, d = (W[:, :, y, x].reshape(k, -1) for y, x in corners)
    most = jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))
    least = jnp.minimum(jnp.minimum(a, b), jnp.minimum(c, d))
    bar = jnp.max(least, axis=0, keepdims=True)
    cluster = jnp.arange(k)[:, None]
    # Where no weight is positive at all corners, those that are zero at each tie: the first stands for them.
    can_win = (most > bar) | ((most == bar) & ((bar != 0) | (cluster == first(most >= bar, 0))))
    candidates = _words(can_win)
    count = jnp.sum(jax.lax.population_count(candidates), axis=0).astype(jnp.int32)

    def best(of: Int[Array, " m"] | None, most_wanted: int) -> Int[Array, "m pixels"]:
        rest = candidates if of is None else candidates[:, of]
        at = [places[:, y, x].ravel() for y, x in corners]
        at = at if of is None else [place[of] for place in at]
        down, across = t.reshape(1, -1, 1), t.reshape(1, 1, -1)
        largest = jnp.full((rest.shape[1], side, side), -jnp.inf, W.dtype)
        label = jnp.zeros(largest.shape, jnp.int32)

        def step(state: tuple) -> tuple:
            largest, label, rest = state
            j, rest = _next(rest)
            own = jnp.minimum(j[0], k - 1) * W[0].size
            values = (jnp.where(j[0] < k, W.ravel()[own + place], -jnp.inf) for place in at)
            a, b, c, d = (value.reshape(-1, 1, 1) for value in values)
            left, right = a * (1 - down) + c * down, b * (1 - down) + d * down
            value = left * (1 - across) + right * across
            better = value > largest
            j3 = j.reshape(-1, 1, 1)
            return jnp.where(better, value, largest), jnp.where(better, j3, label), rest

        state = (largest, label, rest)
        if of is None:
            for _ in range(most_wanted):
                state = step(state)
        else:
            most_here = jnp.minimum(jnp.max(count[of]), most_wanted)
            state = jax.lax.fori_loop(0, most_here, lambda _, state: step(state), state)
        largest, label, _ = state
        return jnp.where(largest > 0, label + 1, 0).reshape(-1, side * side)

    few, many = min(FEW, k), min(MANY, k)
    labels = best(None, few)
    labels = packed(lambda of: best(of, many), (count > few) & (count <= many), labels, share=1 / 4)
    return packed(lambda of: best(of, k), count > many, labels)


def _words(here: Bool[Array, "k n"]) -> UInt[Array, "words n"]:
    """The same in bits, 32 of an entry of n to a word: a pass over them reads a 32nd."""
    k, n = here.shape
    bits = jnp.pad(here, ((0, -k % 32), (0, 0))).reshape(-1, 32, n).astype(jnp.uint32)
    return jnp.sum(bits << jnp.arange(32, dtype=jnp.uint32).reshape(1, 32, 1), axis=1, dtype=jnp.uint32)


def _next(words: UInt[Array, "words n"]) -> tuple[Int[Array, "1 n"], UInt[Array, "words n"]]:
    """The place of the lowest bit that is set, past the end where none is, and the words without it."""
    word = first(words != 0, 0)
    here = jnp.arange(len(words))[:, None] == word
    lowest = jnp.max(jnp.where(here, words, 0), axis=0, keepdims=True)
    bit = lowest & (~lowest + 1)
    return 32 * word + (31 - jax.lax.clz(bit)).astype(jnp.int32), jnp.where(here, words ^ bit, words)


# ------------------------------------------------------------------------------ neighbouring tiles, blended


def blend(
    tiles: dict[tuple[int, int], Float[np.ndarray, "t t k"]],
    row: int,
    column: int,
    halo: int,
    grid_shape: tuple[int, int],
) -> Float[np.ndarray, "p p k"]:
    """Blend a tile's W with its neighbours', and return its core framed by one token on each side.

    ``tiles`` holds W ``(t, t, k)`` by (row, column), ``halo`` tokens of which on each side overlap the
    neighbours; where two tiles overlap, each counts the more the deeper a token lies in it, so that no seam
    shows. ``grid_shape`` is the slide in tokens: a frame that would leave it repeats the last token inside.
    The result is a pure function of the tile and its eight neighbours, summed in one order: it does not
    depend on when the tiles were made.
    """
    own = tiles[row, column]
    t, k = own.shape[0], own.shape[2]
    pitch = t - 2 * halo
    ramp = np.minimum(np.minimum(np.arange(t) + 0.5, t - 0.5 - np.arange(t)) / (2 * halo), 1)
    ramp = ramp.astype(own.dtype)
    total = np.zeros((pitch + 2, pitch + 2, k), own.dtype)
    weight = np.zeros((pitch + 2, pitch + 2, 1), own.dtype)

    def overlap(step: int) -> tuple[slice, slice]:
        """What the neighbour ``step`` tiles away shares with the framed core: in the core's tokens, and in
        its own.
        """
        begin = max(0, step * pitch - halo + 1)
        end = min(pitch + 2, step * pitch + pitch + halo + 1)
        shift = halo - 1 - step * pitch
        return slice(begin, end), slice(begin + shift, end + shift)

    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            W = tiles.get((row + dy, column + dx))
            if W is None:
                continue
            (here_y, there_y), (here_x, there_x) = overlap(dy), overlap(dx)
            share = ramp[there_y, None, None] * ramp[there_x, None]
            total[here_y, here_x] += share * W[there_y, there_x]
            weight[here_y, here_x] += share
    total /= weight

    def inside(position: int, tokens: int) -> np.ndarray:
        first = position * pitch - 1
        return np.clip(np.arange(first, first + pitch + 2), 0, tokens - 1) - first

    rows, columns = inside(row, grid_shape[0]), inside(column, grid_shape[1])
    return total[rows][:, columns]
