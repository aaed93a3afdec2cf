"""The library oneDNN: how it is loaded, and how its programs are described, made and run.

Its C interface (version 3) is called with ctypes, on XLA's own buffers.
"""

import ctypes
import ctypes.util
import os
import sys
import threading
from collections.abc import Iterator
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PACKAGE = "onednn-cpu-gomp"  # the only one of the wheels that needs no other package
ALIGNMENT = 64  # bytes

# Constants of the C interface, the same in all versions 3.
DIRECT, BFLOAT16, FLOAT32, ANY = 1, 2, 3, 1  # an algorithm, two dtypes, a layout of the library's choice
SRC, DST, KERNEL, BIAS, SCRATCH = 1, 17, 33, 41, 80  # arguments of a program
WEIGHTS, SCRATCHPAD = 131, 136  # layouts of the kernel and of the scratch memory, asked of a program
_CPU, _IN_ORDER, _USER, _IMPLEMENTATION = 1, 1, 1, 8
_OPENMP, _TBB = 2, 4


class UnsupportedError(RuntimeError):
    """The library has no program of this description."""


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
        engine = create_handle(c.dnnl_engine_create, _CPU, c_size_t(0))
        stream = create_handle(c.dnnl_stream_create, engine, _IN_ORDER)
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


# Convolutions run one at a time, each on all of the library's threads: two at once would wait for each other.
RUN_LOCK = threading.Lock()
_buffers: dict[str, np.ndarray] = {}  # memory that is used within a call only


class Program(NamedTuple):
    """A convolution, or a gradient of one, and what lays out its kernel.

    Attributes:
        implementation: Its name in the library.
        steps: The library's programs with their arguments, in the order that they run in.
        memories: The memories that the arguments point to; those of the kernel as it is laid out, and of the
            scratch memory, come last.
        kernel_size: Bytes of the kernel as it is laid out; they are used within a call only.
        scratch_size: Bytes of scratch memory, likewise.
    """

    implementation: str
    steps: tuple[tuple[c_void_p, Any], ...]
    memories: tuple[c_void_p, ...]
    kernel_size: int
    scratch_size: int

    def run(self, *addresses: int) -> None:
        """Run the steps on the memories at addresses, in the order that ``build_program`` got them in."""
        with RUN_LOCK:
            kernel = reserve_memory("kernel", self.kernel_size)
            scratch = reserve_memory("scratch", self.scratch_size)
            for memory, address in zip(self.memories, (*addresses, kernel, scratch), strict=True):
                check_status(get_library().c.dnnl_memory_set_data_handle(memory, c_void_p(address)))
            for program, arguments in self.steps:
                run_program(program, arguments)


def build_program(
    description: c_void_p,
    plain: c_void_p,
    others: dict[int, c_void_p],
    kernel: tuple[int, int],
    *,
    makes_kernel: bool = False,
) -> Program:
    """Build a program of a description.

    Args:
        description: The library's description of it.
        plain: How its caller lays out the kernel.
        others: How its caller lays out its other arrays, by the library's numbers for them.
        kernel: The library's numbers for the kernel: its layout, asked of the program, and the argument.
        makes_kernel: Whether the kernel is the program's result.
    """
    c, engine = get_library().c, get_library().engine
    what, argument = kernel
    laid_out, scratch = query_layout(description, what), query_layout(description, SCRATCHPAD)
    plain_memory, *memories, laid_out_memory, scratch_memory = (
        create_handle(c.dnnl_memory_create, place, engine, None)
        for place in (plain, *others.values(), laid_out, scratch)
    )
    before, after = (laid_out, plain) if makes_kernel else (plain, laid_out)
    reorder = create_handle(c.dnnl_reorder_primitive_desc_create, before, engine, after, engine, None)
    ends = (laid_out_memory, plain_memory) if makes_kernel else (plain_memory, laid_out_memory)
    arguments = dict(zip(others, memories, strict=True))
    arguments |= {argument: laid_out_memory, SCRATCH: scratch_memory}
    steps = (
        (
            create_handle(c.dnnl_primitive_create, reorder),
            make_arguments(dict(zip((SRC, DST), ends, strict=True))),
        ),
        (create_handle(c.dnnl_primitive_create, description), make_arguments(arguments)),
    )
    return Program(
        query_name(description),
        steps[::-1] if makes_kernel else steps,
        (plain_memory, *memories, laid_out_memory, scratch_memory),
        c.dnnl_memory_desc_get_size(laid_out),
        c.dnnl_memory_desc_get_size(scratch),
    )


