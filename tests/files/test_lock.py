"""Locks on files, beside those that the system's own ``flock`` takes."""

import errno
import fcntl
import subprocess
import sys
import threading
import time

import pytest

from fseg_jax.files import lock
from fseg_jax.files.lock import acquire_lock

pytestmark = pytest.mark.smoke

HOLD = """
import sys, time
from pathlib import Path
from fseg_jax.files.lock import acquire_lock
held = acquire_lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_lock_is_one_programs_and_leaves_nothing(tmp_path):
    path = tmp_path / "a.lock"
    held = acquire_lock(path)
    assert held is not None
    with path.open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with pytest.raises(BlockingIOError):
        acquire_lock(path)
    held.release()
    assert list(tmp_path.iterdir()) == []


def test_another_programs_lock_is_respected(tmp_path):
    path = tmp_path / "a.lock"
    with path.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            acquire_lock(path)
    held = acquire_lock(path)
    assert held is not None
    held.release()


def test_a_lock_ends_with_a_killed_process(tmp_path):
    path = tmp_path / "a.lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError):
            acquire_lock(path)
        process.kill()
    held = acquire_lock(path)
    assert held is not None
    held.release()


def test_who_waits_for_a_lock_whose_file_is_removed_begins_again(tmp_path):
    """Two who wait, one after the other, never hold it together, though each removes the file."""
    path = tmp_path / "a.lock"
    inside, most, turns = [0], [0], [0]

    def work():
        for _ in range(10):
            held = acquire_lock(path, wait=True)
            assert held is not None
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.001)
            inside[0] -= 1
            turns[0] += 1
            held.release()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert turns == [30] and most == [1] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_of_once(tmp_path, monkeypatch, caplog, code):
    def refuse(*_, **__):
        raise OSError(code, "no locks")

    monkeypatch.setattr(lock, "lock_descriptor", refuse)
    assert acquire_lock(tmp_path / "a.lock") is None and acquire_lock(tmp_path / "b.lock") is None
    assert caplog.text.count("has no locks") == 1 and list(tmp_path.iterdir()) == []


def test_what_else_fails_is_raised(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EIO, "broken")

    with pytest.raises(FileNotFoundError):
        acquire_lock(tmp_path / "none" / "a.lock")
    monkeypatch.setattr(lock, "lock_descriptor", refuse)
    with pytest.raises(OSError, match="broken"):
        acquire_lock(tmp_path / "a.lock")
    assert list(tmp_path.iterdir()) == []
