"""The storage of a cohort's results: a folder on disk, or a bucket at ``s3://`` or ``gs://``.

A key is a path below that place. Every method raises ``OutputError`` where the place cannot be read or
written.
"""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from fseg_jax.errors import OutputError
from fseg_jax.files.bucket import Bucket, is_bucket
from fseg_jax.files.exchange import exchange_outputs, write_synced
from fseg_jax.files.futures import convert_errors
from fseg_jax.files.partial_folders import open_partial_folder, recover_folder
from fseg_jax.files.paths import is_there
from fseg_jax.files.zarr import make_folder_spec, name_last_file

SLIDE_FOLDERS = ("failures", "timings", "thumbnails", "typical")  # folders with a file for each slide


class Storage(Protocol):
    """A place for results.

    Attributes:
        url: The path or address of the place.
    """

    url: str

    def read(self, key: str) -> bytes | None:
        """Read a key; return None where it does not exist."""

    def read_all(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Read many keys; leave out those that do not exist."""

    def list_keys(self, folder: str) -> list[str]:
        """List the keys directly below a folder, sorted."""

    def find_present(self, keys: Sequence[str]) -> set[str]:
        """Return those of ``keys`` that exist; a Zarr exists if its ``zarr.json`` does. Nothing is read."""

    def write(self, key: str, data: bytes) -> None:
        """Write a key whole or not at all."""

    def create(self, key: str, data: bytes) -> bool:
        """Write a key unless it exists; return whether it was written."""

    def delete(self, key: str) -> None:
        """Delete a key, if it exists."""

    def open_workplace(self, name: str, *, wait: bool = False) -> AbstractContextManager[Path]:
        """Make a temporary folder on disk for the outputs called ``name``.

        Raises:
            BusyError: Another run makes these outputs, and ``wait`` is False.
        """

    def publish(self, folder: Path, keys: Sequence[str]) -> None:
        """Replace ``keys`` with what a folder holds; the first key, the record, appears last."""

    def make_spec(self, key: str) -> dict[str, Any]:
        """Make tensorstore's ``kvstore`` spec for the folder at a key."""

    def recover(self) -> None:
        """Remove what killed runs left unfinished, and finish the exchanges that they had decided on."""


def open_storage(url: str) -> Storage:
    """Open the place that a path or an address names; a folder is not made yet."""
    return Bucket(url) if is_bucket(url) else Folder(Path(url))


class Folder:
    """A folder on disk.

    Attributes:
        url: Its path, as text.
        path: Its path.
    """

    def __init__(self, path: Path) -> None:
        self.url = str(path)
        self.path = path

    def read(self, key: str) -> bytes | None:
        """Read a key; return None where it does not exist."""
        try:
            return (self.path / key).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        except OSError as error:
            raise OutputError(f"{self.path / key}: cannot be read ({error.strerror or error})") from error

    def read_all(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Read many keys; leave out those that do not exist."""
        contents = ((key, self.read(key)) for key in keys)
        return {key: data for key, data in contents if data is not None}

    def list_keys(self, folder: str) -> list[str]:
        """List the keys directly below a folder, sorted."""
        paths = (self.path / folder).glob("[!.]*")
        return sorted(f"{folder}/{path.name}" for path in paths if path.is_file())

    def find_present(self, keys: Sequence[str]) -> set[str]:
        """Return those of ``keys`` that exist."""
        return {key for key in keys if is_there(self.path / name_last_file(key))}

    def write(self, key: str, data: bytes) -> None:
        """Write a key whole or not at all."""
        target = self.path / key
        with open_partial_folder(target.name, target.parent, wait=True) as folder:
            write_synced(folder / target.name, data)
            (folder / target.name).replace(target)

    def create(self, key: str, data: bytes) -> bool:
        """Write a key unless it exists; return whether it was written."""
        target = self.path / key
        with open_partial_folder(target.name, target.parent, wait=True) as folder:
            write_synced(folder / target.name, data)
            try:
                os.link(folder / target.name, target)
            except FileExistsError:
                return False
            except OSError:  # a file system without links: the lock keeps others away
                if target.exists():
                    return False
                (folder / target.name).replace(target)
        return True

    def delete(self, key: str) -> None:
        """Delete a key, if it exists."""
        with convert_errors(f"{self.path / key}"):
            (self.path / key).unlink(missing_ok=True)

    def open_workplace(self, name: str, *, wait: bool = False) -> AbstractContextManager[Path]:
        """Make a temporary folder on disk for the outputs called ``name``."""
        return open_partial_folder(name, self.path, wait=wait)

    def publish(self, folder: Path, keys: Sequence[str]) -> None:
        """Replace ``keys`` with what a folder holds; the first key, the record, appears last."""
        exchange_outputs(folder, keys)

    def make_spec(self, key: str) -> dict[str, Any]:
        """Make tensorstore's ``kvstore`` spec for the folder at a key."""
        return make_folder_spec(self.path / key)

    def recover(self) -> None:
        """Remove what killed runs left unfinished, and finish the exchanges that they had decided on."""
        for folder in (self.path, *(path for path in self.path.glob("[!.]*") if path.name in SLIDE_FOLDERS)):
            recover_folder(folder)
