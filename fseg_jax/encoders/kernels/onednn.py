"""Convolutions on a CPU by oneDNN, where that library is installed (the ``onednn`` extra).

XLA's convolutions of float32 run at half of a CPU's rate, and it has no fast ones of bfloat16. oneDNN sums
products of either in float32, adds the bias and a further summand, and takes the positive part, all before
the result is rounded and written. XLA's programs call it on XLA's own buffers, through the library's C
interface (version 3).
"""

import ctypes
import ctypes.util
import os
import sys
import threading
from collections.abc import Iterator
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Float32

from fseg_jax.encoders.kernels.foreign_call import Operand, register

PACKAGE = "onednn-cpu-gomp"  # the only one of the wheels that needs no other package
TARGET = "fseg_jax_onednn_convolution"  # the name by which XLA calls it
ALIGNMENT = 64  # bytes

# Constants of the C interface, the same in all versions 3.
_CPU, _INFERENCE, _DIRECT, _RELU, _BFLOAT16, _FLOAT32, _ANY, _IN_ORDER, _USER = 1, 96, 1, 0x20, 2, 3, 1, 1, 1
_IMPLEMENTATION, _WEIGHTS, _SCRATCHPAD = 8, 131, 136
_SRC, _DST, _KERNEL, _BIAS, _SCRATCH = 1, 17, 33, 41, 80
_OPENMP, _TBB = 2, 4


class Spec(NamedTuple):
    """All that describes a convolution beside its shapes, in numbers that XLA passes on."""

    stride: int
    top: int  # rows of zeros above the image
    bottom: int  # rows of zeros below it
    left: int  # columns of zeros left of it
    right: int  # columns of zeros right of it
    relu: int  # 1 where negative values are set to zero
    half: int  # 1 where image, kernel and result are bfloat16, 0 where they are float32


class _Version(ctypes.Structure):
    _fields_ = [
        ("major", c_int),
        ("minor", c_int),
        ("patch", c_int),
        ("hash", c_char_p),
        ("threads", ctypes.c_uint),
        ("gpu", ctypes.c_uint),
    ]


class _Argument(ctypes.Structure):
    _fields_ = [("name", c_int), ("memory", c_void_p)]


class Library(NamedTuple):
    """The loaded library."""

    c: ctypes.CDLL
    engine: c_void_p
    stream: c_void_p  # the queue of its work
    version: str


def load_library() -> Library | None:
    """Load oneDNN from its wheel, a conda environment or the system; None where it is not installed."""
    with _load_lock:
        return _load()


_load_lock = threading.Lock()


@cache
def _load() -> Library | None:
    for path in _list_paths():
        try:
            c = _open(path)
            c.dnnl_version.restype = POINTER(_Version)
            version = c.dnnl_version().contents
        except (OSError, AttributeError):
            continue
        if version.major != 3 or version.threads not in (_OPENMP, _TBB):
            continue
        c.dnnl_memory_desc_get_size.restype = c_size_t
        c.dnnl_primitive_desc_query_md.restype = c_void_p
        engine = _create(c.dnnl_engine_create, _CPU, c_size_t(0))
        stream = _create(c.dnnl_stream_create, engine, _IN_ORDER)
        register(TARGET, _execute)
        return Library(c, engine, stream, f"{version.major}.{version.minor}.{version.patch}")
    return None


def _open(path: str) -> ctypes.CDLL:
    """Open the library, and let its threads sleep between convolutions, when other threads have work.

    A slide takes a seventh less time.
    """
    policy = os.environ.get("OMP_WAIT_POLICY")
    os.environ["OMP_WAIT_POLICY"] = policy or "passive"
    try:
        return ctypes.CDLL(path)
    finally:
        if policy is None:
            del os.environ["OMP_WAIT_POLICY"]


def _list_paths() -> Iterator[str]:
    try:
        names = [file for file in files(PACKAGE) or () if file.name == "libdnnl.so.3"]
    except PackageNotFoundError:
        names = []
    yield from (str(name.locate()) for name in names)
    conda = Path(sys.prefix, "lib", "libdnnl.so.3")
    if conda.exists():
        yield str(conda)
    system = ctypes.util.find_library("dnnl")
    if system is not None:
        yield system


def supports(x: tuple[int, ...], kernel: tuple[int, ...], spec: Spec, adds: bool) -> bool:
    """Whether the library is installed, and has an optimised kernel for this processor and these shapes."""
    if load_library() is None:
        return False
    try:
        return not _prepare(x, kernel, spec, adds).implementation.startswith("ref")
    except _UnsupportedError:
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
    shape = _result_shape(x.shape, kernel.shape, spec)
    call = jax.ffi.ffi_call(
        TARGET,
        jax.ShapeDtypeStruct(shape, kernel.dtype),
        input_output_aliases={} if add is None else {3: 0},
        vmap_method="sequential",
    )
    operands = (x, kernel, bias) if add is None else (x, kernel, bias, add)
    return call(*operands, spec=np.asarray(spec, np.int64))


def _result_shape(x: tuple[int, ...], kernel: tuple[int, ...], spec: Spec) -> tuple[int, int, int, int]:
    rows = (x[1] + spec.top + spec.bottom - kernel[0]) // spec.stride + 1
    columns = (x[2] + spec.left + spec.right - kernel[1]) // spec.stride + 1
    return x[0], rows, columns, kernel[3]


