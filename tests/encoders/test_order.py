"""From a name to an encoder by one way: modules and folders of the room import one another downwards only."""

import ast
from pathlib import Path

import pytest

import fseg_jax.encoders

ROOM = Path(fseg_jax.encoders.__path__[0])
# A module or folder may import those of the lines below its own, and within itself.
LINES = (
    ("image_text",),
    ("load",),
    ("trained", "listing"),
    ("weights",),
    ("catalog", "classical", "fingerprint", "side_by_side"),
    ("architectures", "encoder"),
    ("vit", "swin", "resnet", "efficientnet", "text"),
    ("layers", "weight_rules", "precision"),
    ("frames", "kernels"),
)
RANK = {name: number for number, line in enumerate(LINES) for name in line}


def list_imports(path: Path) -> set[str]:
    """List the modules and folders of the room that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "fseg_jax.encoders":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fseg_jax.encoders."):
            names.add(node.module.split(".")[2])
    return names


def test_every_module_and_folder_has_its_line():
    files = [path.relative_to(ROOM).with_suffix("").parts[0] for path in ROOM.rglob("*.py")]
    assert set(files) - {"__init__"} == RANK.keys()


@pytest.mark.parametrize("name", sorted(RANK))
def test_imports_go_down(name):
    files = [ROOM / f"{name}.py"] if (ROOM / f"{name}.py").exists() else (ROOM / name).rglob("*.py")
    for path in files:
        wrong = [other for other in list_imports(path) - {name} if RANK[other] <= RANK[name]]
        assert not wrong, path
