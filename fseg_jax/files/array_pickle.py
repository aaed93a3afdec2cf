"""Read arrays from a pickle as joblib writes it, without running anything that it names."""

import io
import pickle
import re
import struct
from math import prod
from typing import Any, ClassVar

import numpy as np

from fseg_jax.errors import InputError
from fseg_jax.files.restricted_pickle import BoundedStream, RestrictedUnpickler


def unpickle_arrays(data: bytes) -> Any:
    """Read a pickle of numpy arrays and plain containers.

    Raises:
        InputError: It names anything else; nothing was run. A damaged pickle can raise almost anything.
    """
    return _ArrayUnpickler(BoundedStream(io.BytesIO(data))).load()


class _ArrayWrapper:
    """A stand-in for ``joblib.numpy_pickle.NumpyArrayWrapper``: the array's bytes follow it in the stream."""


class _ArrayType:
    """A stand-in for ``numpy.ndarray``, which a file may name but not call: a call would allocate."""

    def __new__(cls, *_: Any) -> "_ArrayType":
        raise InputError("makes an array of its own: refused, nothing was run")


class _DtypeState:
    """A stand-in for ``numpy.dtype``: the kind and size of the numbers, and their byte order."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1] if state[1] in ("<", ">") else "="

    def make_dtype(self) -> np.dtype[Any]:
        """Make the dtype. Raises ``InputError`` where it is not one of numbers."""
        if not (isinstance(self.name, str) and re.fullmatch("[biuf][1248]", self.name)):
            raise InputError("holds an array that is not of numbers: refused, nothing was run")
        return np.dtype(self.order + self.name)


class _ArrayUnpickler(RestrictedUnpickler):
    """An unpickler that constructs numpy arrays and plain containers, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        """Look up a name of the pickle. Raises ``InputError`` for all but numpy's arrays and dtypes."""
        if (module, name) == ("joblib.numpy_pickle", "NumpyArrayWrapper"):
            return _ArrayWrapper
        if module == "numpy" and name in ("ndarray", "dtype"):
            return _ArrayType if name == "ndarray" else _DtypeState
        raise InputError(
            f"names {module}.{name}, which a file of centres has no need of: refused, nothing was run"
        )

    def load_build(self) -> None:
        """Run the opcode BUILD; an array's wrapper is replaced by the array."""
        super().load_build()  # type: ignore[misc]
        if isinstance(self.stack[-1], _ArrayWrapper):  # type: ignore[attr-defined]
            self.stack[-1] = self._read_array(vars(self.stack[-1]))  # type: ignore[attr-defined]

    def _read_array(self, wrapper: dict[str, Any]) -> np.ndarray:
        """Read the bytes of an array from the stream."""
        dtype, shape = wrapper["dtype"].make_dtype(), tuple(wrapper["shape"])
        if not all(type(n) is int and n >= 0 for n in shape):
            raise InputError("holds an array of no shape: refused, nothing was run")
        read = self._file_read  # type: ignore[attr-defined]
        if wrapper.get("numpy_array_alignment_bytes") is not None:
            (padding,) = struct.unpack("B", read(1))
            read(padding)
        size = dtype.itemsize * prod(shape)
        if size > self.stream.count_left():
            raise InputError("the file is truncated")
        data = read(size)
        if wrapper.get("order") == "F":
            return np.frombuffer(data, dtype).reshape(shape[::-1]).T
        return np.frombuffer(data, dtype).reshape(shape)

    dispatch: ClassVar[dict[int, Any]] = {**RestrictedUnpickler.dispatch, pickle.BUILD[0]: load_build}
