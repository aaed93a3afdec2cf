"""Convolutions on a CPU by oneDNN, where that library is installed (the ``onednn`` extra).

XLA's convolutions of float32 run at half of a CPU's rate there, and of bfloat16 it has none. oneDNN
multiplies either into float32 sums, then adds the bias, and what else is to be added, and takes the positive
part, before anything is rounded and written. It is called from XLA's program on XLA's own buffers, through
the library's C interface (version 3).
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

PACKAGE = "onednn-cpu-gomp"  # of the wheels, the one that needs nothing beside it
TARGET = "fseg_jax_onednn_convolution"
ALIGNMENT = 64

# The C interface's numbers, which no version 3 changes.
_CPU, _INFERENCE, _DIRECT, _RELU, _BFLOAT16, _FLOAT32, _ANY, _IN_ORDER, _USER = 1, 96, 1, 0x20, 2, 3, 1, 1, 1
_IMPLEMENTATION, _WEIGHTS, _SCRATCHPAD = 8, 131, 136
_SRC, _DST, _KERNEL, _BIAS, _SCRATCH = 1, 17, 33, 41, 80
_OPENMP, _TBB = 2, 4


class Spec(NamedTuple):
    """What a convolution is beside its shapes: the stride, the rows and columns of zeros around the image,
    whether what is below zero is set to it, and whether image, kernel and result are bfloat16 or float32.
    """

    stride: int
    top: int
    bottom: int
    left: int
    right: int
    relu: int
    half: int


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
    """The library, its engine and the queue that its work goes through."""

    c: ctypes.CDLL
    engine: c_void_p
    stream: c_void_p
    version: str


def load_library() -> Library | None:
    """oneDNN, where it is installed: from its wheel, a conda environment or the system."""
    with _loading:
        return _loaded()


_loading = threading.Lock()


@cache
def _loaded() -> Library | None:
    for path in _places():
        try:
            c = _opened(path)
            c.dnnl_version.restype = POINTER(_Version)
            found = c.dnnl_version().contents
        except (OSError, AttributeError):
            continue
        if found.major != 3 or found.threads not in (_OPENMP, _TBB):
            continue
        c.dnnl_memory_desc_get_size.restype = c_size_t
        c.dnnl_primitive_desc_query_md.restype = c_void_p
        engine = _made(c.dnnl_engine_create, _CPU, c_size_t(0))
        stream = _made(c.dnnl_stream_create, engine, _IN_ORDER)
        register(TARGET, _execute)
        return Library(c, engine, stream, f"{found.major}.{found.minor}.{found.patch}")
    return None


def _opened(path: str) -> ctypes.CDLL:
    """The library, told that its threads sleep from one convolution to the next: others have work then. A
    slide takes a seventh less.
    """
    said = os.environ.get("OMP_WAIT_POLICY")
    os.environ["OMP_WAIT_POLICY"] = said or "passive"
    try:
        return ctypes.CDLL(path)
    finally:
        if said is None:
            del os.environ["OMP_WAIT_POLICY"]


def _places() -> Iterator[str]:
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
    """Whether the library is here, and has a kernel of its own for this processor and these shapes."""
    if load_library() is None:
        return False
    try:
        return not _convolution(x, kernel, spec, adds).implementation.startswith("ref")
    except _UnsupportedError:
        return False


def convolve(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "y x i o"],
    bias: Float32[Array, " o"],
    add: Float[Array, "b p q o"] | None,
    spec: Spec,
) -> Float[Array, "b p q o"]:
    """``x`` convolved with ``kernel``, plus ``bias`` and ``add``, its positive part where the spec says so;
    on a CPU, without a derivative, and only what ``supports`` knows.
    """
    shape = _result(x.shape, kernel.shape, spec)
    call = jax.ffi.ffi_call(
        TARGET,
        jax.ShapeDtypeStruct(shape, kernel.dtype),
        input_output_aliases={} if add is None else {3: 0},
        vmap_method="sequential",
    )
    operands = (x, kernel, bias) if add is None else (x, kernel, bias, add)
    return call(*operands, spec=np.asarray(spec, np.int64))


def _result(x: tuple[int, ...], kernel: tuple[int, ...], spec: Spec) -> tuple[int, int, int, int]:
    rows = (x[1] + spec.top + spec.bottom - kernel[0]) // spec.stride + 1
    columns = (x[2] + spec.left + spec.right - kernel[1]) // spec.stride + 1
    return x[0], rows, columns, kernel[3]


class _UnsupportedError(RuntimeError):
    pass


class _Convolution(NamedTuple):
    """The library's programs for one convolution, the one that lays out the kernel and the one that does it,
    with their arguments; ``memories`` are what those point to, in the order of ``_execute``, and ``arranged``
    and ``scratch`` the sizes of what lives no longer than a call.
    """

    implementation: str
    arrange: c_void_p
    arranging: Any
    run: c_void_p
    running: Any
    memories: tuple[c_void_p, ...]
    arranged: int
    scratch: int


@cache
def _convolution(x: tuple[int, ...], kernel: tuple[int, ...], spec: Spec, adds: bool) -> _Convolution:
    c, engine = _library().c, _library().engine
    rows, columns, channels_in, channels_out = kernel
    dtype = _BFLOAT16 if spec.half else _FLOAT32
    src, dst = _image(x, dtype), _image(_result(x, kernel, spec), dtype)
    shape = (channels_out, channels_in, rows, columns)
    steps = (1, channels_out, columns * channels_in * channels_out, channels_in * channels_out)
    plain = _strided(shape, dtype, steps)
    bias = _strided((channels_out,), _FLOAT32, (1,))
    free = _made(c.dnnl_memory_desc_create_with_tag, 4, _dims(*shape), dtype, _ANY)
    after = _made(c.dnnl_post_ops_create)
    if adds:
        _check(c.dnnl_post_ops_append_sum(after, c_float(1), c_int(0), dtype))
    if spec.relu:
        _check(c.dnnl_post_ops_append_eltwise(after, _RELU, c_float(0), c_float(0)))
    attributes = _made(c.dnnl_primitive_attr_create)
    _check(c.dnnl_primitive_attr_set_post_ops(attributes, after))
    # Scratch memory is ours: the library's own belongs to the thread that made the program.
    _check(c.dnnl_primitive_attr_set_scratchpad_mode(attributes, _USER))
    described = _made(
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
    _check(c.dnnl_primitive_desc_query(described, _IMPLEMENTATION, 0, byref(name)))
    arranged = c_void_p(c.dnnl_primitive_desc_query_md(described, _WEIGHTS, 0))
    scratch = c_void_p(c.dnnl_primitive_desc_query_md(described, _SCRATCHPAD, 0))
    arrange = _made(c.dnnl_reorder_primitive_desc_create, plain, engine, arranged, engine, None)
    layouts = (src, plain, arranged, bias, dst, scratch)
    memories = tuple(_made(c.dnnl_memory_create, layout, engine, None) for layout in layouts)
    image, given, laid_out, offset, result, room = memories
    arranging = {_SRC: given, _DST: laid_out}
    running = {_SRC: image, _KERNEL: laid_out, _BIAS: offset, _DST: result, _SCRATCH: room}
    return _Convolution(
        (name.value or b"").decode(),
        _made(c.dnnl_primitive_create, arrange),
        (_Argument * len(arranging))(*(_Argument(*each) for each in arranging.items())),
        _made(c.dnnl_primitive_create, described),
        (_Argument * len(running))(*(_Argument(*each) for each in running.items())),
        memories,
        c.dnnl_memory_desc_get_size(arranged),
        c.dnnl_memory_desc_get_size(scratch),
    )


# One convolution at a time has all of the library's threads: those of two would wait for each other.
_turn = threading.Lock()
_rooms: dict[str, np.ndarray] = {}  # for what lives no longer than a call


def _execute(operands: list[Operand], result: Operand, numbers: tuple[int, ...]) -> None:
    """What XLA calls: operands are the image, the kernel, the bias and, where something is added, that, which
    the result then lies on.
    """
    x, kernel, bias, *_ = operands
    made = _convolution(x.shape, kernel.shape, Spec(*numbers), len(operands) == 4)
    with _turn:
        laid_out, scratch = _room("kernel", made.arranged), _room("scratch", made.scratch)
        places = (x.address, kernel.address, laid_out, bias.address, result.address, scratch)
        for memory, place in zip(made.memories, places, strict=True):
            _check(_library().c.dnnl_memory_set_data_handle(memory, c_void_p(place)))
        _run(made.arrange, made.arranging)
        _run(made.run, made.running)


def _room(name: str, size: int) -> int:
    """The address of so many bytes that are only used within a call."""
    if name not in _rooms or _rooms[name].size < size + ALIGNMENT:
        _rooms[name] = np.empty(size + ALIGNMENT, np.uint8)
    address = _rooms[name].ctypes.data
    return address + -address % ALIGNMENT


def _run(program: c_void_p, arguments: Any) -> None:
    c, _, stream, _ = _library()
    _check(c.dnnl_primitive_execute(program, stream, len(arguments), arguments))
    _check(c.dnnl_stream_wait(stream))


def _library() -> Library:
    found = load_library()
    assert found is not None  # `supports` has been asked
    return found


def _image(shape: tuple[int, ...], dtype: int) -> c_void_p:
    """(B, H, W, C) as it lies in memory, which the library calls (B, C, H, W) with channels last."""
    b, h, w, c = shape
    return _strided((b, c, h, w), dtype, (h * w * c, 1, w * c, c))


def _strided(shape: tuple[int, ...], dtype: int, strides: tuple[int, ...]) -> c_void_p:
    make = _library().c.dnnl_memory_desc_create_with_strides
    return _made(make, len(shape), _dims(*shape), dtype, _dims(*strides))


def _dims(*sizes: int) -> Any:
    return (c_int64 * 12)(*sizes)


def _made(function: Any, *arguments: Any) -> c_void_p:
    handle = c_void_p()
    _check(function(byref(handle), *arguments))
    return handle


def _check(status: int) -> None:
    if status:
        raise _UnsupportedError(f"oneDNN's status {status}")
