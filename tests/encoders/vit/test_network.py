"""ViTs: where their tokens come to lie. That they are the publishers' is in ``test_parity``."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from fseg_jax.encoders.architectures import build_network
from fseg_jax.encoders.catalog.names import find_row
from fseg_jax.encoders.catalog.published import CATALOG
from fseg_jax.encoders.vit.network import ViTConfig
from fseg_jax.encoders.vit.positions import resample_grid
from fseg_jax.encoders.vit.rotary import RotaryConfig
from fseg_jax.errors import InputError

SMALL = ViTConfig(patch=8, dim=16, depth=2, heads=2, mlp_width=32, image_size=32, layer_scale=True)
COLOURS = jnp.asarray([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, 1.0, 0]])
VITS = [row for row in CATALOG.values() if isinstance(row.config, ViTConfig)]
VITS.append(find_row("timm:vit_small_plus_patch16_dinov3.lvd1689m"))


def shrunk(config: ViTConfig) -> ViTConfig:
    """A row's network with its tokens as they are, and little else."""
    return dataclasses.replace(
        config, dim=16, depth=2, heads=2, mlp_width=32, image_size=4 * config.patch, pool=None
    )


def without_attention(config: ViTConfig):
    """A network in which no token hears of another: a cell of its grid shows its own patch alone."""
    net = build_network(config)
    for block in net.blocks:
        block.attn.proj.kernel[...] = jnp.zeros_like(block.attn.proj.kernel[...])
    return net


@functools.cache
def with_other_prefix_tokens(config: ViTConfig) -> tuple[np.ndarray, np.ndarray, int]:
    """The grid of an image, the same after its class and register tokens were moved, and how many tokens
    there are."""
    net, patch = without_attention(config), config.patch
    x = jax.random.normal(jax.random.key(0), (1, 3 * patch, 5 * patch, 3))
    before = grid_of(net, x)
    for token in (net.cls_token, net.reg_token):
        if token is not None:
            token[...] = 100.0 + token[...]
    tokens = jax.eval_shape(lambda: net.features_to(x, "blocks.1")).shape[1]
    return before, grid_of(net, x), tokens


@functools.cache
def of_four_colours(config: ViTConfig) -> tuple[np.ndarray, np.ndarray]:
    """The grid of an image of four coloured quadrants, and those of images of one of the colours each."""
    side = 4 * config.patch
    quadrants = jnp.repeat(jnp.repeat(COLOURS.reshape(2, 2, 3), side // 2, 0), side // 2, 1)
    plain = jnp.broadcast_to(COLOURS[:, None, None], (4, side, side, 3))
    grids = grid_of(without_attention(config), jnp.concatenate([quadrants[None], plain]))
    return grids[0], grids[1:]


def grid_of(net, x: jax.Array) -> np.ndarray:
    graphdef, state = nnx.split(net)
    run = jax.jit(lambda state, x: nnx.merge(graphdef, state).grid(x, "blocks.1"))
    return np.asarray(run(state, x))


@pytest.mark.parametrize("row", VITS, ids=lambda row: row.name)
def test_class_and_register_tokens_move_no_cell(row):
    config = shrunk(row.config)
    before, after, tokens = with_other_prefix_tokens(config)
    assert before.shape == after.shape == (1, 3, 5, config.channels)
    np.testing.assert_array_equal(after, before)
    # They are there all the same: a cell more or less would show.
    assert tokens == 3 * 5 + row.prefix


@pytest.mark.parametrize("row", VITS, ids=lambda row: row.name)
def test_quadrants_lie_where_they_are(row):
    grid, plain = of_four_colours(shrunk(row.config))
    for down in (0, 1):
        for right in (0, 1):
            cells = np.s_[2 * down : 2 * down + 2, 2 * right : 2 * right + 2]
            errors = [np.abs(grid[cells] - colour[cells]).max() for colour in plain]
            assert errors.pop(2 * down + right) < 1e-5
            assert min(errors) > 1e-2


def test_continues_from_any_layer():
    net, x = build_network(SMALL), jax.random.normal(jax.random.key(0), (2, 32, 48, 3))
    whole = net(x)
    for layer in net.layers():
        np.testing.assert_array_equal(net.from_layer(net.features_to(x, layer), layer), whole)


def test_rotary_positions_are_those_of_the_grid_that_an_image_has():
    """Turned images give turned features only where rows and columns are told apart as they should be."""
    net = build_network(dataclasses.replace(SMALL, rotary=RotaryConfig(), depth=1))
    x = jax.random.normal(jax.random.key(0), (1, 32, 48, 3))
    features = net.features_to(x, "embed")
    attention = net.blocks[0].attn
    wide, tall = attention(features, (4, 6)), attention(features, (6, 4))
    assert float(jnp.abs(wide - tall).max()) > 1e-3
    square = net.features_to(x[:, :, :32], "embed")
    np.testing.assert_array_equal(attention(square, (4, 4)), attention(square, None))


def test_compiles_once_for_a_shape_when_its_state_is_passed():
    graphdef, state = nnx.split(build_network(SMALL))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def grid(state, x):
        return nnx.merge(graphdef, state).grid(x, "blocks.1")

    for value in (0.0, 1.0):
        assert grid(state, jnp.full((2, 32, 32, 3), value)).shape == (2, 4, 4, 16)


def test_an_image_that_its_patches_do_not_divide_is_said_in_one_line():
    with pytest.raises(InputError, match=r"36 × 32 pixels.*multiples of 8") as error:
        build_network(SMALL).grid(jnp.ones((1, 36, 32, 3)), "blocks.1")
    assert "\n" not in str(error.value)


@given(old=st.integers(2, 9), h=st.integers(1, 12), w=st.integers(1, 12))
@settings(max_examples=8, deadline=None)
def test_antialiased_positions_are_torchs_as_jax_has_them(old, h, w):
    # jax.image.resize is the same bicubic (a = −0.5, weights renormalised at the border).
    table = jax.random.normal(jax.random.key(old), (old * old, 3))
    expected = jax.image.resize(table.reshape(old, old, 3), (h, w, 3), "cubic", antialias=True)
    np.testing.assert_allclose(
        resample_grid(table, (old, old), (h, w), "antialiased"), expected.reshape(-1, 3), atol=1e-5
    )


@pytest.mark.parametrize("how", ["antialiased", "bicubic", "bicubic_offset"])
def test_positions_at_home_are_unchanged(how):
    table = jax.random.normal(jax.random.key(0), (12, 3))
    np.testing.assert_array_equal(resample_grid(table, (3, 4), (3, 4), how), table)


@pytest.mark.parametrize("bias", [True, False])
def test_a_tpu_multiplies_by_each_head_as_others_do_by_all_at_once(bias):
    attention = build_network(dataclasses.replace(SMALL, qkv_bias=bias)).blocks[0].attn
    x = jax.random.normal(jax.random.key(0), (2, 5, 16))
    if bias:
        attention.qkv.bias[...] = jnp.arange(48.0)
    for by_heads, at_once in zip(attention._project_by_heads(x), attention._project(x), strict=True):
        assert by_heads.shape == (2, 5, 2, 8)
        np.testing.assert_allclose(by_heads, at_once, rtol=1e-6, atol=1e-5)
