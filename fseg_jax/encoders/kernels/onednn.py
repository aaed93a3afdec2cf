"""Convolutions on a CPU by oneDNN, where that library is installed (the ``onednn`` extra).

XLA's convolutions of float32 run at half of a CPU's rate, and it has no fast ones of bfloat16. oneDNN sums
products of either in float32, adds the bias and a further summand, and takes the positive part, all before
the result is rounded and written. XLA's programs call it on XLA's own buffers.
"""

from ctypes import c_float, c_int
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Float32

from fseg_jax.encoders.kernels import onednn_library as dnnl
from fseg_jax.encoders.kernels.foreign_call import Operand, register

TARGET = "fseg_jax_onednn_convolution"  # the name by which XLA calls it
_INFERENCE, _RELU = 96, 0x20  # constants of the library's C interface


class Spec(NamedTuple):
    """All that describes a convolution beside its shapes, in numbers that XLA passes on."""

    stride: int
    top: int  # rows of zeros above the image
    bottom: int  # rows of zeros below it
    left: int  # columns of zeros left of it
    right: int  # columns of zeros right of it
    relu: int  # 1 where negative values are set to zero
    half: int  # 1 where image, kernel and result are bfloat16, 0 where they are float32


def supports(x: tuple[int, ...], kernel: tuple[int, ...], spec: Spec, adds: bool) -> bool:
    """Whether the library is installed, and has an optimised kernel for this processor and these shapes."""
    if dnnl.load_library() is None:
        return False
    try:
        return not _prepare(x, kernel, spec, adds).implementation.startswith("ref")
    except dnnl.UnsupportedError:
        return False


def convolve(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "y x i o"],
    bias: Float32[Array, " o"],
    add: Float[Array, "b p q o"] | None,
    spec: Spec,
) -> Float[Array, "b p q o"]:
    """Convolve ``x`` with ``kernel``, add ``bias`` and ``add``, and take the positive part where it is asked.

    It runs on a CPU only and has no derivative. Ask ``supports`` first.
    """
    _register()
    shape = compute_shape(x.shape, kernel.shape, spec)
    call = jax.ffi.ffi_call(
        TARGET,
        jax.ShapeDtypeStruct(shape, kernel.dtype),
        input_output_aliases={} if add is None else {3: 0},
        vmap_method="sequential",
    )
    operands = (x, kernel, bias) if add is None else (x, kernel, bias, add)
    return call(*operands, spec=np.asarray(spec, np.int64))


def compute_shape(x: tuple[int, ...], kernel: tuple[int, ...], spec: Spec) -> tuple[int, int, int, int]:
    """Compute the shape of a convolution's result."""
    rows = (x[1] + spec.top + spec.bottom - kernel[0]) // spec.stride + 1
    columns = (x[2] + spec.left + spec.right - kernel[1]) // spec.stride + 1
    return x[0], rows, columns, kernel[3]


def make_geometry(spec: Spec) -> tuple[Any, ...]:
    """Make the library's strides, dilations, and pads before and after."""
    sizes = ((spec.stride, spec.stride), (0, 0), (spec.top, spec.left), (spec.bottom, spec.right))
    return tuple(dnnl.make_dims(*pair) for pair in sizes)


@cache
def _prepare(x: tuple[int, ...], kernel: tuple[int, ...], spec: Spec, adds: bool) -> dnnl.Program:
    c, engine = dnnl.get_library().c, dnnl.get_library().engine
    dtype = dnnl.BFLOAT16 if spec.half else dnnl.FLOAT32
    src, dst = dnnl.describe_image(x, dtype), dnnl.describe_image(compute_shape(x, kernel, spec), dtype)
    plain, free = dnnl.describe_kernel(kernel, dtype)
    bias = dnnl.describe_strided((kernel[3],), dnnl.FLOAT32, (1,))
    after = dnnl.create_handle(c.dnnl_post_ops_create)
    if adds:
        dnnl.check_status(c.dnnl_post_ops_append_sum(after, c_float(1), c_int(0), dtype))
    if spec.relu:
        dnnl.check_status(c.dnnl_post_ops_append_eltwise(after, _RELU, c_float(0), c_float(0)))
    attributes = dnnl.make_attributes()
    dnnl.check_status(c.dnnl_primitive_attr_set_post_ops(attributes, after))
    make = c.dnnl_convolution_forward_primitive_desc_create
    arrays = (src, free, bias, dst)
    description = dnnl.create_handle(
        make, engine, _INFERENCE, dnnl.DIRECT, *arrays, *make_geometry(spec), attributes
    )
    others = {dnnl.SRC: src, dnnl.BIAS: bias, dnnl.DST: dst}
    return dnnl.build_program(description, plain, others, (dnnl.WEIGHTS, dnnl.KERNEL))


def _execute(operands: list[Operand], result: Operand, numbers: tuple[int, ...]) -> None:
    """Run a convolution for XLA.

    Operands are the image, the kernel, the bias and, where something is added, the summand; the result then
    takes the summand's place.
    """
    x, kernel, bias, *_ = operands
    program = _prepare(x.shape, kernel.shape, Spec(*numbers), len(operands) == 4)
    program.run(kernel.address, x.address, bias.address, result.address)


@cache
def _register() -> None:
    register(TARGET, _execute)
