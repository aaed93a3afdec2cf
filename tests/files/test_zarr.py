"""Zarrs on file systems that refuse what others offer."""

from pathlib import Path

import numpy as np
from no_locks import needs_compiler, run_without_locks

from fseg_jax.files.zarr import create_array, make_folder_spec, open_array

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


def test_a_path_may_lead_up_and_through_a_link(tmp_path, monkeypatch):
    """As ``fseg segment slide.svs -o ../out`` does; tensorstore refuses ``..`` in a path."""
    (tmp_path / "deep" / "here").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "here")
    monkeypatch.chdir(tmp_path / "link")
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    create_array(Path("../a"), (2, 3), np.uint8, (2, 3)).write(values).result()
    assert (tmp_path / "deep" / "a" / "zarr.json").exists()  # where the system puts it
    read = open_array(make_folder_spec(tmp_path / "link" / ".." / "a")).result().read().result()
    assert read.tolist() == values.tolist()
