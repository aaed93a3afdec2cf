"""Files of ours, whole and damaged."""

import errno
import os
import struct
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import read_fixture, write_published

from fseg_jax.encoders.architectures import build_abstract, list_tensors
from fseg_jax.encoders.vit.network import ViTConfig
from fseg_jax.encoders.weights import weights_file
from fseg_jax.encoders.weights.convert import convert_file
from fseg_jax.errors import InputError

VIT = "vit_layer_scale_patch16_resampled"


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


_LOADS = """
import resource, sys
from pathlib import Path
import jax, jax.numpy as jnp
from fseg_jax.encoders.weights.weights_file import load
peak = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
jnp.zeros(1).block_until_ready()
before = peak()
network = load(Path(sys.argv[1]), dtype=jnp.bfloat16).network
jax.block_until_ready(jax.tree.leaves(network))
print((peak() - before) / Path(sys.argv[1]).stat().st_size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
def test_loading_takes_little_more_memory_than_the_weights(tmp_path):
    config = ViTConfig(patch=16, dim=1024, depth=12, heads=16, mlp_width=4096)
    places = list_tensors(build_abstract(config, dtype=jnp.bfloat16))
    tensors = ((name, np.zeros(place.shape, place.dtype)) for name, place in places.items())
    path = tmp_path / "large.safetensors"
    weights_file.write(path, config, places, tensors, name="large", source_sha256="0" * 64)
    assert path.stat().st_size > 3e8
    done = subprocess.run(
        [sys.executable, "-c", _LOADS, str(path)], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) <= 1.3


@pytest.fixture
def ours(tmp_path) -> Path:
    out = tmp_path / "ours.safetensors"
    convert_file(write_published(tmp_path, VIT), out, read_fixture(VIT).config, name="some")
    return out


@pytest.mark.parametrize("place", [-1, -5000])
def test_a_flipped_bit_is_found(ours, place):
    data = bytearray(ours.read_bytes())
    data[place] ^= 1
    ours.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        weights_file.load(ours)


@pytest.mark.parametrize("keep", [0, 4, 300, -1, -4000])
def test_a_file_cut_short_is_found(ours, keep):
    ours.write_bytes(ours.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"damaged|not a converted") as error:
        weights_file.load(ours)
    one_line(error)


def test_a_header_that_lies_about_its_length_is_found(ours):
    ours.write_bytes(struct.pack("<Q", 2**62) + ours.read_bytes()[8:])
    with pytest.raises(InputError, match="damaged"):
        weights_file.load(ours)


def test_a_publishers_file_is_not_taken_for_ours(tmp_path):
    with pytest.raises(InputError, match="not a converted encoder"):
        weights_file.load(write_published(tmp_path, VIT))


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    source = write_published(tmp_path, VIT)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "out" / "ours.safetensors"
    with pytest.raises(InputError, match="No space left") as error:
        convert_file(source, out, read_fixture(VIT).config, name="some")
    one_line(error)
    assert list(out.parent.iterdir()) == []
