"""An encoder by its name."""
from difflib import get_close_matches
from pathlib import Path

from fseg_jax.encoders.classical import classical
from fseg_jax.encoders.encoder import Encoder
from fseg_jax.errors import InputError


def load_encoder(name: str, *, weights: str | Path | None = None) -> Encoder:
    if name != "classical":
        raise InputError(f"no encoder {name!r}: {get_close_matches(name, ['classical'])}")
    return classical()
