"""Files that appear whole or not at all."""

import pytest

from fseg_jax.errors import InputError, OutputError
from fseg_jax.files.atomic import replace_atomically

pytestmark = pytest.mark.smoke


def test_nothing_is_seen_before_the_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replace_atomically(path) as part:
        part.write_text("new")
        assert path.read_text() == "old" and part.name.startswith(".a.txt.")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    expected = OutputError if isinstance(error, OSError) else error
    with pytest.raises(expected) as caught, replace_atomically(path) as part:
        part.write_text("half of the n")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    if expected is OutputError:
        assert str(caught.value) == f"{path}: cannot be written (No space left on device)"


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    said = r"none/a\.txt: cannot be written \(No such file"
    with pytest.raises(InputError, match=said), replace_atomically(tmp_path / "none" / "a.txt") as part:
        part.write_text("")


def test_two_writers_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with replace_atomically(path) as first:
        first.write_text("first")
        with replace_atomically(path) as second:
            second.write_text("second")
    assert path.read_text() == "first"


def test_the_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    with replace_atomically(tmp_path / "a") as part:
        part.touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode
