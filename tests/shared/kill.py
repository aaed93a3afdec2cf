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


def die_before_step(work: Callable[[], Any], number: int) -> bool:
    """Run ``work`` and die before its n-th step, counted from 0; return whether it came to that step.

    A step is the opening of a file for writing, or a call that renames, removes, makes or syncs one. Nothing
    is truly synced: only the end of a machine would show it. The steps of a dead process have no effect, so
    that no ``finally`` mends what a kill would leave.
    """
    steps, is_dead = 0, False

    def take_step() -> None:
        nonlocal steps, is_dead
        is_dead = is_dead or steps == number
        if is_dead:
            raise Killed
        steps += 1

    def count_calls(name: str, function: Callable) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            take_step()
            return None if name == "fsync" else function(*arguments, **options)

        return call

    def open_counted(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if set(mode) & set("wax+"):
            take_step()
        return plain_open(file, mode, *arguments, **options)

    plain_open = io.open
    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, count_calls(name, getattr(os, name)))
        patch.setattr(io, "open", open_counted)
        patch.setattr(builtins, "open", open_counted)
        try:
            work()
        except Killed as killed:  # the process's open files, and with them its locks, end with it
            error: BaseException | None = killed
            while error is not None:
                traceback.clear_frames(error.__traceback__)
                error = error.__context__
    return is_dead
