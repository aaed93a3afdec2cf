"""The public names agree wherever they are listed, and the examples in docstrings are true."""

import ast
import doctest
import pkgutil
from importlib import import_module
from pathlib import Path

import pytest

import fseg_jax

pytestmark = pytest.mark.smoke

PACKAGE = Path(fseg_jax.__file__).parent


def stub_names() -> set[str]:
    """The names that the stub for type checkers exports."""
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or "" for node in imports for alias in node.names}


def test_all_the_lazy_table_and_the_stub_agree():
    lazy = {*fseg_jax._HOMES, *fseg_jax._MODULES}
    assert set(fseg_jax.__all__) == lazy == stub_names()
    assert sorted(fseg_jax.__all__) == dir(fseg_jax)


@pytest.mark.parametrize("name", fseg_jax.__all__)
def test_a_public_name_is_there_and_described(name):
    assert getattr(fseg_jax, name).__doc__


def test_a_name_that_is_not_there_is_said():
    with pytest.raises(AttributeError, match="no attribute 'segmentation'"):
        getattr(fseg_jax, "segmentation")  # noqa: B009


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").exists()


def modules_with_examples() -> list[str]:
    """The modules that hold an example, found by their text: importing all takes too long."""
    found = []
    for module in pkgutil.walk_packages([str(PACKAGE)], "fseg_jax."):
        path = PACKAGE.parent.joinpath(*module.name.split("."))
        file = path / "__init__.py" if module.ispkg else path.with_suffix(".py")
        if ">>> " in file.read_text(encoding="utf-8"):
            found.append(module.name)
    return found


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_in_docstrings(name):
    result = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0
