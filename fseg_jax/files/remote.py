"""Files in a bucket or behind http(s), read in ranges: what is read is kept on disk (``block_cache``).

Credentials for ``s3://`` are found as AWS's own tools find them, and ``AWS_ENDPOINT_URL`` names another store
than AWS's; without credentials a bucket is read as a public one. Those for ``gs://`` are Google's own
(``GOOGLE_APPLICATION_CREDENTIALS``; ``GOOGLE_SKIP_SIGNATURE=true`` for a public bucket).
"""

import hashlib
import io
import math
import os
from collections import OrderedDict
from datetime import timedelta
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from fseg_jax.errors import InputError
from fseg_jax.files.addresses import RemotePath
from fseg_jax.files.block_cache import BlockCache
from fseg_jax.files.downloads import find_cache_folder
from fseg_jax.files.once import Once

_BLOCK = 1 << 20  # bytes that are asked for at once
_IN_MEMORY = 16  # blocks of a file
_CACHE_GB = 4.0  # kept on disk, where FSEG_REMOTE_CACHE_GB does not say
_RETRIES: dict[str, Any] = {"max_retries": 8, "retry_timeout": timedelta(seconds=60)}
_CLIENT = {"connect_timeout": "10s", "timeout": "60s", "allow_http": True}


class RemoteFile(io.RawIOBase):
    """A remote file, open for reading. Several threads may call ``read_at`` and ``fetch`` at once.

    Attributes:
        path: Its address.
        size: Its bytes.
    """

    def __init__(self, path: RemotePath) -> None:
        """Open a file.

        Raises:
            InputError: It is not there, cannot be read, or the package obstore is not installed.
        """
        super().__init__()
        self.path = path
        self.name = str(path)
        store, key = _open_store(path)
        self._store, self._key = store, key
        try:
            head = store.head(key)
        except Exception as error:
            raise _report(path, error) from None
        self.size = int(head["size"])
        tag = head["e_tag"]
        self._version = tag if tag and not tag.startswith("W/") else None  # weak ones match nothing
        stamp = f"{path}\n{self.size}\n{head['e_tag']}\n{head['last_modified']}"
        self._cached = hashlib.sha256(stamp.encode()).hexdigest()[:32]
        self._cache = BlockCache(find_cache_folder() / "remote", _read_limit())
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._once: Once[int, bytes] = Once(self._find, self._keep)
        self._position = 0

    def read_at(self, offset: int, count: int) -> bytes:
        """Read ``count`` bytes from a place; fewer where the file ends.

        Raises:
            InputError: The store does not answer, or holds another file now.
        """
        end = min(offset + count, self.size)
        if end <= offset:
            return b""
        first = offset // _BLOCK
        indices = range(first, (end - 1) // _BLOCK + 1)
        # Read from memory, disk or the store, which is asked for a block once.
        blocks = self._once.get(indices, lambda wanted: map(self._load_block, wanted))
        return b"".join(blocks[index] for index in indices)[offset - first * _BLOCK : end - first * _BLOCK]

    def fetch(self, offset: int, count: int) -> bytes:
        """Read bytes from a place, and keep nothing; fewer where the file ends.

        Raises:
            InputError: The store does not answer, or holds another file now.
        """
        import obstore

        end = min(offset + count, self.size)
        if end <= offset:
            return b""
        wanted: obstore.GetOptions = {"range": (offset, end)}
        if self._version:
            wanted["if_match"] = self._version
        try:
            content = bytes(obstore.get(self._store, self._key, options=wanted).bytes())
        except Exception as error:
            raise _report(self.path, error) from None
        if len(content) != end - offset:
            raise InputError(
                f"{self.path}: {end - offset} bytes were asked for, and {len(content)} came: try again"
            )
        return content

    def _find(self, index: int) -> bytes | None:
        if index in self._blocks:
            self._blocks.move_to_end(index)
        return self._blocks.get(index)

    def _keep(self, index: int, block: bytes) -> None:
        self._blocks[index] = block
        if len(self._blocks) > _IN_MEMORY:
            self._blocks.popitem(last=False)

    def _load_block(self, index: int) -> bytes:
        start = index * _BLOCK
        size = min(_BLOCK, self.size - start)
        block = self._cache.read(self._cached, index, size)
        if block is None:
            block = self.fetch(start, size)
            self._cache.write(self._cached, index, block)
        return block

    def readinto(self, buffer: Any) -> int:
        """Read from the position on."""
        content = self.read_at(self._position, len(buffer))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def seekable(self) -> bool:
        """Return that its position can be moved."""
        return True


def _open_store(path: RemotePath) -> tuple[Any, str]:
    """Open the bucket or server of an address; return it, and the key of the file in it."""
    settings = tuple((k, v) for k, v in sorted(os.environ.items()) if k.startswith(("AWS_", "GOOGLE_")))
    try:
        store = _connect(path.scheme, path.host, settings)
    except ImportError:
        raise InputError(
            f"{path}: reading slides from there needs the package obstore: pip install 'fseg-jax[remote]'"
        ) from None
    except Exception as error:
        raise _report(path, error) from None
    # A server's store quotes keys itself.
    return store, unquote(path.key) if path.scheme.startswith("http") else path.key


@lru_cache(maxsize=64)
def _connect(scheme: str, host: str, settings: tuple[tuple[str, str], ...]) -> Any:
    """Open a bucket or server once for each state of the environment: connections to it stay open."""
    from obstore.store import GCSStore, HTTPStore, S3Store

    common: dict[str, Any] = {"retry_config": _RETRIES, "client_options": _CLIENT}
    if scheme == "gs":
        return GCSStore(host, **common)
    if scheme == "s3":
        return S3Store(host, **common, **_configure_s3())
    return HTTPStore(f"{scheme}://{host}", **common)


def _configure_s3() -> dict[str, Any]:
    """Find S3's settings and credentials."""
    settings: dict[str, Any] = {}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        settings["endpoint"] = endpoint
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        settings["region"] = region
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return settings
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return {**settings, "credential_provider": Boto3CredentialProvider()}
    except ValueError:  # there are none
        return {**settings, "skip_signature": True}


def _read_limit() -> int:
    """Read how many bytes may be kept on disk.

    Raises:
        InputError: ``FSEG_REMOTE_CACHE_GB`` is no number.
    """
    text = os.environ.get("FSEG_REMOTE_CACHE_GB") or str(_CACHE_GB)
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 <= limit < 1e6:
        raise InputError(f"FSEG_REMOTE_CACHE_GB={text}: must be a number of gigabytes, or 0 to keep nothing")
    return int(limit * 1e9)


def _report(path: RemotePath, error: Exception) -> InputError:
    """Make the error of one line for what a store answered; its answers are long."""
    kind = type(error).__name__
    if isinstance(error, FileNotFoundError) or kind == "NotFoundError":
        return InputError(f"{path}: there is no such file")
    if kind in ("PermissionDeniedError", "UnauthenticatedError") or isinstance(error, PermissionError):
        return InputError(f"{path}: access is denied; look at the credentials for it, or give public access")
    if kind == "PreconditionError":
        return InputError(f"{path}: was replaced while it was read; run it again")
    if kind == "NotSupportedError":
        return InputError(f"{path}: its server does not send parts of files: download it")
    lines = str(error).splitlines() or [kind]
    return InputError(f"{path}: cannot be read ({lines[0].rpartition(' - ')[2].strip()[:200]})")
