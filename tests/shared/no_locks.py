"""Run Python on a file system without locks, as NFS mounted with nolock and Lustre without flock are."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None or sys.platform != "linux", reason="needs Linux's C compiler"
)

# flock and the locks of fcntl fail.
NO_LOCKS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>

int flock(int file, int operation) { errno = ENOLCK; return -1; }

#define REFUSE_LOCKS(name)                                                              \
    int name(int file, int command, ...) {                                              \
        va_list arguments;                                                              \
        va_start(arguments, command);                                                   \
        void *argument = va_arg(arguments, void *);                                     \
        va_end(arguments);                                                              \
        switch (command) {                                                              \
        case F_SETLK: case F_SETLKW: case F_OFD_SETLK: case F_OFD_SETLKW:               \
            errno = ENOLCK;                                                             \
            return -1;                                                                  \
        }                                                                               \
        int (*other)(int, int, ...) = (int (*)(int, int, ...))dlsym(RTLD_NEXT, #name);  \
        return other(file, command, argument);                                          \
    }
REFUSE_LOCKS(fcntl)
REFUSE_LOCKS(fcntl64)
"""


def run_without_locks(code: str, folder: Path, *arguments: object) -> None:
    """Run Python code in a process of its own that finds no locks; ``folder`` is for what that needs."""
    source, library = folder / "no_locks.c", folder / "no_locks.so"
    source.write_text(NO_LOCKS)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    subprocess.run(command, check=True, env=environment)
