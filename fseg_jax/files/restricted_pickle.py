"""Read pickles without running what they name: a subclass says what a name becomes."""

import io
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

from fseg_jax.errors import InputError


class BoundedStream:
    """An open file that is never asked for more bytes than it has left: a pickle may state any number."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        start = file.tell()
        self._end = file.seek(0, io.SEEK_END)
        file.seek(start)

    def read(self, size: int) -> bytes:
        """Read ``size`` bytes, or those that are left."""
        return self._file.read(min(size, self.count_left()))

    def readline(self) -> bytes:
        """Read a line."""
        return self._file.readline()

    def count_left(self) -> int:
        """Count the bytes that are still to be read."""
        return self._end - self._file.tell()


def _require_plain_keys(load: Callable[[Any], None], keys: slice) -> Callable[[Any], None]:
    """Wrap an opcode that fills a dictionary to accept only keys of ``key_types``.

    Hashing a deeply nested key would overflow the stack.
    """

    def check_and_load(self: Any) -> None:
        if not all(isinstance(key, self.key_types) for key in self.stack[keys]):
            raise InputError("has keys that are no names or numbers: refused, nothing was run")
        load(self)

    return check_and_load


_LOAD: dict[int, Any] = pickle._Unpickler.dispatch


class RestrictedUnpickler(pickle._Unpickler):
    """An unpickler of plain containers; every name that a pickle has is passed to ``find_class``."""

    key_types: ClassVar[tuple[type, ...]] = (str, int)  # of dictionaries

    def __init__(self, stream: BoundedStream) -> None:
        self.stream = stream
        super().__init__(stream)

    def find_class(self, module: str, name: str) -> Any:
        """Look up a name of the pickle; InputError, unless a subclass knows it."""
        raise InputError(f"names {module}.{name}: refused, nothing was run")

    dispatch: ClassVar[dict[int, Any]] = dict(_LOAD)
    dispatch[pickle.SETITEM[0]] = _require_plain_keys(_LOAD[pickle.SETITEM[0]], slice(-2, -1))
    dispatch[pickle.SETITEMS[0]] = _require_plain_keys(_LOAD[pickle.SETITEMS[0]], slice(None, None, 2))
    dispatch[pickle.DICT[0]] = _require_plain_keys(_LOAD[pickle.DICT[0]], slice(None, None, 2))
    for _opcode in (pickle.BYTEARRAY8, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET):
        # Files of arrays have none of these; BYTEARRAY8 would allocate any size it states.
        del dispatch[_opcode[0]]
