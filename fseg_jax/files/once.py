"""Values that several threads want at the same time, of which each is made by the first of them alone."""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")
Make = Callable[[Sequence[Key]], Iterable[Value]]


class Once(Generic[Key, Value]):
    """Values that are kept somewhere, and made once where they are not.

    Attributes:
        lock: Held while ``find`` and ``keep`` are called; whoever changes what is kept holds it too.
    """

    def __init__(self, find: Callable[[Key], Value | None], keep: Callable[[Key, Value], None]) -> None:
        """Use a place where values are kept.

        Args:
            find: Returns a value that is kept, or None.
            keep: Keeps a value, or not.
        """
        self.lock = threading.Lock()
        self._find, self._keep = find, keep
        self._coming: dict[Key, Future[Value]] = {}

    def get(self, keys: Sequence[Key], make: Make[Key, Value], together: int = 1) -> dict[Key, Value]:
        """Get values; those that are neither kept nor made by another thread are made here.

        Args:
            keys: What they are called.
            make: Makes some of them, in order.
            together: How many at most it is asked for at once.
        """
        values: dict[Key, Value] = {}
        coming: dict[Key, Future[Value]] = {}
        for start in range(0, len(keys), together):
            mine: dict[Key, Future[Value]] = {}
            with self.lock:
                for key in keys[start : start + together]:
                    value = self._find(key)
                    if value is not None:
                        values[key] = value
                    elif key in self._coming:
                        coming[key] = self._coming[key]
                    else:
                        mine[key] = self._coming[key] = Future()
            if mine:
                values |= self._make(mine, make)
        # It may wait for others only now, when nobody waits for it.
        for key, future in coming.items():
            try:
                values[key] = future.result()
            except CancelledError:
                values |= self.get([key], make)
        return values

    def _make(self, mine: dict[Key, Future[Value]], make: Make[Key, Value]) -> dict[Key, Value]:
        values: dict[Key, Value] = {}
        try:
            for key, value in zip(list(mine), make(list(mine)), strict=True):
                with self.lock:
                    del self._coming[key]
                    self._keep(key, value)
                values[key] = value
                mine.pop(key).set_result(value)
        except BaseException as error:
            with self.lock:
                for key in mine:
                    self._coming.pop(key, None)
            failed, *not_begun = mine.values()
            failed.set_exception(error)
            for future in not_begun:  # whoever waits for them makes them
                future.cancel()
            raise
        return values
