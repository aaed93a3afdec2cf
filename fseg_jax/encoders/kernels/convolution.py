"""A convolution and the bias, sum and ReLU after it, by the fastest way on each platform.

This module decides between XLA and oneDNN; no other imports ``onednn`` or its gradients.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fseg_jax.encoders.kernels import onednn, onednn_gradients, onednn_library
from fseg_jax.encoders.kernels.processor import detect_processor
from fseg_jax.encoders.kernels.products import choose_precision

Pads = tuple[tuple[int, int], ...]  # zeros before and after the rows, and the columns
FAST_PRODUCT_CHANNELS = 256  # input channels that make a convolution's products fast by themselves
PIECE = 32  # images whose gradient by the kernel XLA's CPU sums at once: it takes twice as long for 256

CACHED = 2**18  # numbers that stay in a processor's cache while they are read again and again


class Plan(NamedTuple):
    """All that describes a convolution besides its arrays."""

    stride: int
    pads: Pads
    groups: int  # of channels
    relu: bool  # whether negative values are set to zero
    dtype: DTypeLike  # that the result is rounded to


def convolve(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "y x j o"],
    bias: Float[Array, " o"] | None,
    add: Float[Array, "b p q o"] | None,
    plan: Plan,
) -> Float[Array, "b p q o"]:
    """Compute ``x * kernel + bias + add``, or its positive part where the plan says so.

    ``x`` is rounded to the kernel's dtype; sums are float32.
    """
    x = x.astype(kernel.dtype)
    if bias is None and add is None:
        spec = _choose_training_spec(x.shape, kernel, plan)
        if spec is not None:
            y: Array = _convolve_to_train(plan, spec, x, kernel)
            return y
    uniform = kernel.dtype == plan.dtype and kernel.dtype in (jnp.float32, jnp.bfloat16)
    if bias is None or plan.groups > 1 or not uniform:
        return _convolve_by_xla(plan, x, kernel, bias, add)
    spec = choose_spec(x.shape, kernel.shape, plan, add is not None)
    if spec is None:
        return _convolve_by_xla(plan, x, kernel, bias, add)
    add = None if add is None else add.astype(plan.dtype)
    y = _convolve_by_onednn(plan, spec, x, kernel, bias, add)
    return y


def choose_spec(x: tuple[int, ...], kernel: tuple[int, ...], plan: Plan, adds: bool) -> onednn.Spec | None:
    """Choose oneDNN's convolution that is fast on this processor; None where it has none.

    It is in the plan's dtype or, where products of bfloat16 are slow, in float32, which holds the same
    numbers.

    Args:
        x: Shape of the images.
        kernel: Shape of the kernel.
        plan: The rest of its description.
        adds: Whether something is added to the result.
    """
    (top, bottom), (left, right) = plan.pads
    in_float32 = onednn.Spec(plan.stride, top, bottom, left, right, int(plan.relu), half=0)
    use_bfloat16 = plan.dtype == jnp.bfloat16 and detect_processor().multiplies_bfloat16
    specs = (in_float32._replace(half=1), in_float32) if use_bfloat16 else (in_float32,)
    return next((spec for spec in specs if onednn.supports(x, kernel, spec, adds)), None)


def _choose_training_spec(x: tuple[int, ...], kernel: Array, plan: Plan) -> onednn.Spec | None:
    """Choose oneDNN's convolution for a layer that is trained, as those of float32 without a bias are.

    None where it has none, or none with fast gradients.
    """
    if plan.groups > 1 or plan.relu or not kernel.dtype == plan.dtype == jnp.float32:
        return None
    spec = choose_spec(x, kernel.shape, plan, adds=False)
    return spec if spec is not None and onednn_gradients.supports(x, kernel.shape, spec) else None


def library_version() -> str | None:
    """Return oneDNN's version; None where it is not installed."""
    library = onednn_library.load_library()
    return None if library is None else library.version


# oneDNN's convolution has no derivative: XLA's is taken.
@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _convolve_by_onednn(
    plan: Plan, spec: onednn.Spec, x: Array, kernel: Array, bias: Array, add: Array | None
) -> Array:
    on_cpu, elsewhere = partial(_call_onednn, plan, spec), partial(_convolve_by_xla, plan)
    y: Array = lax.platform_dependent(x, kernel, bias, add, cpu=on_cpu, default=elsewhere)
    return y


@_convolve_by_onednn.defjvp
def _(
    plan: Plan, spec: onednn.Spec, primals: tuple[Array | None, ...], tangents: tuple[Array | None, ...]
) -> tuple[Array, Array]:
    return jax.jvp(partial(_convolve_by_xla, plan), primals, tangents)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolve_to_train(plan: Plan, spec: onednn.Spec, x: Array, kernel: Array) -> Array:
    bias = jnp.zeros(kernel.shape[-1:], jnp.float32)
    return _convolve_by_onednn(plan, spec, x, kernel, bias, None)


