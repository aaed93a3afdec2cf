"""The gradients of a convolution on a CPU by oneDNN, for training.

XLA's own gradient by the kernel takes up to eight times as long as the convolution. The library's takes twice
as long, and its gradient by the image as long as the convolution. Both are of float32.
"""

from ctypes import c_void_p
from functools import cache
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float32

from fseg_jax.encoders.kernels import onednn_library as dnnl
from fseg_jax.encoders.kernels.foreign_call import Operand, register
from fseg_jax.encoders.kernels.onednn import Spec, compute_shape

By = Literal["image", "kernel"]
TARGETS: dict[By, str] = {  # the names by which XLA calls them
    "image": "fseg_jax_onednn_gradient_by_image",
    "kernel": "fseg_jax_onednn_gradient_by_kernel",
}
# Constants of the library's C interface.
_TRAINING, _WEIGHTS, _DIFF_WEIGHTS = 64, 131, 132
_DIFF_SRC, _DIFF_DST, _DIFF_KERNEL = 129, 145, 161


def supports(x: tuple[int, ...], kernel: tuple[int, ...], spec: Spec) -> bool:
    """Whether the library, which is installed, has optimised gradients of a convolution."""
    try:
        names = [_prepare(by, x, kernel, spec).implementation for by in TARGETS]
    except dnnl.UnsupportedError:
        return False
    return not any(name.startswith("ref") for name in names)


def differentiate_by_image(
    dy: Float32[Array, "b p q o"], kernel: Float32[Array, "y x i o"], shape: tuple[int, ...], spec: Spec
) -> Float32[Array, "b h w i"]:
    """Compute the gradient by the image, of ``shape``, from that by the result; ask ``supports`` first."""
    return _call("image", dy, kernel, shape, spec)


def differentiate_by_kernel(
    x: Float32[Array, "b h w i"], dy: Float32[Array, "b p q o"], shape: tuple[int, ...], spec: Spec
) -> Float32[Array, "y x i o"]:
    """Compute the gradient by the kernel, of ``shape``, from that by the result; ask ``supports`` first."""
    return _call("kernel", x, dy, shape, spec)


def _call(by: By, first: Array, second: Array, shape: tuple[int, ...], spec: Spec) -> Array:
    _register()
    result = jax.ShapeDtypeStruct(shape, np.float32)
    y: Array = jax.ffi.ffi_call(TARGETS[by], result)(first, second, spec=np.asarray(spec, np.int64))
    return y


class _Gradient(NamedTuple):
    """The library's two programs for one gradient.

    Attributes:
        implementation: Its name in the library.
        layout: The program that lays out the kernel for the gradient, or the kernel's gradient for us.
        layout_arguments: Its arguments.
        run: The program that computes the gradient.
        run_arguments: Its arguments.
        memories: The memories that the arguments point to: image, kernel, kernel laid out, result, scratch.
        kernel_size: Bytes of the kernel as it is laid out; they are used within a call only.
        scratch_size: Bytes of scratch memory, likewise.
    """

    implementation: str
    layout: c_void_p
    layout_arguments: Any
    run: c_void_p
    run_arguments: Any
    memories: tuple[c_void_p, ...]
    kernel_size: int
    scratch_size: int


