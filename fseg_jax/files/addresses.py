"""Addresses of files in a bucket or behind http(s), beside paths on disk."""

import re
from pathlib import Path, PosixPath

from fseg_jax.errors import InputError

_SCHEME = re.compile(r"(s3|gs|https?):/+", re.IGNORECASE)
# Without a user; a password that holds a slash ends it at a colon.
_HOST = re.compile(r"(?:[^@:\[\]]+|\[[0-9a-f:.]+\])(?::\d+)?", re.IGNORECASE)


class RemotePath(PosixPath):
    """The address of a file, as a path: it has a name, a suffix and a parent, but is not on a disk.

    >>> str(RemotePath("s3://bucket/scans/a.svs").with_suffix(".tif"))
    's3://bucket/scans/a.tif'
    """

    def __str__(self) -> str:
        scheme, _, rest = super().__str__().partition(":/")
        return f"{scheme}://{rest}"

    @property
    def scheme(self) -> str:
        """``s3``, ``gs``, ``http`` or ``https``."""
        return str(self).partition(":")[0]

    @property
    def host(self) -> str:
        """The bucket, or the server with its port."""
        return str(self).split("/")[2]

    @property
    def key(self) -> str:
        """The object's name in the bucket, or the path on the server."""
        return "/".join(str(self).split("/")[3:])


def locate(place: str | Path) -> Path:
    """Return a ``RemotePath`` for an address at ``s3://``, ``gs://`` or ``https://``, or a path on disk.

    A ``Path`` of an address, which has lost a slash, is taken for it too.

    Raises:
        InputError: The address holds a password or a signature, which records would show, or names no file.
    """
    text = str(place)
    match = _SCHEME.match(text)
    if match is None:
        return Path(place)
    scheme, rest = match[1].lower(), text[match.end() :]
    host, _, key = rest.partition("/")
    has_query = scheme.startswith("http") and "?" in rest
    if has_query or (host and not _HOST.fullmatch(host)):
        name = key.partition("?")[0].rpartition("/")[2]
        raise InputError(
            f"{scheme}://…/{name}: an address with a password or a query, such as a signature, is not read, "
            "since it would be in the results; download the file, or give s3:// or gs://"
        )
    if not host or not key.strip("/"):
        raise InputError(f"{scheme}://{rest}: names no file; an address is {scheme}://HOST/PATH")
    return RemotePath(f"{scheme}:/{rest}")


def is_address(place: str | Path) -> bool:
    """Return whether a text, or a path, is an address and not a path on disk."""
    return _SCHEME.match(str(place)) is not None
