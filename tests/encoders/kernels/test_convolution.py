"""Convolutions by each way there is against XLA's own, in value and gradient."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from fseg_jax.encoders.kernels import convolution, onednn, onednn_gradients, onednn_library
from fseg_jax.encoders.kernels.convolution import PIECE, Plan, convolve
from fseg_jax.encoders.kernels.foreign_call import register
from fseg_jax.encoders.kernels.processor import detect_processor
from fseg_jax.encoders.layers import Conv
from fseg_jax.encoders.resnet.network import _max_pool, _max_pool_by_windows

needs_library = pytest.mark.skipif(
    onednn_library.load_library() is None, reason="oneDNN is not installed: pip install 'fseg-jax[onednn]'"
)
needs_x86 = pytest.mark.skipif(
    not {"avx2", "fma"} <= detect_processor().extensions,
    reason="the variables make an AVX2 machine of an x86 one",
)


def reference(conv, x, pads, add=None, relu=False):
    """In float64, of operands rounded as the convolution rounds them."""
    kernel = conv.kernel[...]
    with jax.enable_x64(True):
        y = lax.conv_general_dilated(
            x.astype(kernel.dtype).astype(jnp.float64),
            kernel.astype(jnp.float64),
            (conv.stride, conv.stride),
            pads,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=conv.groups,
        )
        y = y if conv.bias is None else y + conv.bias[...].astype(jnp.float64).reshape(1, 1, 1, -1)
        y = y if add is None else y + add.astype(jnp.float64)
        return np.asarray(jax.nn.relu(y) if relu else y)


def path_of(program):
    """What a lowered program convolves in: XLA, or the library's float32 or bfloat16."""
    calls = [line for line in program.splitlines() if onednn.TARGET in line]
    if not calls:
        return "XLA"
    (call,) = calls
    types = call.rpartition(" : ")[2]
    return "bfloat16" if "xbf16>" in types else "float32"


