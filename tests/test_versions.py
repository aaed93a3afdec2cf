"""A checkout that is not installed runs, with versions that are not known."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest

from fseg_jax import versions
from fseg_jax.pipeline.record import made_with
from fseg_jax.versions import find_version, find_versions

pytestmark = pytest.mark.smoke

# Stands in for an environment in which this package was never installed.
WITHOUT = """
import importlib.metadata as metadata
found = metadata.version
def version(name):
    if name.startswith("fseg"):
        raise metadata.PackageNotFoundError(name)
    return found(name)
metadata.version = version
from fseg_jax.cli import main
main()
"""


@pytest.fixture
def not_installed(monkeypatch):
    def find(name: str) -> str:
        if name.startswith("fseg"):
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(versions, "version", find)


def test_a_package_that_is_not_installed_has_an_unknown_version(not_installed):
    assert find_version("fseg-jax") == "unknown" and find_version("numpy") == np.__version__
    assert find_versions(("fseg-jax", "numpy")) == {"fseg-jax": "unknown", "numpy": np.__version__}
    assert made_with().versions["fseg-jax"] == "unknown"


def test_every_version_is_asked_for_here():
    """So that what works without an installation is not broken by the next record."""
    package = Path(versions.__file__).parent
    asking = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"metadata import .*\bversion\b|metadata\.version\(", path.read_text(encoding="utf-8"))
    ]
    assert asking == ["versions.py"]


def test_the_command_line_of_a_checkout_that_is_not_installed(tmp_path):
    command = [sys.executable, "-c", WITHOUT, "--version"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "fseg, version unknown\n"), found.stderr
