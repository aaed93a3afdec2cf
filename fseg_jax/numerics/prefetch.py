"""The next one begun while one is in hand."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

Begun = TypeVar("Begun")


def prefetch(begun: Iterable[Begun]) -> Iterator[Begun]:
    """The same, each only after the next one has been taken up: of work that begins when it is made, as a
    future or an array of JAX, one goes on beside the one in hand.
    """
    waiting: deque[Begun] = deque()
    for one in begun:
        waiting.append(one)
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting
