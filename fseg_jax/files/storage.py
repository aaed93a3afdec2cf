"""Where a cohort's results go: a folder, or a bucket at ``s3://`` or ``gs://`` by tensorstore's drivers.

A key is a path below that place. ``s3://`` finds its credentials as AWS's own tools do, and stores other than
AWS's by ``AWS_ENDPOINT_URL``. Everything raises ``OutputError`` where the place cannot be read or written.
"""

import json
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import tensorstore as ts

from fseg_jax.errors import OutputError
from fseg_jax.files.exchange import PARTIAL, WHOLE, exchange_outputs, write_synced
from fseg_jax.files.futures import wait_for_store
from fseg_jax.files.partial_folders import partial_folder, recover_folder
from fseg_jax.files.paths import is_there
from fseg_jax.files.zarr import make_folder_spec

_AT_ONCE = 32  # requests to a bucket
_ABANDONED = 24 * 3600  # seconds after which what was begun in a bucket is taken for a dead run's
_RETRIES = {"max_retries": 8, "initial_delay": "500ms", "max_delay": "16s"}  # a minute, then it is refused
_CONTEXT = ts.Context({"s3_request_retries": _RETRIES, "gcs_request_retries": _RETRIES})


class Storage(Protocol):
    """A place for results."""

    url: str

    def read(self, key: str) -> bytes | None:
        """What is at a key; None where there is nothing."""

    def read_all(self, keys: Sequence[str]) -> dict[str, bytes]:
        """What is at many keys, of those where there is something."""

    def list_keys(self, folder: str) -> list[str]:
        """The keys right below a folder, sorted."""

    def find_present(self, keys: Sequence[str]) -> set[str]:
        """Those of some keys at which something is; of a Zarr, its ``zarr.json``. Nothing is read."""

    def write(self, key: str, data: bytes) -> None:
        """Write a key, whole or not at all."""

    def create(self, key: str, data: bytes) -> bool:
        """Write a key where there is nothing yet; say whether it was."""

    def delete(self, key: str) -> None:
        """Remove a key, if it is there."""

    def open_workplace(self, name: str, *, wait: bool = False) -> AbstractContextManager[Path]:
        """A folder on disk to make the outputs of a name in. ``BusyError`` where another run makes them."""

    def publish(self, folder: Path, keys: Sequence[str]) -> None:
        """Put what a folder holds in place of what is at ``keys``; the first, the record, comes last."""

    def make_spec(self, key: str) -> dict[str, Any]:
        """A folder of keys, as tensorstore is told of it."""

    def recover(self) -> None:
        """Remove what killed runs left half-done, and finish what they had whole."""


def open_storage(url: str) -> Storage:
    """The place that a path or an address names; nothing is asked of it yet."""
    return Bucket(url) if is_bucket(url) else Folder(Path(url))


def is_bucket(url: str) -> bool:
    """Whether this is an address in a cloud store, not a path."""
    return urlsplit(url).scheme in ("s3", "gs")


def make_bucket_spec(url: str) -> dict[str, Any]:
    """An address as tensorstore is told of it, with what the environment says of S3."""
    parts = urlsplit(url)
    spec: dict[str, Any] = {
        "driver": {"s3": "s3", "gs": "gcs"}[parts.scheme],
        "bucket": parts.netloc,
        "path": parts.path.lstrip("/"),
    }
    if parts.scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if endpoint:
            spec |= {"endpoint": endpoint, "aws_region": region or "us-east-1"}
        elif region:
            spec |= {"aws_region": region}
        if os.environ.get("AWS_ACCESS_KEY_ID"):  # no other place is then looked into
            spec |= {"aws_credentials": {"type": "environment"}}
    return spec


@contextmanager
def _told(what: str, done: str = "written") -> Iterator[None]:
    """What tensorstore says, with its requests and answers, as one line."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split(" [")[0].split())
        raise OutputError(f"{what}: cannot be {done} ({said[:300]})") from error


class Bucket:
    """A folder in a bucket. There are no locks: what two runs of the same settings write is the same.

    Outputs that replace others are first written whole below a hidden key, and an object ``.NAME.json.whole``
    that names them decides; from then on whoever sweeps the place can put them under their own keys. A reader
    who waits for the record sees the old outputs until it is decided, then no record while their keys are
    written and what is not among the new is deleted, and then the new ones.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        with _told(self.url, "used"):
            opening = ts.KvStore.open(make_bucket_spec(self.url + "/"), context=_CONTEXT)
            (self._store,) = wait_for_store(self.url, opening)

    def read(self, key: str) -> bytes | None:
        return self.read_all([key]).get(key)

    def read_all(self, keys: Sequence[str]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        with _told(self.url, "read"):
            for start in range(0, len(keys), _AT_ONCE):
                here = keys[start : start + _AT_ONCE]
                results = wait_for_store(self.url, *(self._store.read(key) for key in here))
                found |= {k: r.value for k, r in zip(here, results, strict=True) if r.state == "value"}
        return found

    def list_keys(self, folder: str) -> list[str]:
        return self._listed(f"{folder}/", f"{folder}0")

    def find_present(self, keys: Sequence[str]) -> set[str]:
        with _told(self.url, "read"):
            ranges = [ts.KvStore.KeyRange(_proof(key), f"{_proof(key)}\0") for key in keys]
            found = wait_for_store(self.url, *(self._store.list(range_) for range_ in ranges))
            return {key for key, inside in zip(keys, found, strict=True) if inside}

    def write(self, key: str, data: bytes) -> None:
        self._write_all([(key, data)], key)

    def create(self, key: str, data: bytes) -> bool:
        where = f"{self.url}/{key}"
        with _told(where):
            (nothing,) = wait_for_store(where, self._store.read(key))
            if nothing.state == "value":
                return False
            (written,) = wait_for_store(
                where, self._store.write(key, data, if_equal=nothing.stamp.generation)
            )
        if not written.generation and self.read(key) is None:
            self.write(key, data)  # nobody was quicker: it is refused, and this says why
        return bool(written.generation)

    def delete(self, key: str) -> None:
        self._write_all([(key, None)], key)

    @contextmanager
    def open_workplace(self, name: str, *, wait: bool = False) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="fseg-") as folder:
            yield Path(folder)

    def publish(self, folder: Path, keys: Sequence[str]) -> None:
        record, *others = keys
        files = [path.relative_to(folder).as_posix() for key in others for path in _files(folder / key)]
        files.append(record)
        decided = f".{record}{WHOLE}"
        there = self.read_all([record, decided])
        if not there:  # nothing whole can be lost
            self._place(keys, files, lambda key: (folder / key).read_bytes())
            return
        staged = f".{record}.{int(time.time()):08x}{secrets.token_hex(4)}{PARTIAL}/"
        self._write_all((staged + key, (folder / key).read_bytes()) for key in files)
        said = {"staged": staged, "keys": list(keys), "files": files}
        self.write(decided, json.dumps(said).encode())
        self._place(keys, files, lambda key: (folder / key).read_bytes())
        self.delete(decided)
        self._forget(staged)
        if decided in there and (before := _staged(there[decided])) is not None:
            self._forget(before.folder)

    def _place(self, keys: Sequence[str], files: Sequence[str], data: Callable[[str], bytes | None]) -> None:
        """Write files, of which the record is the last, and delete what else there is at and below keys."""
        record = data(files[-1])
        if record is None:  # another run has just done so
            return
        if self.read(keys[0]) not in (None, record):
            self.delete(keys[0])
        found = ((key, data(key)) for key in files[:-1])
        self._write_all((key, content) for key, content in found if content is not None)
        left = {key for name in keys[1:] for key in (name, *self.list_keys(name))} - {*files}
        self._write_all((key, None) for key in sorted(left))
        self.write(keys[0], record)

    def _write_all(self, items: Iterable[tuple[str, bytes | None]], told: str = "") -> None:
        """Write keys, some at once, and delete those that are to have nothing."""
        where = f"{self.url}/{told}".rstrip("/")
        waiting = iter(items)
        with _told(where):
            while here := list(islice(waiting, _AT_ONCE)):
                size = sum(len(data or b"") for _, data in here)
                wait_for_store(where, *(self._store.write(key, data) for key, data in here), size=size)

    def _listed(self, first: str, after: str) -> list[str]:
        with _told(self.url, "read"):
            (keys,) = wait_for_store(self.url, self._store.list(ts.KvStore.KeyRange(first, after)))
        return sorted(key.decode() for key in keys)

    def _read_below(self, folder: str, key: str) -> bytes | None:
        return self.read(folder + key)

    def _forget(self, staged: str) -> None:
        """Delete what was written below a hidden key, once no object names it."""
        with _told(self.url):
            wait_for_store(self.url, self._store.delete_range(ts.KvStore.KeyRange(staged, f"{staged[:-1]}0")))

    def make_spec(self, key: str) -> dict[str, Any]:
        return make_bucket_spec(f"{self.url}/{key}/")

    def recover(self) -> None:
        hidden = self._listed(".", "/")
        for decided in (key for key in hidden if key.endswith(WHOLE) and "/" not in key):
            said = _staged(self.read(decided) or b"")
            if said is None or {said.folder + key for key in said.files} - {*hidden}:
                continue  # another run has just finished it
            self._place(said.keys, said.files, partial(self._read_below, said.folder))
            self.delete(decided)
            self._forget(said.folder)
        begun = {match[0]: int(match[1], 16) for key in hidden if (match := _STAGED.match(key))}
        for staged in (key for key, since in begun.items() if since < time.time() - _ABANDONED):
            self._forget(staged)


