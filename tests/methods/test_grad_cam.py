"""Grad-CAM against finite differences, ``pytorch_grad_cam`` on the same weights, and SciPy's resampling."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from scipy.ndimage import map_coordinates

from fseg_jax.encoders.architectures import Config, build_abstract, config_from_json
from fseg_jax.encoders.efficientnet.network import configure_efficientnet
from fseg_jax.encoders.weights.convert import convert_to_network
from fseg_jax.methods.grad_cam import (
    differentiate_class,
    grad_cam,
    grad_cam_plus_plus,
    resize_and_scale,
    smooth,
)

FIXTURES = Path(__file__).parent / "grad_cam_fixtures"
METHODS = {"GradCAM": grad_cam, "GradCAMPlusPlus": grad_cam_plus_plus}


class Fixture(NamedTuple):
    """What ``weights_convert.make_grad_cam_fixtures`` wrote."""

    config: Config
    weights: dict[str, np.ndarray]
    x: np.ndarray
    classes: np.ndarray
    maps: dict[str, dict[str, np.ndarray]]


def fixture(name: str) -> Fixture:
    with safe_open(FIXTURES / f"{name}.safetensors", framework="np") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = config_from_json(file.metadata()["config"])
    x, classes = tensors.pop("input").astype(np.float32), tensors.pop("classes")
    under: dict[str, dict[str, np.ndarray]] = {}
    for key, value in tensors.items():
        folder, _, rest = key.partition("/")
        under.setdefault(folder, {})[rest] = value
    return Fixture(config, under.pop("weights"), x, classes, under)


@pytest.mark.parametrize(
    ("name", "names"), [("efficientnet_same", ["GradCAM"]), ("resnet_basic_classifier", list(METHODS))]
)
def test_equals_pytorch_grad_cam_at_every_layer(name, names):
    theirs = fixture(name)
    graphdef, state = nnx.split(convert_to_network(theirs.weights, theirs.config, label=name))
    methods = {method: METHODS[method] for method in names}

    @jax.jit
    def run(state, x, classes):
        network = nnx.merge(graphdef, state)
        outputs = network.intermediates(x)
        maps = {
            method: {
                layer: resize_and_scale(
                    function(partial(network.from_layer, layer=layer), features, classes), *x.shape[1:3]
                )
                for layer, features in outputs.items()
            }
            for method, function in methods.items()
        }
        return maps, network(x)

    ours, logits = run(state, jnp.asarray(theirs.x), jnp.asarray(theirs.classes))
    # The fixture asks for the first class of one image and the second of the other.
    np.testing.assert_array_equal(np.argsort(-logits, axis=1)[[0, 1], [0, 1]], theirs.classes)
    for method in names:
        layers = theirs.maps[method]
        assert layers.keys() == ours[method].keys() and len(layers) >= 5
        for layer, wanted in layers.items():
            assert wanted.max() > 0.8, "a fixture of flat maps tests nothing"
            np.testing.assert_allclose(
                ours[method][layer][:, ::2, ::2], wanted, atol=1e-4, err_msg=f"{method} {layer}"
            )


# -------------------------------------------------------------------------- a small network, in float64


def small(seed: int, dtype: type = np.float32) -> tuple:
    """A trunk and a head that treat each image by itself, smooth, with both signs, three classes."""
    r = np.random.default_rng(seed)
    first, second = (jnp.asarray(r.normal(size=(3, 3, i, 4)) / 3, dtype) for i in (3, 4))
    last = jnp.asarray(r.normal(size=(4, 3)), dtype)

    def conv(x, kernel, stride):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def trunk(x):
        return jnp.tanh(conv(x, first, 2))

    def head(features):
        y = jax.nn.silu(conv(features, second, 1))
        return jnp.matmul((y * y).mean((1, 2)), last, precision="highest")

    return trunk, head


@pytest.mark.parametrize("classes", [None, (2, 0)])
def test_equals_finite_differences(classes):
    with jax.enable_x64(True):
        trunk, head = small(0, np.float64)
        features = trunk(jnp.asarray(np.random.default_rng(1).normal(size=(2, 10, 8, 3))))
        assert features.dtype == jnp.float64
        logits = np.asarray(head(features))
        asked = logits.argmax(1) if classes is None else np.array(classes)
        step, n = 1e-5, features[0].size
        moves = step * jnp.eye(n).reshape(n, 1, *features.shape[1:])  # the same one in both images
        up, down = (jax.vmap(head)(features[None] + sign * moves) for sign in (1, -1))
        slope = np.asarray(up - down)[:, [0, 1], asked] / (2 * step)
        g = slope.T.reshape(features.shape)

        classes = None if classes is None else jnp.asarray(classes)
        found = differentiate_class(head, features, classes)
        np.testing.assert_array_equal(found.logits, logits)
        np.testing.assert_array_equal(found.classes, asked)
        np.testing.assert_allclose(found.gradient, g, rtol=1e-6, atol=1e-10)

        A = np.asarray(features)
        alpha = g.mean((1, 2))
        wanted = np.maximum((alpha[:, None, None] * A).sum(-1), 0)
        assert (wanted.max((1, 2)) > 0).all()
        np.testing.assert_allclose(grad_cam(head, features, classes), wanted, rtol=1e-6, atol=1e-10)

        # Grad-CAM++ as its paper has it, with the powers and for features that are nowhere negative.
        A, positive = np.maximum(A, 0), jnp.maximum(features, 0)
        g = np.asarray(differentiate_class(head, positive, jnp.asarray(asked)).gradient)
        share = g**2 / (2 * g**2 + A.sum((1, 2), keepdims=True) * g**3)
        alpha = (share * np.maximum(g, 0)).sum((1, 2))
        wanted = np.maximum((alpha[:, None, None] * A).sum(-1), 0)
        assert (wanted.max((1, 2)) > 0).all()
        np.testing.assert_allclose(grad_cam_plus_plus(head, positive, jnp.asarray(asked)), wanted, rtol=1e-9)


def test_one_logit_is_the_class_and_its_sign_counts():
    trunk, head = small(2)
    features = trunk(jnp.asarray(np.random.default_rng(3).normal(size=(2, 16, 12, 3)), jnp.float32))
    one = grad_cam(lambda A: head(A)[:, 1:2], features)
    np.testing.assert_allclose(one, grad_cam(head, features, jnp.ones(2, jnp.int32)), rtol=1e-6)
    # Where one sign speaks for the class the other speaks against it.
    other = grad_cam(lambda A: -head(A)[:, 1:2], features)
    assert float(jnp.minimum(one, other).max()) == 0 and float(jnp.maximum(one, other).min()) > 0


@pytest.mark.parametrize("method", METHODS.values())
def test_a_map_is_the_images_own(method):
    trunk, head = small(4)
    features = trunk(jnp.asarray(np.random.default_rng(5).normal(size=(3, 16, 12, 3)), jnp.float32))
    maps = method(head, features)
    assert maps.shape == (3, 8, 6) and bool((maps >= 0).all())
    for index in range(3):
        np.testing.assert_allclose(
            method(head, features[index : index + 1])[0], maps[index], rtol=1e-5, atol=1e-7
        )


def test_plus_plus_is_finite_where_gradients_vanish_and_features_are_negative():
    features = jnp.asarray([-3.0, 0.0, 2.0, -1.0]).reshape(1, 2, 2, 1)
    # The sum of the features is −2 and the gradient 1: two and their product would make 0.
    maps = grad_cam_plus_plus(lambda A: A.sum((1, 2)), features)
    np.testing.assert_allclose(maps.reshape(-1), [0, 0, 2.0, 0])  # 4 pixels of 1 / (2 + 2)
    assert not np.asarray(grad_cam_plus_plus(lambda A: 0 * A.sum((1, 2)), features)).any()


# ------------------------------------------------------------------------------------------------- smooth


def test_smooth_without_noise_is_the_map_and_with_it_the_mean_of_noisy_ones():
    trunk, head = small(6)
    x = jnp.asarray(np.random.default_rng(7).normal(size=(2, 16, 12, 3)), jnp.float32)
    key = jax.random.key(8)
    mapped = jax.jit(lambda x, classes: grad_cam(head, trunk(x), classes))
    smoothed = jax.jit(
        lambda x, key, noise: smooth(grad_cam, head, trunk, x, key=key, samples=5, noise=noise)
    )

    classes = jnp.argmax(head(trunk(x)), axis=1)
    plain = mapped(x, classes)
    np.testing.assert_allclose(smoothed(x, key, 0.0), plain, rtol=1e-5, atol=1e-6)
    reach = np.ptp(np.asarray(x), axis=(1, 2, 3)).reshape(2, 1, 1, 1)
    fields = [jax.random.normal(k, (1, 16, 12, 3)) for k in jax.random.split(key, 5)]
    wanted = np.mean([mapped(x + 0.3 * reach * field, classes) for field in fields], axis=0)
    found = smoothed(x, key, 0.3)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    assert np.abs(np.asarray(found - plain)).max() > 1e-3
    # The same image has the same noise wherever it is in a batch, and another key has other noise.
    np.testing.assert_allclose(smoothed(x[::-1], key, 0.3)[::-1], found, rtol=1e-4, atol=1e-6)
    assert np.abs(np.asarray(smoothed(x, jax.random.key(9), 0.3) - found)).max() > 1e-3


def test_smooth_traces_the_network_as_often_for_many_samples_as_for_few():
    trunk, head = small(6)
    traces = []

    def counted(features):
        traces.append(features.shape)
        return head(features)

    for samples in (2, 50):
        traces.clear()
        run = partial(smooth, grad_cam, counted, trunk, key=jax.random.key(0), samples=samples)
        jax.eval_shape(run, jnp.ones((1, 8, 8, 3)))
        assert len(traces) == 2  # once for the classes, once for every sample


# -------------------------------------------------------------------------------------- maps as images


def test_resized_as_scipy_does_and_scaled():
    maps = np.random.default_rng(0).normal(size=(2, 7, 9)).astype(np.float32)
    height, width = 224, 200
    y, x = (np.clip((np.arange(n) + 0.5) * m / n - 0.5, 0, m - 1) for n, m in ((height, 7), (width, 9)))
    grid = np.meshgrid(y, x, indexing="ij")
    resized = np.stack([map_coordinates(np.float64(m), grid, order=1) for m in maps])
    low, high = resized.min((1, 2), keepdims=True), resized.max((1, 2), keepdims=True)
    ours = resize_and_scale(jnp.asarray(maps), height, width)
    np.testing.assert_allclose(ours, (resized - low) / (high - low), atol=2e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.floats(-20, 20), shift=st.floats(-10, 10))
def test_scaled_maps_begin_at_0_end_at_1_and_forget_their_units(seed, exponent, shift):
    maps = np.random.default_rng(seed).uniform(size=(1, 4, 5))
    image = resize_and_scale(jnp.asarray(maps, jnp.float32), 16, 20)
    assert float(image.min()) == 0 and 1 - 1e-6 < float(image.max()) <= 1
    other = resize_and_scale(jnp.asarray(10**exponent * (maps + shift), jnp.float32), 16, 20)
    assert float(other.min()) == 0 and 1 - 1e-6 < float(other.max()) <= 1
    np.testing.assert_allclose(other, image, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1e-30, 0.1, 7.3, -2.0, 1e30])
def test_a_constant_map_is_zero_and_the_others_beside_it_are_not(value):
    maps = jnp.stack([jnp.full((5, 3), value), jnp.arange(15.0).reshape(5, 3)])
    images = resize_and_scale(maps, 37, 41)
    assert not np.asarray(images[0]).any()
    np.testing.assert_allclose(images[1].max(), 1, rtol=1e-6)


# --------------------------------------------------------------------- the network that the paper reads


def test_the_papers_layers_are_b1s_blocks():
    graphdef, state = nnx.split(build_abstract(configure_efficientnet("b1", tensorflow=True, num_classes=1)))
    x = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    grids = jax.eval_shape(lambda state, x: nnx.merge(graphdef, state).intermediates(x), state, x)
    shapes = [grids[f"blocks.{block}"].shape for block in (13, 14, 20, 22)]
    assert shapes == [(2, 14, 14, 112), (2, 14, 14, 112), (2, 7, 7, 192), (2, 7, 7, 320)]
    assert "blocks.23" not in grids


def test_a_batch_of_one_shape_is_compiled_once():
    trunk, head = small(10)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def maps(x):
        return resize_and_scale(grad_cam(head, trunk(x)), *x.shape[1:3])

    for seed in range(2):
        x = jax.random.normal(jax.random.key(seed), (2, 16, 12, 3))
        assert maps(x).shape == (2, 16, 12)
