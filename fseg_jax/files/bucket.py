"""The storage of results in a bucket at ``s3://`` or ``gs://``, through tensorstore.

Credentials for ``s3://`` are found as AWS's own tools find them; ``AWS_ENDPOINT_URL`` names another store
than AWS's.
"""

import json
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import tensorstore as ts

from fseg_jax.files.exchange import PARTIAL, WHOLE
from fseg_jax.files.futures import convert_errors, wait_for_store
from fseg_jax.files.zarr import name_last_file

_MAX_REQUESTS = 32  # to a bucket, at the same time
_STAGED_AGE = 24 * 3600  # seconds after which staged outputs in a bucket are taken for a dead run's
_PATIENCE = {"max_retries": 8, "initial_delay": "500ms", "max_delay": "16s"}  # a minute in all
RETRIES = dict.fromkeys(("s3_request_retries", "gcs_request_retries", "http_request_retries"), _PATIENCE)
_CONTEXT = ts.Context(RETRIES)
_STAGED = re.compile(rf"\..*\.([0-9a-f]{{8}})[0-9a-f]{{8}}{re.escape(PARTIAL)}/")


def is_bucket(url: str) -> bool:
    """Return whether a text is an address in a cloud store, not a path."""
    return urlsplit(url).scheme in ("s3", "gs")


def make_bucket_spec(url: str) -> dict[str, Any]:
    """Make tensorstore's ``kvstore`` spec for an address, with S3's settings from the environment.

    ``http://`` and ``https://`` are for reading only.
    """
    parts = urlsplit(url)
    if parts.scheme.startswith("http"):
        return {"driver": "http", "base_url": f"{parts.scheme}://{parts.netloc}", "path": parts.path}
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
        if os.environ.get("AWS_ACCESS_KEY_ID"):  # tensorstore then looks for credentials nowhere else
            spec |= {"aws_credentials": {"type": "environment"}}
    return spec