_STAGED = re.compile(rf"\..*\.([0-9a-f]{{8}})[0-9a-f]{{8}}{re.escape(PARTIAL)}/")


class _Staged(NamedTuple):
    """Outputs that replace others: below which hidden key they are whole, and what goes where."""

    folder: str
    keys: list[str]
    files: list[str]


def _staged(data: bytes) -> _Staged | None:
    """What was decided on; None where that is not said."""
    try:
        said = json.loads(data)
        whole = _Staged(str(said["staged"]), list(said["keys"]), list(said["files"]))
    except (ValueError, LookupError, TypeError):
        return None
    return whole if _STAGED.fullmatch(whole.folder) and whole.keys and whole.files else None


def _proof(key: str) -> str:
    """What is there if all of a key is: of a Zarr, what is written last."""
    return f"{key}/zarr.json" if key.endswith(".zarr") else key


def _files(path: Path) -> list[Path]:
    """A file, or all files of a folder, ``zarr.json`` of a group after what it describes."""
    if path.is_file():
        return [path]
    return sorted((p for p in path.rglob("*") if p.is_file()), key=lambda p: (-len(p.parts), p))


class Folder:
    """A folder on disk."""

    def __init__(self, path: Path) -> None:
        self.url = str(path)
        self.path = path

    def read(self, key: str) -> bytes | None:
        try:
            return (self.path / key).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        except OSError as error:
            raise OutputError(f"{self.path / key}: cannot be read ({error.strerror or error})") from error

    def read_all(self, keys: Sequence[str]) -> dict[str, bytes]:
        found = ((key, self.read(key)) for key in keys)
        return {key: data for key, data in found if data is not None}

    def list_keys(self, folder: str) -> list[str]:
        inside = (self.path / folder).glob("[!.]*")
        return sorted(f"{folder}/{path.name}" for path in inside if path.is_file())

    def find_present(self, keys: Sequence[str]) -> set[str]:
        return {key for key in keys if is_there(self.path / _proof(key))}

    def write(self, key: str, data: bytes) -> None:
        target = self.path / key
        with partial_folder(target.name, target.parent, wait=True) as folder:
            write_synced(folder / target.name, data)
            (folder / target.name).replace(target)

    def create(self, key: str, data: bytes) -> bool:
        target = self.path / key
        with partial_folder(target.name, target.parent, wait=True) as folder:
            write_synced(folder / target.name, data)
            try:
                os.link(folder / target.name, target)
            except FileExistsError:
                return False
            except OSError:  # a file system without links; the lock is held
                if target.exists():
                    return False
                (folder / target.name).replace(target)
        return True

    def delete(self, key: str) -> None:
        with _told(f"{self.path / key}"):
            (self.path / key).unlink(missing_ok=True)

    def open_workplace(self, name: str, *, wait: bool = False) -> AbstractContextManager[Path]:
        return partial_folder(name, self.path, wait=wait)

    def publish(self, folder: Path, keys: Sequence[str]) -> None:
        exchange_outputs(folder, keys)

    def make_spec(self, key: str) -> dict[str, Any]:
        return make_folder_spec(self.path / key)

    def recover(self) -> None:
        for folder in (self.path, *(path for path in self.path.glob("[!.]*") if path.name in LOGS)):
            recover_folder(folder)


LOGS = ("failures", "timings", "thumbnails")  # folders of what is written about slides, a file each
