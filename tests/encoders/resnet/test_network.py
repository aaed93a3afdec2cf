"""ResNets: what can be asked of them. That they are the publishers' is in ``test_parity``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fseg_jax.encoders.architectures import build_network
from fseg_jax.encoders.resnet.network import ResNetConfig
from fseg_jax.errors import InputError

SMALL = ResNetConfig("bottleneck", (1, 1, 1, 1), (4, 4, 8, 8), 8, num_classes=3)


def test_continues_from_any_layer_and_is_differentiable_there():
    net, x = build_network(SMALL), jnp.ones((2, 32, 32, 3))

    @jax.jit
    def differentiate(x):
        found = []
        for layer in ("stem", "layer1", "layer3", "layer4"):
            features = net.features_to(x, layer)
            logits, pull = jax.vjp(lambda f, layer=layer: net.from_layer(f, layer), features)
            found.append((features, logits, pull(jnp.ones_like(logits))[0]))
        return net(x), found

    whole, found = differentiate(x)
    for features, logits, gradient in found:
        np.testing.assert_allclose(logits, whole, rtol=1e-5)
        assert gradient.shape == features.shape and float(jnp.abs(gradient).max()) > 0


def test_layer3_has_sixteen_pixels_a_token_and_is_not_negative():
    grid = build_network(SMALL).grid(jax.random.normal(jax.random.key(0), (1, 64, 96, 3)), "layer3")
    assert grid.shape == (1, 4, 6, 32)
    assert float(grid.min()) >= 0


def test_nothing_after_the_layer_is_computed():
    net, x = build_network(SMALL), jnp.ones((1, 32, 32, 3))
    convolutions = [
        str(jax.make_jaxpr(lambda x, layer=layer: net.grid(x, layer))(x)).count("conv_general_dilated[")
        for layer in ("stem", "layer1", "layer4")
    ]
    # A bottleneck is three convolutions, and one more beside it where the channels change.
    assert convolutions == [1, 5, 17]


def test_a_layer_it_does_not_have_is_said_in_one_line():
    with pytest.raises(InputError, match=r"no layer 'layer9': did you mean layer4 .*one of stem") as error:
        build_network(SMALL).grid(jnp.ones((1, 32, 32, 3)), "layer9")
    assert "\n" not in str(error.value)
