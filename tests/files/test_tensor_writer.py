"""Arrays of every memory layout keep their values in a safetensors file."""

import ast
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from fseg_jax.errors import OutputError
from fseg_jax.files.tensor_writer import write_tensors

pytestmark = pytest.mark.smoke

PLAIN = np.arange(24, dtype=np.float32).reshape(4, 6)
LAYOUTS = {
    "row by row": PLAIN,
    "column by column": np.asfortranarray(PLAIN),
    "transposed": PLAIN.T,
    "strided": PLAIN[::2, 1::2],
    "backwards": PLAIN[::-1],
    "broadcast": np.broadcast_to(PLAIN[0], (3, 6)),
    "of another byte order": PLAIN.astype(">f4"),
    "of three axes": np.moveaxis(PLAIN.reshape(2, 2, 6), 0, 2),
    "a scalar": np.float32(3),
    "empty": PLAIN[:0],
    "of a device": jnp.asarray(PLAIN).T,
}


def test_arrays_of_every_layout_come_back_as_they_were(tmp_path):
    write_tensors(tmp_path / "a.safetensors", LAYOUTS, {"format": "f"})
    back = load_file(tmp_path / "a.safetensors")
    assert back.keys() == LAYOUTS.keys()
    for name, array in LAYOUTS.items():
        assert back[name].shape == array.shape, name
        np.testing.assert_array_equal(back[name], np.asarray(array), err_msg=name)


def test_equal_contents_give_equal_files(tmp_path):
    """The library orders metadata anew in every process."""
    metadata = {f"key {i}": f"{i} µm" for i in range(12)}
    write_tensors(tmp_path / "a.safetensors", {"x": PLAIN}, metadata)
    write_tensors(tmp_path / "b.safetensors", {"x": PLAIN}, dict(reversed(metadata.items())))
    data = (tmp_path / "a.safetensors").read_bytes()
    assert data == (tmp_path / "b.safetensors").read_bytes()
    places = [data.index(f'"{key}"'.encode()) for key in sorted(metadata)]
    assert places == sorted(places)
    with safe_open(tmp_path / "a.safetensors", "np") as file:
        assert file.metadata() == metadata
        np.testing.assert_array_equal(file.get_tensor("x"), PLAIN)


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        write_tensors(tmp_path / "none" / "a.safetensors", {"x": PLAIN})
    assert list(tmp_path.iterdir()) == []


def test_nothing_else_calls_the_writer_of_safetensors():
    root = Path(__file__).parents[2]
    found = []
    for path in (
        p for part in ("fseg_jax", "weights_convert", "benchmarks") for p in root.glob(f"{part}/**/*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("safetensors"):
                names = [f"{node.module}.{a.name}" for a in node.names]
            parts = [name.split(".") for name in names if name.startswith("safetensors")]
            if any(
                len(p) > 1 and p[-1] not in ("SafetensorError", "safe_open", "load", "load_file")
                for p in parts
            ):
                found.append(path.relative_to(root).as_posix())
    assert found == ["fseg_jax/files/tensor_writer.py"]
