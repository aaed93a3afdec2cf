"""Convolutions on a CPU by oneDNN, where that library is installed (the ``onednn`` extra).

XLA's convolutions of float32 run at half of a CPU's rate, and it has no fast ones of bfloat16. oneDNN sums
products of either in float32, adds the bias and a further summand, and takes the positive part, all before
the result is rounded and written. XLA's programs call it on XLA's own buffers.
"""

from ctypes import c_float, c_int, c_void_p
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Float32

from fseg_jax.encoders.kernels import onednn_library as dnnl
from fseg_jax.encoders.kernels.foreign_call import Operand, register

TARGET = "fseg_jax_onednn_convolution"  # the name by which XLA calls it
_INFERENCE, _RELU, _WEIGHTS = 96, 0x20, 131  # constants of the library's C interface


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


class _Convolution(NamedTuple):
    """The library's two programs for one convolution: one lays out the kernel, one convolves."""

    implementation: str  # its name in the library
    layout: c_void_p  # the program that lays out the kernel
    layout_arguments: Any
    run: c_void_p  # the program that convolves
    run_arguments: Any
    memories: tuple[c_void_p, ...]  # that the arguments point to, in the order of ``_execute``
    kernel_size: int  # bytes of the kernel as it is laid out; they are used within a call only
    scratch_size: int  # bytes of scratch memory, likewise


@cache
def _prepare(x: tuple[int, ...], kernel: tuple[int, ...], spec: Spec, adds: bool) -> _Convolution:
    c, engine = dnnl.get_library().c, dnnl.get_library().engine
    rows, columns, channels_in, channels_out = kernel
    dtype = dnnl.BFLOAT16 if spec.half else dnnl.FLOAT32
    src, dst = dnnl.describe_image(x, dtype), dnnl.describe_image(compute_shape(x, kernel, spec), dtype)
    shape = (channels_out, channels_in, rows, columns)
    strides = (1, channels_out, columns * channels_in * channels_out, channels_in * channels_out)
    plain = dnnl.describe_strided(shape, dtype, strides)
    bias = dnnl.describe_strided((channels_out,), dnnl.FLOAT32, (1,))
    free = dnnl.create_handle(c.dnnl_memory_desc_create_with_tag, 4, dnnl.make_dims(*shape), dtype, dnnl.ANY)
    after = dnnl.create_handle(c.dnnl_post_ops_create)
    if adds:
        dnnl.check_status(c.dnnl_post_ops_append_sum(after, c_float(1), c_int(0), dtype))
    if spec.relu:
        dnnl.check_status(c.dnnl_post_ops_append_eltwise(after, _RELU, c_float(0), c_float(0)))
    attributes = dnnl.make_attributes()
    dnnl.check_status(c.dnnl_primitive_attr_set_post_ops(attributes, after))
    description = dnnl.create_handle(
        c.dnnl_convolution_forward_primitive_desc_create,
        engine,
        _INFERENCE,
        dnnl.DIRECT,
        src,
        free,
        bias,
        dst,
        dnnl.make_dims(spec.stride, spec.stride),
        dnnl.make_dims(0, 0),
        dnnl.make_dims(spec.top, spec.left),
        dnnl.make_dims(spec.bottom, spec.right),
        attributes,
    )
    laid_out, scratch = (
        dnnl.query_layout(description, _WEIGHTS),
        dnnl.query_layout(description, dnnl.SCRATCHPAD),
    )
    layout = dnnl.create_handle(c.dnnl_reorder_primitive_desc_create, plain, engine, laid_out, engine, None)
    descriptions = (src, plain, laid_out, bias, dst, scratch)
    memories = tuple(dnnl.create_handle(c.dnnl_memory_create, place, engine, None) for place in descriptions)
    x_memory, kernel_memory, laid_out_memory, bias_memory, result_memory, scratch_memory = memories
    layout_arguments = {dnnl.SRC: kernel_memory, dnnl.DST: laid_out_memory}
    run_arguments = {
        dnnl.SRC: x_memory,
        dnnl.KERNEL: laid_out_memory,
        dnnl.BIAS: bias_memory,
        dnnl.DST: result_memory,
        dnnl.SCRATCH: scratch_memory,
    }
    return _Convolution(
        dnnl.query_name(description),
        dnnl.create_handle(c.dnnl_primitive_create, layout),
        dnnl.make_arguments(layout_arguments),
        dnnl.create_handle(c.dnnl_primitive_create, description),
        dnnl.make_arguments(run_arguments),
        memories,
        c.dnnl_memory_desc_get_size(laid_out),
        c.dnnl_memory_desc_get_size(scratch),
    )


def _execute(operands: list[Operand], result: Operand, numbers: tuple[int, ...]) -> None:
    """Run a convolution for XLA.

    Operands are the image, the kernel, the bias and, where something is added, the summand; the result then
    takes the summand's place.
    """
    x, kernel, bias, *_ = operands
    convolution = _prepare(x.shape, kernel.shape, Spec(*numbers), len(operands) == 4)
    with dnnl.RUN_LOCK:
        laid_out = dnnl.reserve_memory("kernel", convolution.kernel_size)
        scratch = dnnl.reserve_memory("scratch", convolution.scratch_size)
        addresses = (x.address, kernel.address, laid_out, bias.address, result.address, scratch)
        for memory, address in zip(convolution.memories, addresses, strict=True):
            dnnl.check_status(dnnl.get_library().c.dnnl_memory_set_data_handle(memory, c_void_p(address)))
        dnnl.run_program(convolution.layout, convolution.layout_arguments)
        dnnl.run_program(convolution.run, convolution.run_arguments)


@cache
def _register() -> None:
    register(TARGET, _execute)
