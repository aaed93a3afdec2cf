"""The stages of a slide in one process, in each of which another slide is: no device waits for a picture.

A slide is a thread that goes through them from top to bottom. It waits before a stage that is taken, so no
more slides are in memory than there are places in the stages.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from fseg_jax.pipeline.publish import Clock
from fseg_jax.process import raise_if_stopped

Stage = Literal[
    "lay out",  # find tissue
    "label",  # read, encode, factorize, label and write labels: on the device
    "draw",  # outlines, pictures and the slide's image
]


class Stages:
    """The stages of the slides of one process.

    Attributes:
        places: How many slides can be in them at once.
    """

    def __init__(self, drawn: int = 1) -> None:
        """Make them; ``drawn`` slides are drawn at once, and one is in each of the others."""
        self.places = 2 + drawn
        self._free = {
            "lay out": threading.Semaphore(1),
            "label": threading.Semaphore(1),
            "draw": threading.Semaphore(drawn),
        }

    @contextmanager
    def enter(self, stage: Stage, clock: Clock) -> Iterator[None]:
        """Be in a stage until the block ends, once there is a place; the clock does not count the waiting."""
        with self._free[stage]:
            raise_if_stopped()
            clock.skip()
            yield
