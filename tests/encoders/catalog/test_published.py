"""The catalog's rows against the networks they describe."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fseg_jax.encoders.architectures import (
    build_abstract,
    build_network,
    config_from_json,
    config_to_json,
    count_parameters,
    find_family,
)
from fseg_jax.encoders.catalog.names import find_row
from fseg_jax.encoders.catalog.published import CATALOG
from fseg_jax.encoders.efficientnet.network import EfficientNetConfig
from fseg_jax.encoders.resnet.network import RESNETS, ResNetConfig
from fseg_jax.encoders.swin.network import SwinConfig
from fseg_jax.encoders.vit.network import ViTConfig

ROWS = list(CATALOG.values())
build_abstract = functools.cache(build_abstract)
TIMM = [
    "timm:resnet34.a1_in1k",
    "timm:resnet101.tv2_in1k",
    "timm:vit_tiny_patch16_224.augreg_in21k",
    "timm:vit_small_patch8_224.dino",
    "timm:vit_base_patch16_384.augreg_in1k",
    "timm:vit_large_patch14_dinov2.lvd142m",
    "timm:vit_base_patch14_reg4_dinov2.lvd142m",
    "timm:vit_small_plus_patch16_dinov3.lvd1689m",
    "timm:vit_base_patch16_dinov3_qkvb.lvd1689m",
    "timm:vit_7b_patch16_dinov3.sat493m",
]


def count_all(config) -> int:
    """Count a network's parameters; a ViT's blocks are all alike, so that two of them tell."""
    if not isinstance(config, ViTConfig):
        return count_parameters(build_abstract(config))
    one, two = (count_parameters(build_abstract(dataclasses.replace(config, depth=n))) for n in (1, 2))
    return one + (config.depth - 1) * (two - one)


@pytest.mark.parametrize("row", [*ROWS, *map(find_row, TIMM)], ids=lambda row: row.name)
def test_a_row_describes_its_network(row):
    folded = 0
    if isinstance(row.config, ResNetConfig):
        # A batch norm's scale goes into the kernel before it: a number a channel less.
        folded = sum(
            value.get_value().shape[0]
            for path, value in nnx.to_flat_state(nnx.state(build_abstract(row.config)))
            if path[-1] == "bias" and path[0] != "fc"
        )
    elif isinstance(row.config, SwinConfig):
        folded = row.config.dim // 8 + row.config.dim // 4
    elif row.name.startswith("hibou"):
        # The class token's position, which is added to it.
        folded = row.channels
    elif "_qkvb" in row.name:
        # The biases of k, which are stored as zeros.
        folded = -row.config.depth * row.config.dim
    assert count_all(row.config) + folded == row.parameters
    assert config_from_json(config_to_json(row.config)) == row.config


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_layer_has_the_stride_the_channels_and_the_prefix_of_the_row(row):
    config = row.config
    if isinstance(config, ViTConfig):
        config = dataclasses.replace(config, depth=1)
    layer = "blocks.0" if isinstance(config, ViTConfig) else row.layer
    graphdef, state = nnx.split(build_abstract(config))
    x = jax.ShapeDtypeStruct((1, row.input_size, row.input_size, 3), jnp.float32)
    grid = jax.eval_shape(lambda state, x: nnx.merge(graphdef, state).grid(x, layer), state, x)
    cells = -(-row.input_size // row.stride)
    assert grid.shape == (1, cells, cells, row.channels)
    assert row.prefix == (config.prefix if isinstance(config, ViTConfig) else 0)
    if isinstance(row.config, ViTConfig):
        assert row.layer == f"blocks.{row.config.depth - 1}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_says_where_from_and_on_what_terms(row):
    assert row.title and row.repo and row.files and row.licence and row.citation
    assert row.page.startswith("https://")
    mean, std = row.normalisation
    assert row.name == "pathoduet" or all(0 < value < 1 for value in (*mean, *std))  # which has none
    assert row.input_size <= row.resize
    assert row.name == row.name.lower()


# In millions, worked out from the published configurations by hand.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("uni", 303.35),
        ("uni2-h", 681.39),
        ("prov-gigapath", 1134.95),
        ("virchow", 631.23),
        ("virchow2", 631.24),
        ("h-optimus-0", 1134.77),
        ("h-optimus-1", 1134.77),
        ("h0-mini", 85.74),
        ("phikon", 85.80),
        ("phikon-v2", 303.35),
        ("hibou-b", 85.74),
        ("hibou-l", 303.66),
        ("midnight-12k", 1134.77),
        ("gpfm", 303.23),
        ("genbio-pathfm", 1133.69),
        # Of timm's networks, counted.
        ("timm:vit_small_patch16_dinov3.lvd1689m", 21.59),
        ("timm:vit_small_plus_patch16_dinov3_qkvb.lvd1689m", 28.69),
        ("timm:vit_base_patch16_dinov3.lvd1689m", 85.64),
        ("timm:vit_large_patch16_dinov3.sat493m", 303.08),
        ("timm:vit_huge_plus_patch16_dinov3.lvd1689m", 840.51),
        ("timm:vit_7b_patch16_dinov3.lvd1689m", 6716.03),
    ],
)
def test_published_sizes(name, millions):
    assert round(find_row(name).parameters / 1e6, 2) == millions


@pytest.mark.parametrize(
    "config",
    [
        dataclasses.replace(RESNETS["resnet18"], channels=(4, 4, 8, 8), stem_channels=4),
        EfficientNetConfig(stem=8, stages=((1, 3, 1, 1, 8), (1, 3, 2, 6, 8)), features=8, num_classes=0),
        SwinConfig(dim=16, depths=(2, 2), heads=(1, 2), window=4),
    ],
    ids=["resnet", "efficientnet", "swin"],
)
def test_what_changes_in_a_corner_shows_in_that_corner(config):
    net = build_network(config)
    layer = {"resnet": "layer3", "efficientnet": "blocks.1", "swin": "layers.1"}[find_family(config)]
    grid = jax.jit(lambda x: net.grid(x, layer))
    base = 0.1 * jax.random.normal(jax.random.key(0), (1, 128, 128, 3))
    before = grid(base)
    half = before.shape[1] // 2
    for down in (0, 1):
        for right in (0, 1):
            changed = base.at[:, 64 * down + 16 : 64 * down + 48, 64 * right + 16 : 64 * right + 48].add(2.0)
            moved = np.abs(np.asarray(grid(changed) - before)).sum((0, 3))
            quadrants = moved.reshape(2, half, 2, half).sum((1, 3))
            assert np.unravel_index(quadrants.argmax(), (2, 2)) == (down, right)