def drawn(conv, key=2):
    """With a bias that is not zero."""
    conv.bias[...] = jax.random.normal(jax.random.key(key), conv.bias.shape)
    return conv


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["symmetric", "SAME"])
@pytest.mark.parametrize("side", [7, 12])
def test_each_channel_by_itself(monkeypatch, kernel, stride, padding, side):
    monkeypatch.setattr(convolution, "CACHED", 4000)  # two images of these at once, or one
    padding = padding if padding == "SAME" else kernel // 2
    conv = Conv(6, 6, kernel, stride=stride, padding=padding, groups=6, bias=False, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (4, side, side + 1, 6))
    graphdef, state = nnx.split(conv)

    def ours(x, state):
        return nnx.merge(graphdef, state)(x)

    def whole(x, state):
        return lax.conv_general_dilated(
            x,
            state.kernel[...],
            (stride, stride),
            padding if padding == "SAME" else [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=6,
        )

    @jax.jit
    def differentiate(x):
        (y, pull), (z, pull_whole) = (jax.vjp(function, x, state) for function in (ours, whole))
        return (y, *jax.tree.leaves(pull(jnp.cos(z)))), (z, *jax.tree.leaves(pull_whole(jnp.cos(z))))

    for found, wanted in zip(*differentiate(x), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=1e-5, strict=True)


@pytest.mark.parametrize("kernel, stride, padding", [(1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 2, "SAME")])
def test_gradients_of_layers_that_are_trained(monkeypatch, kernel, stride, padding):
    monkeypatch.setattr(onednn_library, "load_library", lambda: None)
    conv = Conv(3, 5, kernel, stride=stride, padding=padding, bias=False, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (PIECE + 3, 6, 7, 3))
    pads = padding if padding == "SAME" else [(padding, padding)] * 2
    graphdef, state = nnx.split(conv)

    def ours(x, state):
        return nnx.merge(graphdef, state)(x)

    def whole(x, state):
        given = ((stride, stride), pads)
        return lax.conv_general_dilated(
            x, state.kernel[...], *given, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    @jax.jit
    def differentiate(x):
        (y, pull), (z, pull_whole) = (jax.vjp(function, x, state) for function in (ours, whole))
        return (y, *jax.tree.leaves(pull(jnp.cos(z)))), (z, *jax.tree.leaves(pull_whole(jnp.cos(z))))

    for found, wanted in zip(*differentiate(x), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=1e-5, strict=True)


CASES = [(1, 1, 0, 64, 32), (1, 2, 0, 64, 128), (3, 1, 1, 48, 64), (3, 2, 1, 64, 128), (7, 2, 3, 3, 64)]


@pytest.mark.parametrize("kernel, stride, padding, channels_in, channels_out", CASES)
@pytest.mark.parametrize("adds, relu", [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize("by_library", [False, pytest.param(True, marks=needs_library)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_follows_is_part_of_it(
    monkeypatch, dtype, kernel, stride, padding, channels_in, channels_out, adds, relu, by_library
):
    if not by_library:
        monkeypatch.setattr(onednn_library, "load_library", lambda: None)
    given = {"stride": stride, "padding": padding, "dtype": dtype, "rounded": dtype}
    conv = drawn(Conv(channels_in, channels_out, kernel, rngs=nnx.Rngs(0), **given))
    x = jax.random.normal(jax.random.key(1), (2, 14, 19, channels_in))
    shape = jax.eval_shape(conv, x).shape
    add = jax.random.normal(jax.random.key(3), shape).astype(dtype) if adds else None
    apply = jax.jit(lambda x, add: conv(x, add=add, relu=relu))
    y = apply(x, add)
    narrow = dtype == jnp.bfloat16 and detect_processor().multiplies_bfloat16
    taken = "bfloat16" if narrow else "float32"
    assert path_of(apply.lower(x, add).as_text()) == (taken if by_library else "XLA")
    assert y.dtype == dtype
    z = reference(conv, x, [(padding, padding)] * 2, add, relu)
    rounding = 2**-8 if dtype == jnp.bfloat16 else 1e-5  # once
    np.testing.assert_allclose(y.astype(jnp.float32), z, atol=1e-4, rtol=rounding)


# What a process of its own takes for a convolution of whole numbers, and whether the result is exact.
TAKEN = """
import json
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from fseg_jax.encoders.kernels import convolution, onednn, onednn_library
from fseg_jax.encoders.layers import Conv
from fseg_jax.encoders.kernels.processor import detect_processor

made = detect_processor()
said = {"set": made.instruction_set, "narrow": made.multiplies_bfloat16}
whole = np.random.default_rng(0).integers(-3, 4, (1, 9, 12, 64))
for dtype in (jnp.float32, jnp.bfloat16):
    conv = Conv(64, 64, 3, padding=1, dtype=dtype, rounded=dtype, rngs=nnx.Rngs(0))
    conv.kernel[...] = jnp.asarray(np.random.default_rng(1).integers(-1, 2, (3, 3, 64, 64)), dtype)
    x = jnp.asarray(whole, dtype)
    program = jax.jit(lambda x, conv=conv: conv(x, add=x, relu=True)).lower(x)
    found = np.asarray(program.compile()(x))
    library, onednn_library.load_library = onednn_library.load_library, lambda: None
    exact = np.array_equal(found, conv(x, add=x, relu=True))
    onednn_library.load_library = library
    said[jnp.dtype(dtype).name] = [program.as_text(), exact]
print(json.dumps(said))
"""
KINDS = {
    "as it is": {},
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "XLA_FLAGS": "--xla_cpu_max_isa=AVX2"},
    "AVX2 to the library alone": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
}


@pytest.fixture(scope="module")
def kinds():
    """What is taken on each kind of processor, in processes that run beside one another."""
    own = {name: value for name, value in os.environ.items() if name not in KINDS["AVX2"]}
    runs = {
        kind: subprocess.Popen([sys.executable, "-c", TAKEN], env=own | given, stdout=subprocess.PIPE)
        for kind, given in KINDS.items()
    }
    return {kind: json.loads(run.communicate()[0]) for kind, run in runs.items()}


@needs_library
@needs_x86
def test_a_processor_without_bfloat16_convolves_it_in_float32(kinds):
    found = kinds["AVX2"]
    assert (found["set"], found["narrow"]) == ("AVX2", False)
    for dtype in ("float32", "bfloat16"):
        program, exact = found[dtype]
        assert path_of(program) == "float32" and exact


@needs_library
def test_this_processor_convolves_in_what_it_is_fast_at(kinds):
    found = kinds["as it is"]
    assert found["set"] != "unknown"
    for dtype in ("float32", "bfloat16"):
        program, exact = found[dtype]
        assert path_of(program) == (dtype if found["narrow"] else "float32") and exact


@needs_library
@needs_x86
def test_what_the_library_lacks_it_does_in_float32(kinds):
    program, exact = kinds["AVX2 to the library alone"]["bfloat16"]
    assert path_of(program) == "float32" and exact


@needs_library
def test_the_librarys_convolution_has_xlas_derivative(monkeypatch):
    half = jnp.bfloat16
    conv = drawn(Conv(64, 64, 3, padding=1, dtype=half, rounded=half, rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(1), (1, 8, 8, 64), half)

    def loss(x):
        return jnp.sum(jnp.cos(conv(x, add=x, relu=True).astype(jnp.float32)))

    found = jax.grad(loss)(x)
    monkeypatch.setattr(onednn_library, "load_library", lambda: None)
    np.testing.assert_array_equal(found, jax.grad(loss)(x))


@needs_library
@pytest.mark.parametrize("kernel, stride, padding, channels_in, channels_out", CASES)
def test_layers_that_are_trained_have_the_librarys_gradients(
    kernel, stride, padding, channels_in, channels_out
):
    given = {"stride": stride, "padding": padding, "bias": False, "rngs": nnx.Rngs(0)}
    conv = Conv(channels_in, channels_out, kernel, **given)
    x = jax.random.normal(jax.random.key(1), (2, 14, 19, channels_in))

    def differentiate(x, weights, dy):
        return jax.vjp(lambda x, weights: convolve(x, weights, None, None, plan), x, weights)[1](dy)

    plan = Plan(stride, ((padding, padding),) * 2, 1, False, jnp.dtype(jnp.float32))
    dy = jax.random.normal(jax.random.key(2), jax.eval_shape(conv, x).shape)
    operands = x, conv.kernel[...], dy
    program = jax.jit(differentiate).lower(*operands).as_text()
    assert all(target in program for target in onednn_gradients.TARGETS.values())
    dx, dk = jax.jit(differentiate)(*operands)
    with jax.enable_x64(True):
        exact = jax.vjp(
            lambda x, weights: lax.conv_general_dilated(
                x, weights, (stride, stride), plan.pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
            ),
            *(a.astype(jnp.float64) for a in operands[:2]),
        )[1](dy.astype(jnp.float64))
        exact = [np.asarray(a) for a in exact]
    np.testing.assert_allclose(dx, exact[0], atol=1e-5 * np.abs(exact[0]).max())
    np.testing.assert_allclose(dk, exact[1], atol=1e-5 * np.abs(exact[1]).max())


@needs_library
def test_what_is_added_is_left_as_it_was():
    half = jnp.bfloat16
    conv = drawn(Conv(64, 64, 1, dtype=half, rounded=half, rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(1), (1, 8, 8, 64), half)
    before = np.asarray(x)
    y, added = jax.jit(lambda x: (conv(x, add=x, relu=True), x + 1))(x)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(added, before + np.asarray(1, before.dtype))
    np.testing.assert_allclose(
        y.astype(jnp.float32), reference(conv, x, [(0, 0)] * 2, x, relu=True), atol=1e-4, rtol=2**-8
    )


@needs_library
def test_convolutions_of_several_threads_and_batches():
    half = jnp.bfloat16
    conv = drawn(Conv(64, 64, 3, padding=1, dtype=half, rounded=half, rngs=nnx.Rngs(0)))
    apply = jax.jit(lambda x: conv(x, relu=True))
    images = [jax.random.normal(jax.random.key(n), (1 + n % 3, 20, 20, 64), half) for n in range(12)]
    alone = [np.asarray(apply(x)) for x in images]
    with ThreadPoolExecutor(4) as pool:
        for together, expected in zip(pool.map(apply, images * 5), alone * 5, strict=True):
            np.testing.assert_array_equal(together, expected)
    batch = jnp.concatenate(images)
    np.testing.assert_array_equal(apply(batch), np.concatenate(alone))


def test_the_library_is_behind_one_door():
    package = Path(onednn.__file__).parents[2]
    names = ("kernels.onednn", "kernels import onednn")
    users = {f.name for f in package.rglob("*.py") if any(name in f.read_text() for name in names)}
    assert users == {"convolution.py", "onednn.py", "onednn_gradients.py"}


def test_what_a_foreign_function_raises_is_the_programs_error():
    def fail(operands, result, numbers):
        raise ValueError(f"no {numbers[0]} from {operands[0].shape}")

    register("fseg_jax_test_fail", fail)
    call = jax.ffi.ffi_call("fseg_jax_test_fail", jax.ShapeDtypeStruct((2,), jnp.float32))
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"fseg_jax_test_fail: no 7 from \(3, 2\)"):
        jax.block_until_ready(call(jnp.zeros((3, 2)), numbers=np.array([7], np.int64)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(1, 8, 8, 4), (2, 7, 10, 3)])
def test_max_pool(dtype, shape):
    x = jax.nn.relu(jax.random.normal(jax.random.key(0), shape)).astype(dtype).at[0, 3, 3].set(-0.0)
    y, pull = jax.vjp(_max_pool, x)
    z, pull_windowed = jax.vjp(_max_pool_by_windows, x)
    np.testing.assert_array_equal(jax.jit(_max_pool)(x), z)
    np.testing.assert_array_equal(y, z)
    np.testing.assert_array_equal(pull(jnp.ones_like(y))[0], pull_windowed(jnp.ones_like(z))[0])