class _UnsupportedError(RuntimeError):
    pass


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
    c, engine = _library().c, _library().engine
    rows, columns, channels_in, channels_out = kernel
    dtype = _BFLOAT16 if spec.half else _FLOAT32
    src, dst = _describe_image(x, dtype), _describe_image(_result_shape(x, kernel, spec), dtype)
    shape = (channels_out, channels_in, rows, columns)
    strides = (1, channels_out, columns * channels_in * channels_out, channels_in * channels_out)
    plain = _describe_strided(shape, dtype, strides)
    bias = _describe_strided((channels_out,), _FLOAT32, (1,))
    free = _create(c.dnnl_memory_desc_create_with_tag, 4, _dims(*shape), dtype, _ANY)
    after = _create(c.dnnl_post_ops_create)
    if adds:
        _check(c.dnnl_post_ops_append_sum(after, c_float(1), c_int(0), dtype))
    if spec.relu:
        _check(c.dnnl_post_ops_append_eltwise(after, _RELU, c_float(0), c_float(0)))
    attributes = _create(c.dnnl_primitive_attr_create)
    _check(c.dnnl_primitive_attr_set_post_ops(attributes, after))
    # The scratch memory is ours: the library's own would belong to the thread that made the program.
    _check(c.dnnl_primitive_attr_set_scratchpad_mode(attributes, _USER))
    description = _create(
        c.dnnl_convolution_forward_primitive_desc_create,
        engine,
        _INFERENCE,
        _DIRECT,
        src,
        free,
        bias,
        dst,
        _dims(spec.stride, spec.stride),
        _dims(0, 0),
        _dims(spec.top, spec.left),
        _dims(spec.bottom, spec.right),
        attributes,
    )
    name = c_char_p()
    _check(c.dnnl_primitive_desc_query(description, _IMPLEMENTATION, 0, byref(name)))
    laid_out = c_void_p(c.dnnl_primitive_desc_query_md(description, _WEIGHTS, 0))
    scratch = c_void_p(c.dnnl_primitive_desc_query_md(description, _SCRATCHPAD, 0))
    layout = _create(c.dnnl_reorder_primitive_desc_create, plain, engine, laid_out, engine, None)
    descriptions = (src, plain, laid_out, bias, dst, scratch)
    memories = tuple(_create(c.dnnl_memory_create, place, engine, None) for place in descriptions)
    x_memory, kernel_memory, laid_out_memory, bias_memory, result_memory, scratch_memory = memories
    layout_arguments = {_SRC: kernel_memory, _DST: laid_out_memory}
    run_arguments = {
        _SRC: x_memory,
        _KERNEL: laid_out_memory,
        _BIAS: bias_memory,
        _DST: result_memory,
        _SCRATCH: scratch_memory,
    }
    return _Convolution(
        (name.value or b"").decode(),
        _create(c.dnnl_primitive_create, layout),
        _make_arguments(layout_arguments),
        _create(c.dnnl_primitive_create, description),
        _make_arguments(run_arguments),
        memories,
        c.dnnl_memory_desc_get_size(laid_out),
        c.dnnl_memory_desc_get_size(scratch),
    )


# Convolutions run one at a time, each on all of the library's threads: two at once would wait for each other.
_run_lock = threading.Lock()
_buffers: dict[str, np.ndarray] = {}  # memory that is used within a call only


def _execute(operands: list[Operand], result: Operand, numbers: tuple[int, ...]) -> None:
    """Run a convolution for XLA.

    Operands are the image, the kernel, the bias and, where something is added, the summand; the result then
    takes the summand's place.
    """
    x, kernel, bias, *_ = operands
    convolution = _prepare(x.shape, kernel.shape, Spec(*numbers), len(operands) == 4)
    with _run_lock:
        laid_out = _reserve("kernel", convolution.kernel_size)
        scratch = _reserve("scratch", convolution.scratch_size)
        addresses = (x.address, kernel.address, laid_out, bias.address, result.address, scratch)
        for memory, address in zip(convolution.memories, addresses, strict=True):
            _check(_library().c.dnnl_memory_set_data_handle(memory, c_void_p(address)))
        _run(convolution.layout, convolution.layout_arguments)
        _run(convolution.run, convolution.run_arguments)


def _reserve(name: str, size: int) -> int:
    """Reserve memory that is used within a call only, and return its address."""
    if name not in _buffers or _buffers[name].size < size + ALIGNMENT:
        _buffers[name] = np.empty(size + ALIGNMENT, np.uint8)
    address = _buffers[name].ctypes.data
    return address + -address % ALIGNMENT


def _run(program: c_void_p, arguments: Any) -> None:
    c, _, stream, _ = _library()
    _check(c.dnnl_primitive_execute(program, stream, len(arguments), arguments))
    _check(c.dnnl_stream_wait(stream))


def _library() -> Library:
    library = load_library()
    assert library is not None  # `supports` has been asked
    return library


def _describe_image(shape: tuple[int, ...], dtype: int) -> c_void_p:
    """Describe (B, H, W, C) in memory, which the library calls (B, C, H, W) with channels last."""
    b, h, w, c = shape
    return _describe_strided((b, c, h, w), dtype, (h * w * c, 1, w * c, c))


def _describe_strided(shape: tuple[int, ...], dtype: int, strides: tuple[int, ...]) -> c_void_p:
    make = _library().c.dnnl_memory_desc_create_with_strides
    return _create(make, len(shape), _dims(*shape), dtype, _dims(*strides))


def _make_arguments(memories: dict[int, c_void_p]) -> Any:
    return (_Argument * len(memories))(*(_Argument(name, memory) for name, memory in memories.items()))


def _dims(*sizes: int) -> Any:
    return (c_int64 * 12)(*sizes)


def _create(function: Any, *arguments: Any) -> c_void_p:
    handle = c_void_p()
    _check(function(byref(handle), *arguments))
    return handle


def _check(status: int) -> None:
    if status:
        raise _UnsupportedError(f"oneDNN's status {status}")
