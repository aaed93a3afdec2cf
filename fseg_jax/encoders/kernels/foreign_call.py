"""Python functions that XLA's CPU programs call, through XLA's foreign function interface, version 0.1.

The structs of its call frame are declared with ctypes. XLA keeps their layout compatible
(``xla/ffi/api/c_api.h``): a later version only adds fields at the end. A registered function gets the
addresses and shapes of its operands and its result, and its one attribute, a vector of integers; nothing is
copied. An exception that it raises becomes the error of the program that called it.
"""

import ctypes
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_void_p
from typing import Any, NamedTuple

import jax


class Operand(NamedTuple):
    """An array of a call."""

    address: int  # in memory
    shape: tuple[int, ...]


Function = Callable[[list[Operand], Operand, tuple[int, ...]], None]

_METADATA, _EXECUTE, _INTERNAL = 1, 3, 13


def _struct(*fields: tuple[str, type]) -> type[ctypes.Structure]:
    """Declare a struct of the interface; its size and its extensions come first."""
    head = [("struct_size", c_size_t), ("extension", c_void_p)]
    return type("Struct", (ctypes.Structure,), {"_fields_": [*head, *fields]})


_Buffer = _struct(("dtype", c_int), ("data", c_void_p), ("rank", c_int64), ("dims", POINTER(c_int64)))
_Buffers = _struct(("size", c_int64), ("types", c_void_p), ("each", POINTER(POINTER(_Buffer))))


class _Integers(ctypes.Structure):
    _fields_ = [("dtype", c_int), ("size", c_size_t), ("data", POINTER(c_int64))]


_Attributes = _struct(
    ("size", c_int64), ("types", c_void_p), ("names", c_void_p), ("each", POINTER(POINTER(_Integers)))
)
_Version = _struct(("major", c_int), ("minor", c_int))
_Metadata = type("Struct", (ctypes.Structure,), {"_fields_": [("size", c_size_t), ("version", _Version)]})
_Error = _struct(("message", c_char_p), ("code", c_int))
_Raise = ctypes.CFUNCTYPE(c_void_p, POINTER(_Error))
_Interface = _struct(("version", _Version), ("internal", c_void_p), ("error", _Raise))


class _Extension(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t),
        ("type", c_int),
        ("next", c_void_p),
        ("metadata", POINTER(_Metadata)),
    ]


class _Frame(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t),
        ("extension", POINTER(_Extension)),
        ("interface", POINTER(_Interface)),
        ("context", c_void_p),
        ("stage", c_int),
        ("operands", _Buffers),
        ("results", _Buffers),
        ("attributes", _Attributes),
    ]


_Handler = ctypes.CFUNCTYPE(c_void_p, POINTER(_Frame))
_registered: list[Any] = []  # kept while the process lives: XLA has only the addresses


def register(name: str, function: Function) -> None:
    """Register a function with XLA's CPU programs, for ``jax.ffi.ffi_call(name, …)``.

    ``function(operands, result, numbers)`` writes the result. It is called from any thread, and from several
    at once.
    """

    def handler(pointer: Any) -> int | None:
        frame = pointer.contents
        if frame.extension and frame.extension.contents.type == _METADATA:
            version = frame.extension.contents.metadata.contents.version
            version.major, version.minor = 0, 1
            return None
        if frame.stage != _EXECUTE:
            return None
        try:
            operands = [_operand(frame.operands, index) for index in range(frame.operands.size)]
            numbers = frame.attributes.each[0].contents
            function(operands, _operand(frame.results, 0), tuple(numbers.data[: numbers.size]))
        except Exception as exception:
            error = _Error(ctypes.sizeof(_Error), None, f"{name}: {exception}".encode(), _INTERNAL)
            address: int = frame.interface.contents.error(ctypes.byref(error))
            return address
        return None

    _registered.append(_Handler(handler))
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(_registered[-1]), platform="cpu")


def _operand(buffers: Any, index: int) -> Operand:
    buffer = buffers.each[index].contents
    return Operand(buffer.data, tuple(buffer.dims[: buffer.rank]))
