"""Images in larger frames: their features are those that they have alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import read_fixture, relative_error
from flax import nnx

from fseg_jax.encoders.frames import declare_sizes

# One of each way to look around: "same" padding and squeezes, a max-pool, windows padded and shifted,
# each resampling of positions, with class and register tokens, and rotary positions, of colours apart too
# (with a step that rounds to bfloat16).
NETWORKS = {
    "efficientnet_same": 1e-5,
    "resnet_basic_classifier": 1e-5,
    "swin_ctranspath_padded": 1e-5,
    "vit_plain_patch8": 1e-5,
    "vit_transformers_dinov2_registers": 1e-5,
    "vit_dinov3": 1e-5,
    "vit_pathfm": 1e-3,
}


@pytest.mark.parametrize(("name", "bound"), NETWORKS.items())
def test_a_network_sees_an_image_in_a_frame_as_it_sees_it_alone(name, bound):
    network = read_fixture(name).network()
    config, layer = network.config, network.layers()[:6][-1]
    stride = getattr(config, "patch", None) or getattr(config, "stride", 32)
    least = getattr(config, "window", 1)
    size, side = ((least + 1) * stride, (least + 2) * stride), (least + 3) * stride
    graphdef, state = nnx.split(network)

    @jax.jit
    def alone(state, x):
        return nnx.merge(graphdef, state).grid(x, layer)

    @jax.jit
    def in_frames(state, x, sizes):
        with declare_sizes(sizes, side, side):
            return nnx.merge(graphdef, state).grid(x, layer)

    frames = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    sizes = jnp.asarray([size, (side, side)])
    found = in_frames(state, jnp.asarray(frames), sizes)
    wanted = alone(state, jnp.asarray(frames[:1, : size[0], : size[1]]))
    h, w = wanted.shape[1:3]
    assert relative_error(found[0, :h, :w], wanted[0]) <= bound
