"""Fingerprints: one for an encoder, whatever its precision; another for every other encoder of its width."""

import hashlib
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import joblib
import numpy as np
import pytest
from flax import nnx

from fseg_jax.cli import main
from fseg_jax.codebook import Codebook, Provenance, load_all, save_all
from fseg_jax.encoders.classical import classical
from fseg_jax.encoders.fingerprint import BITS, draw_picture, fingerprints_match, take_fingerprint
from fseg_jax.encoders.load import load_encoder
from fseg_jax.encoders.resnet.network import ResNet
from fseg_jax.encoders.trained import Gains, assemble
from fseg_jax.errors import InputError
from fseg_jax.pipeline.image import check_codebook, segment
from fseg_jax.pretraining.simclr import TRUNK


class Other:
    """An encoder that calls itself as another does, with as many channels, and is not it."""

    def __init__(self, encoder, change, weights_hash=""):
        self.card = replace(encoder.card, weights_hash=weights_hash)
        self._call = lambda images: change(encoder(images))

    def __call__(self, images):
        return self._call(images)


def distance(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def test_the_picture_never_changes():
    """Or else fingerprints that were stored would mean nothing."""
    assert (
        hashlib.sha256(draw_picture(224).tobytes()).hexdigest()
        == "e54bb01e5ce9674ea1aa099dd33fc36e125fb51d911b5bc36e25b91e3accdc26"
    )


def small(encoder):
    """The same, asked for smaller tiles: what is compiled is smaller."""
    return replace(encoder, card=replace(encoder.card, tile=128))


def test_precision_turns_few_bits_over_and_another_encoder_half_of_them():
    exact, coarse = (small(load_encoder("he-small", dtype=dtype)) for dtype in ("float32", "bfloat16"))
    own = take_fingerprint(exact)
    assert distance(own, take_fingerprint(coarse)) <= 8
    noise = jnp.asarray(np.random.default_rng(0).normal(1, 0.02, (1, 8, 8, 276)), jnp.float32)
    assert fingerprints_match(own, take_fingerprint(Other(exact, lambda x: x * noise)))
    network = ResNet(TRUNK, rngs=nnx.Rngs(0))
    network.eval()
    for other in (
        assemble(network, exact.card, Gains(1.0, 1.0)),  # of one architecture, with other weights
        Other(exact, lambda x: jnp.roll(x, 1, -1)),
    ):
        assert other.card.channels == exact.card.channels
        assert 0.3 * BITS < distance(own, take_fingerprint(other)) < 0.7 * BITS


def imported(folder: Path, name: str, channels: int) -> tuple[int, Path]:
    """The exit code of an import of centres so wide for an encoder of this name, and where they go."""
    joblib.dump({4: np.random.default_rng(0).random((4, channels), np.float32)}, folder / "c.joblib")
    out = folder / f"{name}.safetensors"
    with pytest.raises(SystemExit) as end:
        main(["codebook", "import", str(folder / "c.joblib"), "-o", str(out), "--encoder", name])
    return int(end.value.code or 0), out


def test_an_imported_codebook_refuses_another_encoder_of_its_width(tmp_path):
    code, path = imported(tmp_path, "classical", 20)
    assert code == 0
    book = load_all(path)[4]
    origin = book.provenance
    assert origin.encoder == "classical" and origin.layer == classical().card.layer
    assert not origin.weights_hash and fingerprints_match(origin.fingerprint, take_fingerprint(classical()))
    check_codebook(book, classical())
    impostor = Other(classical(), lambda x: x[..., ::-1])
    image = np.zeros((64, 64, 3), np.uint8)
    for check in (lambda: check_codebook(book, impostor), lambda: segment(image, impostor, book)):
        with pytest.raises(InputError, match="made with another encoder than this 'classical'") as caught:
            check()
        assert "\n" not in str(caught.value)
    # Where both hashes are known they decide, and no picture is looked at.
    known = Codebook(book.centers, replace(origin, weights_hash="aa"))
    check_codebook(known, Other(classical(), lambda x: 1 / 0, weights_hash="aa"))


def test_an_import_for_an_encoder_of_another_width_is_refused(tmp_path, capsys):
    code, path = imported(tmp_path, "classical", 21)
    assert code == 2 and "20 wide, and the centres 21" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize("name", ["uni", "my own"])
def test_a_name_whose_weights_are_not_here_is_only_written_down(tmp_path, name):
    code, path = imported(tmp_path, name, 21)
    assert code == 0 and load_all(path)[4].provenance == Provenance(encoder=name, source="c.joblib")


def test_a_damaged_fingerprint_is_a_damaged_codebook(tmp_path):
    book = Codebook(np.ones((2, 3)), Provenance(fingerprint="0" * 64))
    save_all(tmp_path / "c.safetensors", {2: book})
    assert load_all(tmp_path / "c.safetensors")[2].provenance.fingerprint == "0" * 64
    path = tmp_path / "c.safetensors"
    path.write_bytes(path.read_bytes().replace(b"0" * 64, b"x" * 64))
    with pytest.raises(InputError, match="not a readable codebook"):
        load_all(path)
