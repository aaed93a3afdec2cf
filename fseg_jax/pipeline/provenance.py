"""When a result was written, with what and on what: the facts that records of folders of images share."""

import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

import jax

from fseg_jax.versions import find_versions


@dataclass(frozen=True)
class Provenance:
    """When a result was written, with which versions and on which device.

    Attributes:
        written: Time of writing, ISO 8601 in UTC, to the second.
        seconds: Duration of the work, to a tenth.
        versions: Version of Python and of each package, by name.
        device: JAX's name of the device.
    """

    written: str
    seconds: float
    versions: dict[str, str]
    device: str

    @classmethod
    def since(cls, started: float, packages: Iterable[str]) -> Self:
        """Take down the present, for work that began at ``started`` (``time.time()``)."""
        return cls(
            written=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.time() - started, 1),
            versions={"python": platform.python_version()} | find_versions(packages),
            device=jax.devices()[0].device_kind,
        )
