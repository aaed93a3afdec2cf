"""Imports run one way, from the commands down to the arrays; lazy ones and those for types are counted."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).parents[1]

# A room may import those of the lines below its own, and nothing of its neighbours on the line.
ROOMS = (
    ("cli",),
    ("cohort", "evaluation", "cam", "viewer", "pretraining"),
    ("pipeline",),
    ("methods", "outputs", "slides"),
    ("encoders", "codebook"),
    ("numerics",),
    ("files",),
    ("errors", "process", "versions"),
)
LINE = {room: number for number, line in enumerate(ROOMS) for room in line}


def modules() -> dict[str, Path]:
    """Every module of the package, by its dotted name."""
    files = sorted((ROOT / "fseg_jax").rglob("*.py"))
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


MODULES = modules()


def imports_of(path: Path) -> set[str]:
    """The package's modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & MODULES.keys()) or {node.module}
    return found & MODULES.keys()


IMPORTS = {module: imports_of(path) - {module} for module, path in MODULES.items()}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_file_is_in_a_room():
    assert {room_of(module) for module in MODULES} - {"", "__main__"} == LINE.keys()


@pytest.mark.parametrize("room", [room for line in ROOMS for room in line])
def test_a_room_imports_only_what_lies_below_it(room):
    wrong = [
        f"{module} → {other}"
        for module, others in IMPORTS.items()
        for other in others
        if room_of(module) == room and room_of(other) not in (room, "") and LINE[room_of(other)] <= LINE[room]
    ]
    assert not wrong


def test_numerics_know_arrays_and_jax_alone():
    outside = {
        f"{module} → {other}"
        for module, others in IMPORTS.items()
        for other in others
        if room_of(module) == "numerics" and room_of(other) not in ("numerics", "errors")
    }
    assert not outside


def test_no_circle():
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_the_package_imports_nothing_of_what_stands_on_it():
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            above = [n for n in names if n.split(".")[0] in ("weights_convert", "benchmarks", "tests")]
            assert not above, f"{module} imports {above[0]}"
