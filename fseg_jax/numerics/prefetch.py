"""Work started one step ahead."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def prefetch(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the same items, each only after the next one has been taken from the source.

    Futures and arrays of JAX begin to work when they are made. So one of them works while the one before is
    in use.

    >>> list(prefetch("abc"))
    ['a', 'b', 'c']
    """
    waiting: deque[Item] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting
