"""The next ones begun while one is in hand."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

Begun = TypeVar("Begun")


def ahead(begun: Iterable[Begun], by: int = 1) -> Iterator[Begun]:
    """The same, each only after the next ``by`` have been taken up: of work that begins when it is made, as a
    future or an array of JAX, so many go on beside the one in hand."""
    waiting: deque[Begun] = deque()
    for one in begun:
        waiting.append(one)
        if len(waiting) > by:
            yield waiting.popleft()
    yield from waiting
