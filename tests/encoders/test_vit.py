"""ViTs against timm's and transformers', stage by stage, and where their tokens come to lie."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import fixture, names, relative_error
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from fseg_jax.encoders.architectures import network
from fseg_jax.encoders.catalog import CATALOG
from fseg_jax.encoders.positions import resample
from fseg_jax.encoders.vit import ViTConfig
from fseg_jax.errors import InputError

SMALL = ViTConfig(patch=8, dim=16, depth=2, heads=2, mlp_width=32, image_size=32, layer_scale=True)
VITS = [row for row in CATALOG.values() if isinstance(row.config, ViTConfig)]


def shrunk(config: ViTConfig) -> ViTConfig:
    """A row's network with its tokens as they are, and little else."""
    return dataclasses.replace(
        config, dim=16, depth=2, heads=2, mlp_width=32, image_size=4 * config.patch, pool=None
    )


def without_attention(config: ViTConfig):
    """A network in which no token hears of another: a cell of its grid shows its own patch alone."""
    net = network(config)
    for block in net.blocks:
        block.attn.proj.kernel[...] = jnp.zeros_like(block.attn.proj.kernel[...])
    return net


@pytest.mark.parametrize("name", names("vit"))
def test_every_stage_is_the_publishers(name):
    theirs = fixture(name)
    ours = theirs.network()
    outputs = ours.intermediates(jnp.asarray(theirs.x)) | {"head": ours(jnp.asarray(theirs.x))}
    assert outputs.keys() == theirs.stages.keys()
    for stage, output in outputs.items():
        assert relative_error(output, theirs.stages[stage]) <= 1e-5, stage


@pytest.mark.parametrize("name", names("vit"))
def test_bfloat16_ends_where_float32_does(name):
    theirs = fixture(name)
    ours = theirs.network(jnp.bfloat16)
    assert ours.blocks[0].mlp.fc1.kernel.dtype == jnp.bfloat16
    outputs = ours.intermediates(jnp.asarray(theirs.x)) | {"head": ours(jnp.asarray(theirs.x))}
    for stage, output in outputs.items():
        assert output.dtype == jnp.float32, stage
        assert relative_error(output, theirs.stages[stage]) <= 2e-2, stage


@pytest.mark.parametrize("row", VITS, ids=lambda row: row.name)
def test_class_and_register_tokens_move_no_cell(row):
    config = shrunk(row.config)
    x = jax.random.normal(jax.random.key(0), (1, 3 * row.stride, 5 * row.stride, 3))
    net = without_attention(config)
    layer = f"blocks.{config.depth - 1}"
    before = net.grid(x, layer)
    assert before.shape == (1, 3, 5, config.dim)
    for token in (net.cls_token, net.reg_token):
        if token is not None:
            token[...] = 100.0 + token[...]
    np.testing.assert_array_equal(net.grid(x, layer), before)
    # And they are there: the network's own answer comes from them.
    assert net.features_to(x, layer).shape[1] == 15 + row.prefix


@pytest.mark.parametrize("row", VITS, ids=lambda row: row.name)
def test_quadrants_lie_where_they_are(row):
    net = without_attention(shrunk(row.config))
    side = 4 * row.stride
    colours = jnp.asarray([[[1.0, 0, 0], [0, 1.0, 0]], [[0, 0, 1.0], [1.0, 1.0, 0]]])
    image = jnp.repeat(jnp.repeat(colours, side // 2, 0), side // 2, 1)[None]
    grid = net.grid(image, "blocks.1")
    for down in (0, 1):
        for right in (0, 1):
            cells = np.s_[:, 2 * down : 2 * down + 2, 2 * right : 2 * right + 2]
            alone = jnp.broadcast_to(colours[down, right], (1, side, side, 3))
            np.testing.assert_allclose(grid[cells], net.grid(alone, "blocks.1")[cells], atol=1e-5)
            other = jnp.broadcast_to(colours[1 - down, right], (1, side, side, 3))
            assert np.abs(np.asarray(grid[cells] - net.grid(other, "blocks.1")[cells])).max() > 1e-2


def test_continues_from_any_layer():
    net, x = network(SMALL), jax.random.normal(jax.random.key(0), (2, 32, 48, 3))
    for layer in net.layers():
        np.testing.assert_allclose(net.from_layer(net.features_to(x, layer), layer), net(x), atol=1e-6)


def test_compiles_once_for_a_shape_when_its_state_is_passed():
    graphdef, state = nnx.split(network(SMALL))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def grid(state, x):
        return nnx.merge(graphdef, state).grid(x, "blocks.1")

    for value in (0.0, 1.0):
        assert grid(state, jnp.full((2, 32, 32, 3), value)).shape == (2, 4, 4, 16)


def test_an_image_that_its_patches_do_not_divide_is_said_in_one_line():
    with pytest.raises(InputError, match=r"36 × 32 pixels.*multiples of 8") as error:
        network(SMALL).grid(jnp.ones((1, 36, 32, 3)), "blocks.1")
    assert "\n" not in str(error.value)


@given(old=st.integers(2, 9), h=st.integers(1, 12), w=st.integers(1, 12))
@settings(max_examples=20, deadline=None)
def test_antialiased_positions_are_torchs_as_jax_has_them(old, h, w):
    # jax.image.resize is the same bicubic (a = −0.5, weights renormalised at the border).
    table = jax.random.normal(jax.random.key(old), (old * old, 3))
    expected = jax.image.resize(table.reshape(old, old, 3), (h, w, 3), "cubic", antialias=True)
    np.testing.assert_allclose(
        resample(table, (old, old), (h, w), "antialiased"), expected.reshape(-1, 3), atol=1e-5
    )


@pytest.mark.parametrize("how", ["antialiased", "bicubic", "bicubic_offset"])
def test_positions_at_home_are_unchanged(how):
    table = jax.random.normal(jax.random.key(0), (12, 3))
    np.testing.assert_array_equal(resample(table, (3, 4), (3, 4), how), table)
