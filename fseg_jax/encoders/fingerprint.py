"""Fingerprints that tell encoders of one width apart, by their features of one fixed picture.

A codebook is made of an encoder's features. Neither the encoder's name nor the hash of its weights identifies
them: a name can be anything, and a hash is that of one publication of the weights. For the fingerprint the
channels are ranked by their mean over the picture; it holds the signs of 256 fixed sums of those ranks.
Rounding (bfloat16, another device) flips a few signs; between two encoders half of them differ.
"""

import hashlib
from weakref import WeakKeyDictionary

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from fseg_jax.encoders.encoder import Encoder

BITS = 256  # of a fingerprint
MAX_DIFFERING_BITS = 32  # between two fingerprints of one encoder
BLOT_SIDES = (64, 16, 4)  # pixels of the blots in the picture

_cache: WeakKeyDictionary[Encoder, str] = WeakKeyDictionary()


def take_fingerprint(encoder: Encoder) -> str:
    """Take an encoder's fingerprint, 64 hexadecimal digits; it is computed once for each encoder."""
    try:
        if encoder not in _cache:
            _cache[encoder] = _compute_fingerprint(encoder)
        return _cache[encoder]
    except TypeError:  # the encoder cannot be hashed, or not weakly referenced
        return _compute_fingerprint(encoder)


def fingerprints_match(a: str, b: str) -> bool:
    """Whether two fingerprints are of one encoder.

    >>> fingerprints_match(64 * "0", "ff" + 62 * "0"), fingerprints_match(64 * "0", 64 * "f")
    (True, False)
    """
    return (int(a, 16) ^ int(b, 16)).bit_count() <= MAX_DIFFERING_BITS


def draw_picture(side: int) -> UInt8[np.ndarray, "side side 3"]:
    """Draw a picture in the colours of H&E, blots on blots, the same to the last bit on every machine."""
    share = np.zeros((side, side), int)
    for scale in BLOT_SIDES:
        count = -(-side // scale)
        drawn = np.frombuffer(hashlib.shake_256(b"fseg %d" % scale).digest(count * count), np.uint8)
        blots = drawn.reshape(count, count).astype(int)
        share += np.kron(blots, np.ones((scale, scale), int))[:side, :side]
    pink = (share // len(BLOT_SIDES))[..., None]
    mixed = np.array([96, 60, 140]) * (255 - pink) + np.array([238, 180, 210]) * pink
    return np.asarray(mixed // 255, np.uint8)


def _compute_fingerprint(encoder: Encoder) -> str:
    features = np.asarray(encoder(jnp.asarray(draw_picture(encoder.card.tile)[None])), np.float64)
    means = features.mean((0, 1, 2))
    ranks = np.argsort(np.argsort(means, kind="stable"), kind="stable")
    channels = len(ranks)
    drawn = np.frombuffer(hashlib.shake_256(b"fseg signs").digest(BITS * channels // 8), np.uint8)
    signs = 2 * np.unpackbits(drawn).reshape(BITS, channels).astype(int) - 1
    return np.packbits(signs @ (2 * ranks - (channels - 1)) > 0).tobytes().hex()
