"""Versions of packages, for records; ours is unknown where a checkout is run that is not installed."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

UNKNOWN = "unknown"


def find_version(package: str) -> str:
    """A package's version, or ``"unknown"`` where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return UNKNOWN


def find_versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of packages, by name."""
    return {package: find_version(package) for package in packages}
