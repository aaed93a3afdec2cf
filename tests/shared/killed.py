"""A process that is killed at a step of its work with files, played in this process."""

import builtins
import io
import os
import traceback
from collections.abc import Callable
from typing import Any

import pytest

STEPS = ("rename", "replace", "link", "symlink", "unlink", "remove", "rmdir", "mkdir", "fsync", "truncate")


class Killed(BaseException):
    """The end of the process: nothing that is done after it reaches a file."""


def dies(work: Callable[[], Any], before: int) -> bool:
    """Do something that works with files, and die before its n-th step, counted from 0; say whether it came
    to that.

    A step is a file that is opened to be written, and every call that renames, removes, makes or syncs one.
    Nothing is truly synced, which only a machine's end would tell. The steps of a dead process have no
    effect, so that no ``finally`` mends what a kill would leave.
    """
    taken, dead = 0, False

    def step() -> None:
        nonlocal taken, dead
        dead = dead or taken == before
        if dead:
            raise Killed
        taken += 1

    def counted(name: str, function: Callable) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            step()
            return None if name == "fsync" else function(*arguments, **options)

        return call

    def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if set(mode) & set("wax+"):
            step()
        return plain(file, mode, *arguments, **options)

    plain = io.open
    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, counted(name, getattr(os, name)))
        patch.setattr(io, "open", opened)
        patch.setattr(builtins, "open", opened)
        try:
            work()
        except Killed as killed:  # its open files, and with them its locks, end with a process
            error: BaseException | None = killed
            while error is not None:
                traceback.clear_frames(error.__traceback__)
                error = error.__context__
    return dead
