"""Zarrs on file systems that refuse what others offer."""

from no_locks import needs_compiler, run_without_locks

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


@needs_compiler
def test_a_zarr_is_written_on_a_file_system_without_locks(tmp_path):
    folder = tmp_path / "a.zarr"
    folder.mkdir()
    run_without_locks(WRITE, tmp_path, folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert names == ["a/c/0/0", "a/zarr.json", "b/c/0/0", "b/c/1/0", "b/zarr.json", "zarr.json"]