def reserve_memory(name: str, size: int) -> int:
    """Reserve memory that is used within a call only, and return its address."""
    if name not in _buffers or _buffers[name].size < size + ALIGNMENT:
        _buffers[name] = np.empty(size + ALIGNMENT, np.uint8)
    address = _buffers[name].ctypes.data
    return address + -address % ALIGNMENT


def run_program(program: c_void_p, arguments: Any) -> None:
    """Run a program, and wait for its end."""
    c, _, stream, _ = get_library()
    check_status(c.dnnl_primitive_execute(program, stream, len(arguments), arguments))
    check_status(c.dnnl_stream_wait(stream))


def get_library() -> Library:
    """Return the library where it is known to be installed."""
    library = load_library()
    assert library is not None  # `supports` has been asked
    return library


def describe_image(shape: tuple[int, ...], dtype: int) -> c_void_p:
    """Describe (B, H, W, C) in memory, which the library calls (B, C, H, W) with channels last."""
    b, h, w, c = shape
    return describe_strided((b, c, h, w), dtype, (h * w * c, 1, w * c, c))


def describe_strided(shape: tuple[int, ...], dtype: int, strides: tuple[int, ...]) -> c_void_p:
    """Describe an array in memory by its shape and strides, in numbers of elements."""
    make = get_library().c.dnnl_memory_desc_create_with_strides
    return create_handle(make, len(shape), make_dims(*shape), dtype, make_dims(*strides))


def describe_kernel(kernel: tuple[int, ...], dtype: int) -> tuple[c_void_p, c_void_p]:
    """Describe a kernel (rows, columns, in, out) as it is in memory, and as the library likes it best."""
    rows, columns, channels_in, channels_out = kernel
    shape = (channels_out, channels_in, rows, columns)
    strides = (1, channels_out, columns * channels_in * channels_out, channels_in * channels_out)
    make = get_library().c.dnnl_memory_desc_create_with_tag
    free = create_handle(make, len(shape), make_dims(*shape), dtype, ANY)
    return describe_strided(shape, dtype, strides), free


def make_attributes() -> c_void_p:
    """Make the attributes of a program that takes its scratch memory from its caller.

    The library's own scratch memory would belong to the thread that made the program.
    """
    c = get_library().c
    attributes = create_handle(c.dnnl_primitive_attr_create)
    check_status(c.dnnl_primitive_attr_set_scratchpad_mode(attributes, _USER))
    return attributes


def query_name(description: c_void_p) -> str:
    """Return the library's name of the implementation that it chose for a program."""
    name = c_char_p()
    check_status(get_library().c.dnnl_primitive_desc_query(description, _IMPLEMENTATION, 0, byref(name)))
    return (name.value or b"").decode()


def query_layout(description: c_void_p, what: int) -> c_void_p:
    """Return how a program lays out one of its arrays in memory."""
    return c_void_p(get_library().c.dnnl_primitive_desc_query_md(description, what, 0))


def make_arguments(memories: dict[int, c_void_p]) -> Any:
    """Make the arguments of a program: its memories by the library's numbers for them."""
    return (_Argument * len(memories))(*(_Argument(name, memory) for name, memory in memories.items()))


def make_dims(*sizes: int) -> Any:
    """Make the library's array of sizes."""
    return (c_int64 * 12)(*sizes)


def create_handle(function: Any, *arguments: Any) -> c_void_p:
    """Call a function that creates something, and return the handle of it."""
    handle = c_void_p()
    check_status(function(byref(handle), *arguments))
    return handle


def check_status(status: int) -> None:
    """Raise ``UnsupportedError`` unless a call succeeded."""
    if status:
        raise UnsupportedError(f"oneDNN's status {status}")