def _begin_gradient(
    plan: Plan, spec: onednn.Spec, x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _convolve_to_train(plan, spec, x, kernel), (x, kernel)


def _finish_gradient(
    plan: Plan, spec: onednn.Spec, operands: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    def by_onednn(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        return (
            onednn_gradients.differentiate_by_image(dy, kernel, x.shape, spec),
            onednn_gradients.differentiate_by_kernel(x, dy, kernel.shape, spec),
        )

    def by_xla(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        _, pull_back = jax.vjp(partial(_convolve_whole, plan=plan), x, kernel)
        dx, dk = pull_back(dy)
        return dx, dk

    dx, dk = lax.platform_dependent(*operands, dy, cpu=by_onednn, default=by_xla)
    return dx, dk


_convolve_to_train.defvjp(_begin_gradient, _finish_gradient)


def _call_onednn(
    plan: Plan, spec: onednn.Spec, x: Array, kernel: Array, bias: Array, add: Array | None
) -> Array:
    dtype = jnp.bfloat16 if spec.half else jnp.float32
    add = None if add is None else add.astype(dtype)
    return onednn.convolve(x.astype(dtype), kernel.astype(dtype), bias, add, spec).astype(plan.dtype)


def _convolve_by_xla(plan: Plan, x: Array, kernel: Array, bias: Array | None, add: Array | None) -> Array:
    whole = partial(_convolve_whole, plan=plan)
    if _is_depthwise(x, kernel, plan):
        y = _convolve_depthwise(plan, x, kernel)
    elif _has_fast_products(kernel, plan):
        y = lax.platform_dependent(x, kernel, cpu=partial(_sum_shifted_products, plan=plan), default=whole)
    elif bias is None and add is None and plan.groups == 1 and kernel.dtype == jnp.float32:
        y = _convolve_in_pieces(plan, x, kernel)
    else:
        y = whole(x, kernel)
    if bias is not None:
        y = y + bias.reshape(1, 1, 1, -1)
    if add is not None:
        y = y + add
    return (jax.nn.relu(y) if plan.relu else y).astype(plan.dtype)


def _has_fast_products(kernel: Array, plan: Plan) -> bool:
    """Whether XLA's products of pixels by the kernel are faster on a CPU than its convolution is.

    For single pixels they are, and their gradients take a half to a twentieth of the time.
    """
    is_wide = kernel.shape[2] >= FAST_PRODUCT_CHANNELS and kernel.dtype == jnp.bfloat16
    return plan.groups == 1 and (kernel.shape[:2] == (1, 1) or is_wide)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve_in_pieces(plan: Plan, x: Array, kernel: Array) -> Array:
    """Convolve as ``_convolve_whole`` does; on a CPU the gradient by the kernel is summed in pieces."""
    return _convolve_whole(x, kernel, plan)


def _begin_pieces(plan: Plan, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _convolve_whole(x, kernel, plan), (x, kernel)


def _finish_pieces(plan: Plan, operands: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = operands

    def by_kernel(x: Array, dy: Array) -> Array:
        _, pull_back = jax.vjp(lambda kernel: _convolve_whole(x, kernel, plan), kernel)
        dk: Array = pull_back(dy)[0]
        return dk

    def by_kernel_in_pieces(x: Array, dy: Array) -> Array:
        begins = range(0, x.shape[0], PIECE)
        return sum(
            (by_kernel(x[begin : begin + PIECE], dy[begin : begin + PIECE]) for begin in begins),
            start=jnp.zeros_like(kernel),
        )

    _, pull_back = jax.vjp(lambda x: _convolve_whole(x, kernel, plan), x)
    dk = lax.platform_dependent(x, dy, cpu=by_kernel_in_pieces, default=by_kernel)
    return pull_back(dy)[0], dk


_convolve_in_pieces.defvjp(_begin_pieces, _finish_pieces)


def _is_depthwise(x: Array, kernel: Array, plan: Plan) -> bool:
    return plan.groups == x.shape[-1] == kernel.shape[-1] > 1


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve_depthwise(plan: Plan, x: Array, kernel: Array) -> Array:
    """Convolve each channel by itself; on a CPU as a sum of shifted images, and the gradients likewise."""
    by_shifts, whole = partial(_sum_shifted_products, plan=plan), partial(_convolve_whole, plan=plan)
    y: Array = lax.platform_dependent(x, kernel, cpu=by_shifts, default=whole)
    return y


def _begin_depthwise(plan: Plan, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _convolve_depthwise(plan, x, kernel), (x, kernel)


def _finish_depthwise(plan: Plan, operands: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    def by_xla(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        _, pull_back = jax.vjp(partial(_convolve_whole, plan=plan), x, kernel)
        dx, dk = pull_back(dy)
        return dx, dk

    dx, dk = lax.platform_dependent(
        *operands, dy, cpu=partial(_differentiate_depthwise, plan=plan), default=by_xla
    )
    return dx, dk


_convolve_depthwise.defvjp(_begin_depthwise, _finish_depthwise)


def _differentiate_depthwise(x: Array, kernel: Array, dy: Array, plan: Plan) -> tuple[Array, Array]:
    """Compute the gradients of a convolution of each channel, by the image and by the kernel.

    That by the image is a sum of shifted images too, one for each phase of the stride, and that by the kernel
    a loop over its places: of the sum's own derivative, XLA makes several programs for each place.
    """
    stride, (height, width) = plan.stride, kernel.shape[:2]
    (top, bottom), (left, right) = plan.pads
    p, q = dy.shape[1:3]
    # Rows and columns of each phase.
    rows = -(-(x.shape[1] + top + bottom) // stride)
    columns = -(-(x.shape[2] + left + right) // stride)
    bottom, right = rows * stride - x.shape[1] - top, columns * stride - x.shape[2] - left
    padded = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    seen = padded.reshape(x.shape[0], rows, stride, columns, stride, x.shape[3])
    # So many images at once as stay in the processor's cache.
    most = max(1, CACHED // (seen.size // x.shape[0]))
    images = next(n for n in range(min(most, x.shape[0]), 0, -1) if x.shape[0] % n == 0)

    def add_images(dk: Array, some: tuple[Array, Array]) -> tuple[Array, None]:
        seen, dy = some

        def differentiate_by_place(place: Array) -> Array:
            i, j = place // width, place % width
            start = (0, i // stride, i % stride, j // stride, j % stride, 0)
            shifted = lax.dynamic_slice(seen, start, (images, p, 1, q, 1, x.shape[3]))
            return (shifted.reshape(dy.shape) * dy).sum((0, 1, 2))

        return dk + lax.map(differentiate_by_place, jnp.arange(height * width)), None

    begin = jnp.zeros((height * width, x.shape[3]), jnp.float32)
    seen, dy_pieces = (array.reshape(-1, images, *array.shape[1:]) for array in (seen, dy))
    dk, _ = lax.scan(add_images, begin, (seen, dy_pieces))
    phases = []
    for a in range(stride):
        for b in range(stride):
            part = kernel[a::stride, b::stride][::-1, ::-1]
            before = [max(side - 1, 0) for side in part.shape[:2]]
            after = (rows - p, columns - q)
            around = jnp.pad(dy, ((0, 0), (before[0], after[0]), (before[1], after[1]), (0, 0)))
            phases.append(_add_up(around, part, (rows, columns), 1))
    dx = jnp.stack(phases).reshape(stride, stride, *phases[0].shape)
    dx = jnp.moveaxis(dx, (0, 1), (2, 4)).reshape(x.shape[0], rows * stride, columns * stride, x.shape[3])
    dx = dx[:, top : top + x.shape[1], left : left + x.shape[2]]
    return dx.astype(x.dtype), dk.reshape(kernel.shape).astype(kernel.dtype)


def _convolve_whole(x: Array, kernel: Array, plan: Plan) -> Float[Array, "b p q o"]:
    return lax.conv_general_dilated(
        x,
        kernel,
        (plan.stride, plan.stride),
        plan.pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=plan.groups,
        precision=choose_precision(kernel.dtype),
        preferred_element_type=jnp.float32,
    )


def _sum_shifted_products(x: Array, kernel: Array, plan: Plan) -> Float[Array, "b p q o"]:
    """Compute a convolution as a sum of products of the shifted image.

    On a CPU, XLA's products of bfloat16 are fast and its convolutions are not: ResNet-50 takes two thirds of
    the time this way. XLA's gradients of depthwise convolutions take ten times as long there.
    """
    sides, stride = kernel.shape[:2], plan.stride
    x = jnp.pad(x, ((0, 0), *plan.pads, (0, 0)))
    p, q = ((x.shape[1 + axis] - sides[axis]) // stride + 1 for axis in (0, 1))
    if plan.groups > 1:
        return _add_up(x, kernel, (p, q), stride)
    y = jnp.zeros((x.shape[0], p, q, kernel.shape[3]), jnp.float32)
    for i, j, shifted in _shift(x, sides, (p, q), stride):
        precision = choose_precision(kernel.dtype)
        y += jnp.matmul(shifted, kernel[i, j], precision=precision, preferred_element_type=jnp.float32)
    return y


def _add_up(x: Array, kernel: Array, size: tuple[int, int], stride: int) -> Float[Array, "b p q c"]:
    """Add up shifted images, each times the kernel's number for its channel."""
    y = jnp.zeros((x.shape[0], *size, x.shape[3]), jnp.float32)
    for i, j, shifted in _shift(x, kernel.shape[:2], size, stride):
        y += shifted * kernel[i, j].reshape(1, 1, 1, -1)
    return y


def _shift(
    x: Array, sides: tuple[int, ...], size: tuple[int, int], stride: int
) -> Iterator[tuple[int, int, Array]]:
    """Yield each place in a kernel, and what it sees of a padded image."""
    p, q = size
    for i in range(sides[0]):
        for j in range(sides[1]):
            yield (
                i,
                j,
                x[:, i : i + stride * (p - 1) + 1 : stride, j : j + stride * (q - 1) + 1 : stride],
            )
