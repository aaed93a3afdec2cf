"""What tells an encoder from others of its width: what it makes of one picture.

A name can be anything, and the hash of weights is that of one publication of them; features are what a
codebook is made of. The fingerprint says which of 256 fixed sums are positive, sums of the ranks of the
channels by their mean over the picture. Rounding (of bfloat16, of another device) turns a few of them over;
of another encoder half are others.
"""

import hashlib
from weakref import WeakKeyDictionary

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from fseg_jax.encoders.encoder import Encoder

BITS, MAX_DIFFERING_BITS = 256, 32  # of a fingerprint, and how many of two of one encoder may differ
BLOT_SIDES = (64, 16, 4)  # of the picture's blots, pixels

_taken: WeakKeyDictionary[Encoder, str] = WeakKeyDictionary()


def take_fingerprint(encoder: Encoder) -> str:
    """Take an encoder's fingerprint, 64 hexadecimal digits, from its features of ``picture``; once for each
    encoder.
    """
    try:
        if encoder not in _taken:
            _taken[encoder] = _fingerprint(encoder)
        return _taken[encoder]
    except TypeError:  # an encoder that no dictionary can hold
        return _fingerprint(encoder)


def fingerprints_match(one: str, other: str) -> bool:
    """Whether two fingerprints are of one encoder."""
    return (int(one, 16) ^ int(other, 16)).bit_count() <= MAX_DIFFERING_BITS


def draw_picture(side: int) -> UInt8[np.ndarray, "side side 3"]:
    """A picture in the colours of H&E, blots on blots, the same to the last bit on every machine."""
    share = np.zeros((side, side), int)
    for scale in BLOT_SIDES:
        count = -(-side // scale)
        drawn = np.frombuffer(hashlib.shake_256(b"fseg %d" % scale).digest(count * count), np.uint8)
        blots = drawn.reshape(count, count).astype(int)
        share += np.kron(blots, np.ones((scale, scale), int))[:side, :side]
    pink = (share // len(BLOT_SIDES))[..., None]
    mixed = np.array([96, 60, 140]) * (255 - pink) + np.array([238, 180, 210]) * pink
    return (mixed // 255).astype(np.uint8)


def _fingerprint(encoder: Encoder) -> str:
    features = np.asarray(encoder(jnp.asarray(draw_picture(encoder.card.tile)[None])), np.float64)
    means = features.mean((0, 1, 2))
    ranks = np.argsort(np.argsort(means, kind="stable"), kind="stable")
    channels = len(ranks)
    drawn = np.frombuffer(hashlib.shake_256(b"fseg signs").digest(BITS * channels // 8), np.uint8)
    signs = 2 * np.unpackbits(drawn).reshape(BITS, channels).astype(int) - 1
    return np.packbits(signs @ (2 * ranks - (channels - 1)) > 0).tobytes().hex()
