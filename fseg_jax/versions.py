"""Versions of packages, for records."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

UNKNOWN = "unknown"  # the version of a package that is not installed, such as ours in a bare checkout


def find_version(package: str) -> str:
    """Return the version of an installed package, or ``"unknown"``."""
    try:
        return version(package)
    except PackageNotFoundError:
        return UNKNOWN


def find_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of packages, by name."""
    return {package: find_version(package) for package in packages}
