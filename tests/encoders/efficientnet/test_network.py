"""EfficientNets: their scales, and training. That they are timm's is in ``test_parity``."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fseg_jax.encoders.architectures import build_abstract, build_network, count_parameters
from fseg_jax.encoders.efficientnet.network import SCALES, EfficientNetConfig, configure_efficientnet

SMALL = EfficientNetConfig(
    stem=8, stages=((2, 3, 1, 1, 8), (2, 5, 2, 6, 8)), features=16, num_classes=3, padding="same"
)

build_abstract = functools.cache(build_abstract)


def test_b1_has_23_blocks_each_with_a_name():
    blocks = [
        layer
        for layer in build_abstract(configure_efficientnet("b1")).layers()
        if layer.startswith("blocks.")
    ]
    assert blocks == [f"blocks.{index}" for index in range(23)]


@pytest.mark.parametrize(
    ("scale", "published"),
    [
        ("b0", 5_288_548),
        ("b1", 7_794_184),
        ("b2", 9_109_994),
        pytest.param("b3", 12_233_232, marks=pytest.mark.long),
        pytest.param("b4", 19_341_616, marks=pytest.mark.long),
        pytest.param("b5", 30_389_784, marks=pytest.mark.long),
        pytest.param("b6", 43_040_704, marks=pytest.mark.long),
        pytest.param("b7", 66_347_960, marks=pytest.mark.long),
        ("lite0", 4_652_008),
        pytest.param("lite4", 13_006_568, marks=pytest.mark.long),
    ],
)
def test_every_scale_has_the_published_parameters(scale, published):
    assert scale in SCALES
    assert count_parameters(build_abstract(configure_efficientnet(scale))) == published


def test_continues_from_any_layer_and_is_differentiable_there():
    net, x = build_network(SMALL), jax.random.normal(jax.random.key(0), (2, 32, 32, 3))

    @jax.jit
    def differentiate(x):
        found = {}
        for layer in ("stem", "blocks.1", "blocks.3", "top"):
            features = net.features_to(x, layer)
            logits, pull = jax.vjp(lambda f, layer=layer: net.from_layer(f, layer), features)
            found[layer] = logits, pull(jnp.ones_like(logits))[0]
        return net(x), found

    whole, found = differentiate(x)
    for logits, gradient in found.values():
        np.testing.assert_allclose(logits, whole, rtol=1e-5)
        assert float(jnp.abs(gradient).max()) > 0


def test_training_moves_the_statistics_and_drops_and_evaluation_does_neither():
    net, x = build_network(SMALL), jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    means = lambda: np.asarray(net.stem.norm.mean[...])  # noqa: E731
    before, evaluated = means().copy(), net(x)
    np.testing.assert_array_equal(net(x), evaluated)
    np.testing.assert_array_equal(means(), before)

    net.train()
    first, second = net(x, nnx.Rngs(0)), net(x, nnx.Rngs(1))
    assert np.abs(np.asarray(first - second)).max() > 0
    assert np.abs(means() - before).max() > 0


def test_training_compiles_over_the_state_and_learns():
    net, x = build_network(SMALL, seed=1), jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
    net.train()
    graphdef, weights, statistics = nnx.split(net, nnx.Param, ...)
    wanted = jnp.asarray([0, 1, 2, 0])

    @jax.jit
    def step(weights, statistics, key):
        def loss(weights):
            net = nnx.merge(graphdef, weights, statistics, copy=True)
            logits = net(x, nnx.Rngs(key))
            return -jax.nn.log_softmax(logits)[jnp.arange(4), wanted].mean(), nnx.state(net, nnx.BatchStat)

        (value, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(weights)
        return value, jax.tree.map(lambda w, g: w - 0.05 * g, weights, gradient), statistics

    losses = []
    for key in jax.random.split(jax.random.key(1), 30):
        value, weights, statistics = step(weights, statistics, key)
        losses.append(float(value))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
