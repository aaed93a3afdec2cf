"""One image that is no slide, end to end: pad, frame, encode, factorize, blend, label."""

import jax
import numpy as np
from jaxtyping import Float, UInt, UInt8

from fseg_jax.codebook import Codebook
from fseg_jax.encoders.encoder import Encoder, EncoderCard, encode_framed
from fseg_jax.encoders.fingerprint import fingerprints_match, take_fingerprint
from fseg_jax.errors import InputError
from fseg_jax.methods.fseg import (
    CONCEPTS,
    Mode,
    Resize,
    check_concepts,
    check_options,
    label_pixels,
    solve_tiles,
)
from fseg_jax.numerics.arrays import Centers, Key
from fseg_jax.numerics.blending import split_axis
from fseg_jax.slides.stain_normalization import measure_gains, recolour

FRAME_SIDES = (256, 512)  # pixels: the sides of most images that are no slides


def segment(
    image: np.ndarray,
    encoder: Encoder,
    codebook: Codebook,
    *,
    mode: Mode = "fixed",
    resize: Resize = "bilinear",
    concepts: int = CONCEPTS,
    seed: int = 0,
) -> UInt[np.ndarray, "height width"]:
    """Segment one image into the clusters of a codebook.

    Up to 512 pixels a side (the encoder's tile, where that is larger) the image is taken whole. Beyond, it is
    cut into overlapping tiles of that side, whose W are blended. Whatever the sizes of the images, six
    programs are compiled at most: each image is padded to the smallest of a few frames that holds it
    (``frame_sides``). A frame changes neither features nor factorization, but for rounding. (With an encoder
    of your own it may change features near the right and lower edges.)

    The image's stain is normalized, by its own pixels of tissue, where the codebook's slides were.

    For slides, use ``segment_slide``.

    Args:
        image: ``uint8 (height, width, 3)`` RGB of any size, at the encoder's mpp. Its edges are replicated up
            to a multiple of the stride, as the authors do.
        encoder: A frozen encoder.
        codebook: Cluster centres made with the same encoder.
        mode: "fixed" or "assign" (``methods.fseg``).
        resize: "bilinear" or "nearest".
        concepts: Number of concepts of a tile in mode "assign".
        seed: Seed of the random start in mode "assign".

    Returns:
        The codebook's clusters 1…k, uint8 (uint16 when k > 255); 0 where no cluster has any weight, because
        the features are zero.

    Raises:
        InputError: The image is not uint8 RGB, the codebook is another encoder's, features are not finite, or
            there are fewer tokens than concepts.
    """
    check_options(mode, resize)
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"an image of {image.dtype} {image.shape}: uint8 (height, width, 3) is needed")
    card = encoder.card
    check_codebook(codebook, encoder)
    if codebook.provenance.stain_normalization:
        image = recolour(image, measure_gains(image.reshape(-1, 3)))
    stride, (height, width) = card.stride, image.shape[:2]
    image = np.pad(image, [(0, -height % stride), (0, -width % stride), (0, 0)], mode="edge")
    h, w = image.shape[0] // stride, image.shape[1] // stride
    centers, key = jax.device_put(codebook.centers), jax.random.key(seed)
    mixtures = None if codebook.mixtures is None else jax.device_put(codebook.mixtures)
    largest = frame_sides(card)[-1] // stride
    rows, columns = min(h, largest), min(w, largest)
    if mode == "assign":
        check_concepts(concepts, rows * columns)
    W = np.zeros((h, w, len(centers)), np.float32)
    for y, weights_y in split_axis(h, largest):
        for x, weights_x in split_axis(w, largest):
            tile = image[y * stride : (y + rows) * stride, x * stride : (x + columns) * stride]
            tile_W = _solve_framed(tile, encoder, centers, mixtures, key, mode, concepts)
            W[y : y + rows, x : x + columns] += weights_y[:, None, None] * weights_x[:, None] * tile_W
    return _label_in_blocks(W, card, resize)[:height, :width]


def frame_sides(card: EncoderCard) -> tuple[int, ...]:
    """List the sides in pixels of the frames that images are put into.

    They are the usual sides of patches, rounded up to the encoder's stride, and the side of its tile.
    """
    return tuple(sorted({-(-side // card.stride) * card.stride for side in (*FRAME_SIDES, card.tile)}))


def _solve_framed(
    image: UInt8[np.ndarray, "height width 3"],
    encoder: Encoder,
    centers: Centers,
    mixtures: Float[jax.Array, "m c"] | None,
    key: Key,
    mode: Mode,
    concepts: int,
) -> Float[np.ndarray, "h w k"]:
    """Solve for W of an image in its frame; the frame does not change it."""
    card, size = encoder.card, np.array(image.shape[:2], np.int32)
    side = next(side for side in frame_sides(card) if side >= size.max())
    framed = np.pad(image, [(0, side - size[0]), (0, side - size[1]), (0, 0)], mode="edge")
    h, w = (size // card.stride).tolist()
    features = np.asarray(encode_framed(encoder, jax.device_put(framed[None]), size[None]))
    A = features[0, :h, :w].reshape(h * w, -1)
    # Padded to one of two numbers of tokens, so that two programs are enough.
    padded = next(n for n in ((side // card.stride) ** 2 for side in frame_sides(card)[-2:]) if n >= len(A))
    A = np.pad(A, [(0, padded - len(A)), (0, 0)])
    tokens = np.array([h * w], np.int32)
    W, finite, _ = solve_tiles(
        jax.device_put(A[None, None]),
        centers,
        key,
        mode=mode,
        concepts=concepts,
        tokens=tokens,
        mixtures=mixtures,
    )
    if not np.asarray(finite).all():
        raise InputError(f"the features of the encoder {card.name!r} hold a NaN or an infinity")
    return np.asarray(W)[0, 0, : h * w].reshape(h, w, -1)


def _label_in_blocks(
    W: Float[np.ndarray, "h w k"], card: EncoderCard, resize: Resize
) -> UInt[np.ndarray, "height width"]:
    """Label the pixels of an image in blocks of one size, so that one program serves them all."""
    h, w, _ = W.shape
    side, stride = -(-FRAME_SIDES[0] // card.stride), card.stride
    W = np.pad(W, [(1, 1 + -h % side), (1, 1 + -w % side), (0, 0)], mode="edge")
    blocks = [
        [jax.device_put(W[None, y : y + side + 2, x : x + side + 2]) for x in range(0, w, side)]
        for y in range(0, h, side)
    ]
    return np.block([[np.asarray(label_pixels(block, stride, resize))[0] for block in row] for row in blocks])


def check_codebook(codebook: Codebook, encoder: Encoder) -> None:
    """Raise ``InputError`` if a codebook was made with another encoder, as far as it says with which.

    If the hash of either's weights is unknown and the codebook holds a fingerprint, the encoder's own
    fingerprint is taken and compared with it.
    """
    card, provenance = encoder.card, codebook.provenance
    codebook.check(card.name, card.channels, card.weights_hash)
    if not provenance.fingerprint or (provenance.weights_hash and card.weights_hash):
        return
    if not fingerprints_match(take_fingerprint(encoder), provenance.fingerprint):
        raise InputError(
            f"the codebook was made with another encoder than this {card.name!r}: on one picture their "
            "features are unlike; use the encoder, weights and layer it was made with, or another codebook"
        )