class Bucket:
    """A folder in a bucket. It has no locks: two runs of the same settings write the same.

    Outputs that replace others are first staged: written whole below a hidden key. Then an object
    ``.NAME.json.whole`` that lists them decides; from then on ``recover`` can copy them to their own keys. A
    reader who waits for the record sees the old outputs first. Then there is no record, while new outputs are
    copied and old ones deleted. Then the reader sees the new ones.

    Attributes:
        url: The address of the folder.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        with convert_errors(self.url, "used"):
            opening = ts.KvStore.open(make_bucket_spec(self.url + "/"), context=_CONTEXT)
            (self._store,) = wait_for_store(self.url, opening)

    def read(self, key: str) -> bytes | None:
        """Read a key; return None where it does not exist."""
        return self.read_all([key]).get(key)

    def read_all(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Read many keys; leave out those that do not exist."""
        contents: dict[str, bytes] = {}
        with convert_errors(self.url, "read"):
            for start in range(0, len(keys), _MAX_REQUESTS):
                chunk = keys[start : start + _MAX_REQUESTS]
                results = wait_for_store(self.url, *(self._store.read(key) for key in chunk))
                contents |= {k: r.value for k, r in zip(chunk, results, strict=True) if r.state == "value"}
        return contents

    def list_keys(self, folder: str) -> list[str]:
        """List the keys directly below a folder, sorted."""
        return self._list_range(f"{folder}/", f"{folder}0")

    def find_present(self, keys: Sequence[str]) -> set[str]:
        """Return those of ``keys`` that exist."""
        with convert_errors(self.url, "read"):
            ranges = [ts.KvStore.KeyRange(name_last_file(key), f"{name_last_file(key)}\0") for key in keys]
            listings = wait_for_store(self.url, *(self._store.list(key_range) for key_range in ranges))
            return {key for key, listing in zip(keys, listings, strict=True) if listing}

    def write(self, key: str, data: bytes) -> None:
        """Write a key whole or not at all."""
        self._write_all([(key, data)], key)

    def create(self, key: str, data: bytes) -> bool:
        """Write a key unless it exists; return whether it was written."""
        where = f"{self.url}/{key}"
        with convert_errors(where):
            (before,) = wait_for_store(where, self._store.read(key))
            if before.state == "value":
                return False
            writing = self._store.write(key, data, if_equal=before.stamp.generation)
            (stamp,) = wait_for_store(where, writing)
        if not stamp.generation and self.read(key) is None:
            self.write(key, data)  # no other run was quicker: writing is refused, and this raises the reason
        return bool(stamp.generation)

    def delete(self, key: str) -> None:
        """Delete a key, if it exists."""
        self._write_all([(key, None)], key)

    @contextmanager
    def open_workplace(self, name: str, *, wait: bool = False) -> Iterator[Path]:
        """Make a temporary folder on disk for the outputs called ``name``."""
        with tempfile.TemporaryDirectory(prefix="fseg-") as folder:
            yield Path(folder)

    def publish(self, folder: Path, keys: Sequence[str]) -> None:
        """Replace ``keys`` with what a folder holds; the first key, the record, appears last."""
        record, *others = keys
        files = [path.relative_to(folder).as_posix() for key in others for path in _list_files(folder / key)]
        files.append(record)
        decided = f".{record}{WHOLE}"
        present = self.read_all([record, decided])
        if not present:  # there are no old outputs to lose
            self._place(keys, files, lambda key: (folder / key).read_bytes())
            return
        staged = f".{record}.{int(time.time()):08x}{secrets.token_hex(4)}{PARTIAL}/"
        self._write_all((staged + key, (folder / key).read_bytes()) for key in files)
        content = {"staged": staged, "keys": list(keys), "files": files}
        self.write(decided, json.dumps(content).encode())
        self._place(keys, files, lambda key: (folder / key).read_bytes())
        self.delete(decided)
        self._delete_staged(staged)
        if decided in present and (before := _parse_staged(present[decided])) is not None:
            self._delete_staged(before.folder)

    def _place(self, keys: Sequence[str], files: Sequence[str], data: Callable[[str], bytes | None]) -> None:
        """Write files, the record last, and delete all others at and below ``keys``."""
        record = data(files[-1])
        if record is None:  # another run has just placed them
            return
        if self.read(keys[0]) not in (None, record):
            self.delete(keys[0])
        contents = ((key, data(key)) for key in files[:-1])
        self._write_all((key, content) for key, content in contents if content is not None)
        outdated = {key for name in keys[1:] for key in (name, *self.list_keys(name))} - {*files}
        self._write_all((key, None) for key in sorted(outdated))
        self.write(keys[0], record)

    def _write_all(self, items: Iterable[tuple[str, bytes | None]], error_key: str = "") -> None:
        """Write keys, several at the same time; delete those with None. Errors name ``error_key``."""
        where = f"{self.url}/{error_key}".rstrip("/")
        remaining = iter(items)
        with convert_errors(where):
            while chunk := list(islice(remaining, _MAX_REQUESTS)):
                size = sum(len(data or b"") for _, data in chunk)
                wait_for_store(where, *(self._store.write(key, data) for key, data in chunk), size=size)

    def _list_range(self, first: str, after: str) -> list[str]:
        with convert_errors(self.url, "read"):
            (keys,) = wait_for_store(self.url, self._store.list(ts.KvStore.KeyRange(first, after)))
        return sorted(key.decode() for key in keys)

    def _read_below(self, folder: str, key: str) -> bytes | None:
        return self.read(folder + key)

    def _delete_staged(self, staged: str) -> None:
        """Delete staged outputs, once no object lists them."""
        with convert_errors(self.url):
            wait_for_store(self.url, self._store.delete_range(ts.KvStore.KeyRange(staged, f"{staged[:-1]}0")))

    def make_spec(self, key: str) -> dict[str, Any]:
        """Make tensorstore's ``kvstore`` spec for the folder at a key."""
        return make_bucket_spec(f"{self.url}/{key}/")

    def recover(self) -> None:
        """Remove what killed runs left unfinished, and finish the exchanges that they had decided on."""
        hidden = self._list_range(".", "/")
        for decided in (key for key in hidden if key.endswith(WHOLE) and "/" not in key):
            staged = _parse_staged(self.read(decided) or b"")
            if staged is None or {staged.folder + key for key in staged.files} - {*hidden}:
                continue  # another run has just finished it
            self._place(staged.keys, staged.files, partial(self._read_below, staged.folder))
            self.delete(decided)
            self._delete_staged(staged.folder)
        start_times = {match[0]: int(match[1], 16) for key in hidden if (match := _STAGED.match(key))}
        for folder in (key for key, start in start_times.items() if start < time.time() - _STAGED_AGE):
            self._delete_staged(folder)


class _Staged(NamedTuple):
    """Outputs that are staged to replace others.

    Attributes:
        folder: The hidden key below which they are staged.
        keys: The outputs that they replace, the record first.
        files: The files that are staged, the record last.
    """

    folder: str
    keys: list[str]
    files: list[str]


def _parse_staged(data: bytes) -> _Staged | None:
    """Parse the object that lists staged outputs; return None where it is damaged."""
    try:
        content = json.loads(data)
        staged = _Staged(str(content["staged"]), list(content["keys"]), list(content["files"]))
    except (ValueError, LookupError, TypeError):
        return None
    return staged if _STAGED.fullmatch(staged.folder) and staged.keys and staged.files else None


def _list_files(path: Path) -> list[Path]:
    """List a file, or all files of a folder, a group's ``zarr.json`` after what the group holds."""
    if path.is_file():
        return [path]
    return sorted((p for p in path.rglob("*") if p.is_file()), key=lambda p: (-len(p.parts), p))
