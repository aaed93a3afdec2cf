"""The gradients of a convolution on a CPU by oneDNN, for training.

XLA's own gradient by the kernel takes up to eight times as long as the convolution. The library's takes twice
as long, and its gradient by the image as long as the convolution. Both are of float32.
"""

from functools import cache
from typing import Literal

import jax
import numpy as np
from jaxtyping import Array, Float32

from fseg_jax.encoders.kernels import onednn_library as dnnl
from fseg_jax.encoders.kernels.foreign_call import Operand, register
from fseg_jax.encoders.kernels.onednn import Spec, compute_shape, make_geometry

By = Literal["image", "kernel"]
TARGETS: dict[By, str] = {  # the names by which XLA calls them
    "image": "fseg_jax_onednn_gradient_by_image",
    "kernel": "fseg_jax_onednn_gradient_by_kernel",
}
# Constants of the library's C interface.
_TRAINING, _DIFF_WEIGHTS = 64, 132
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


@cache
def _prepare(by: By, x: tuple[int, ...], kernel: tuple[int, ...], spec: Spec) -> dnnl.Program:
    c, engine = dnnl.get_library().c, dnnl.get_library().engine
    src = dnnl.describe_image(x, dnnl.FLOAT32)
    dst = dnnl.describe_image(compute_shape(x, kernel, spec), dnnl.FLOAT32)
    plain, free = dnnl.describe_kernel(kernel, dnnl.FLOAT32)
    geometry = make_geometry(spec)
    forward = dnnl.create_handle(
        c.dnnl_convolution_forward_primitive_desc_create,
        *(engine, _TRAINING, dnnl.DIRECT, src, free, None, dst, *geometry, None),
    )
    after = (dst, *geometry, forward, dnnl.make_attributes())
    if by == "image":
        make = c.dnnl_convolution_backward_data_primitive_desc_create
        description = dnnl.create_handle(make, engine, dnnl.DIRECT, src, free, *after)
        others = {_DIFF_SRC: src, _DIFF_DST: dst}
        return dnnl.build_program(description, plain, others, (dnnl.WEIGHTS, dnnl.KERNEL))
    make = c.dnnl_convolution_backward_weights_primitive_desc_create
    description = dnnl.create_handle(make, engine, dnnl.DIRECT, src, free, None, *after)
    others = {dnnl.SRC: src, _DIFF_DST: dst}
    return dnnl.build_program(description, plain, others, (_DIFF_WEIGHTS, _DIFF_KERNEL), makes_kernel=True)


def _compute_by_image(operands: list[Operand], result: Operand, numbers: tuple[int, ...]) -> None:
    """Compute the gradient by the image for XLA, from that by the result and the kernel."""
    dy, kernel = operands
    program = _prepare("image", result.shape, kernel.shape, Spec(*numbers))
    program.run(kernel.address, result.address, dy.address)


def _compute_by_kernel(operands: list[Operand], result: Operand, numbers: tuple[int, ...]) -> None:
    """Compute the gradient by the kernel for XLA, from the image and the gradient by the result."""
    x, dy = operands
    program = _prepare("kernel", x.shape, result.shape, Spec(*numbers))
    program.run(result.address, x.address, dy.address)


@cache
def _register() -> None:
    register(TARGETS["image"], _compute_by_image)
    register(TARGETS["kernel"], _compute_by_kernel)
