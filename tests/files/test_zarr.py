"""Zarrs on file systems that refuse what others offer."""

import os
import shutil
import subprocess
import sys

import pytest

# flock and the locks of fcntl fail, as they do on Lustre mounted without flock and on NFS with nolock.
NO_LOCKS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>

int flock(int file, int operation) { errno = ENOSYS; return -1; }

#define REFUSE_LOCKS(name)                                                              \
    int name(int file, int command, ...) {                                              \
        va_list arguments;                                                              \
        va_start(arguments, command);                                                   \
        void *argument = va_arg(arguments, void *);                                     \
        va_end(arguments);                                                              \
        switch (command) {                                                              \
        case F_SETLK: case F_SETLKW: case F_OFD_SETLK: case F_OFD_SETLKW:               \
            errno = ENOSYS;                                                             \
            return -1;                                                                  \
        }                                                                               \
        int (*other)(int, int, ...) = (int (*)(int, int, ...))dlsym(RTLD_NEXT, #name);  \
        return other(file, command, argument);                                          \
    }
REFUSE_LOCKS(fcntl)
REFUSE_LOCKS(fcntl64)
"""

WRITE = """
import sys
from pathlib import Path
import numpy as np
from fseg_jax.files.lock import acquire_lock
from fseg_jax.files.zarr import create_array, open_array, write_group

folder = Path(sys.argv[1])
assert acquire_lock(folder / "a.lock") is None  # there are no locks indeed
values = np.arange(64, dtype=np.uint8).reshape(8, 8)
create_array(folder / "a", (8, 8), np.uint8, (4, 4), shard=(8, 8)).write(values).result()
create_array(folder / "b", (8, 8), np.uint8, (4, 8)).write(values).result()
write_group(folder, {"fseg": 1})
"""


@pytest.mark.skipif(shutil.which("cc") is None or sys.platform != "linux", reason="needs Linux's C compiler")
def test_a_zarr_is_written_on_a_file_system_without_locks(tmp_path):
    source, library, folder = tmp_path / "no_locks.c", tmp_path / "no_locks.so", tmp_path / "a.zarr"
    source.write_text(NO_LOCKS)
    folder.mkdir()
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    subprocess.run([sys.executable, "-c", WRITE, folder], check=True, env=environment)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert names == ["a/c/0/0", "a/zarr.json", "b/c/0/0", "b/c/1/0", "b/zarr.json", "zarr.json"]
