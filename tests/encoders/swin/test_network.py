"""Swin: what can be asked of it. That it is the publisher's is in ``test_parity``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fseg_jax.encoders.architectures import build_network
from fseg_jax.encoders.swin.network import SwinConfig
from fseg_jax.errors import InputError

SMALL = SwinConfig(dim=16, depths=(2, 2), heads=(1, 2), window=4)


def test_continues_from_any_layer():
    net, x = build_network(SMALL), jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    whole = net(x)
    for layer in net.layers():
        np.testing.assert_array_equal(net.from_layer(net.features_to(x, layer), layer), whole)


@pytest.mark.parametrize("size", [(60, 64), (64, 24)])
def test_an_image_it_cannot_take_is_said_in_one_line(size):
    with pytest.raises(InputError, match=r"multiples of 8 and at least 32") as error:
        build_network(SMALL)(jnp.ones((1, *size, 3)))
    assert "\n" not in str(error.value)