@cache
def _prepare(by: By, x: tuple[int, ...], kernel: tuple[int, ...], spec: Spec) -> _Gradient:
    c, engine = dnnl.get_library().c, dnnl.get_library().engine
    rows, columns, channels_in, channels_out = kernel
    src = dnnl.describe_image(x, dnnl.FLOAT32)
    dst = dnnl.describe_image(compute_shape(x, kernel, spec), dnnl.FLOAT32)
    shape = (channels_out, channels_in, rows, columns)
    strides = (1, channels_out, columns * channels_in * channels_out, channels_in * channels_out)
    plain = dnnl.describe_strided(shape, dnnl.FLOAT32, strides)
    free = dnnl.create_handle(
        c.dnnl_memory_desc_create_with_tag, 4, dnnl.make_dims(*shape), dnnl.FLOAT32, dnnl.ANY
    )
    geometry = (
        dnnl.make_dims(spec.stride, spec.stride),
        dnnl.make_dims(0, 0),
        dnnl.make_dims(spec.top, spec.left),
        dnnl.make_dims(spec.bottom, spec.right),
    )
    forward = dnnl.create_handle(
        c.dnnl_convolution_forward_primitive_desc_create,
        *(engine, _TRAINING, dnnl.DIRECT, src, free, None, dst, *geometry, None),
    )
    after = (dst, *geometry, forward, dnnl.make_attributes())
    if by == "image":
        make = c.dnnl_convolution_backward_data_primitive_desc_create
        description = dnnl.create_handle(make, engine, dnnl.DIRECT, src, free, *after)
    else:
        make = c.dnnl_convolution_backward_weights_primitive_desc_create
        description = dnnl.create_handle(make, engine, dnnl.DIRECT, src, free, None, *after)
    laid_out = dnnl.query_layout(description, _WEIGHTS if by == "image" else _DIFF_WEIGHTS)
    scratch = dnnl.query_layout(description, dnnl.SCRATCHPAD)
    memories = tuple(
        dnnl.create_handle(c.dnnl_memory_create, place, engine, None)
        for place in (src, plain, laid_out, dst, scratch)
    )
    src_memory, plain_memory, laid_out_memory, dst_memory, scratch_memory = memories
    if by == "image":
        ends = (plain, engine, laid_out, engine)
        layout_arguments = {dnnl.SRC: plain_memory, dnnl.DST: laid_out_memory}
        run_arguments = {_DIFF_SRC: src_memory, dnnl.KERNEL: laid_out_memory}
    else:
        ends = (laid_out, engine, plain, engine)
        layout_arguments = {dnnl.SRC: laid_out_memory, dnnl.DST: plain_memory}
        run_arguments = {dnnl.SRC: src_memory, _DIFF_KERNEL: laid_out_memory}
    layout = dnnl.create_handle(c.dnnl_reorder_primitive_desc_create, *ends, None)
    run_arguments |= {_DIFF_DST: dst_memory, dnnl.SCRATCH: scratch_memory}
    return _Gradient(
        dnnl.query_name(description),
        dnnl.create_handle(c.dnnl_primitive_create, layout),
        dnnl.make_arguments(layout_arguments),
        dnnl.create_handle(c.dnnl_primitive_create, description),
        dnnl.make_arguments(run_arguments),
        memories,
        c.dnnl_memory_desc_get_size(laid_out),
        c.dnnl_memory_desc_get_size(scratch),
    )


def _compute_by_image(operands: list[Operand], result: Operand, numbers: tuple[int, ...]) -> None:
    """Compute the gradient by the image for XLA, from that by the result and the kernel."""
    dy, kernel = operands
    gradient = _prepare("image", result.shape, kernel.shape, Spec(*numbers))
    with dnnl.RUN_LOCK:
        _set_addresses(gradient, result.address, kernel.address, dy.address)
        dnnl.run_program(gradient.layout, gradient.layout_arguments)
        dnnl.run_program(gradient.run, gradient.run_arguments)


def _compute_by_kernel(operands: list[Operand], result: Operand, numbers: tuple[int, ...]) -> None:
    """Compute the gradient by the kernel for XLA, from the image and the gradient by the result."""
    x, dy = operands
    gradient = _prepare("kernel", x.shape, result.shape, Spec(*numbers))
    with dnnl.RUN_LOCK:
        _set_addresses(gradient, x.address, result.address, dy.address)
        dnnl.run_program(gradient.run, gradient.run_arguments)
        dnnl.run_program(gradient.layout, gradient.layout_arguments)


def _set_addresses(gradient: _Gradient, image: int, kernel: int, dy: int) -> None:
    laid_out = dnnl.reserve_memory("kernel", gradient.kernel_size)
    scratch = dnnl.reserve_memory("scratch", gradient.scratch_size)
    c = dnnl.get_library().c
    for memory, address in zip(gradient.memories, (image, kernel, laid_out, dy, scratch), strict=True):
        dnnl.check_status(c.dnnl_memory_set_data_handle(memory, c_void_p(address)))


@cache
def _register() -> None:
    register(TARGETS["image"], _compute_by_image)
    register(TARGETS["kernel"], _compute_by_kernel)
