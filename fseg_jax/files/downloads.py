"""Download files into a cache: any address, and the test slide of OpenSlide."""

import errno
import logging
import os
from pathlib import Path

import pooch

from fseg_jax.errors import InputError

TEST_SLIDE_URL = "https://openslide.cs.cmu.edu/download/openslide-testdata/Aperio/CMU-1-Small-Region.svs"
TEST_SLIDE_SHA256 = "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7"

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


def find_cache_folder() -> Path:
    """Return the folder for downloads: ``$FSEG_CACHE``, or the system's usual place for caches."""
    return Path(os.environ.get("FSEG_CACHE") or pooch.os_cache("fseg_jax"))


def fetch(url: str, folder: Path, *, sha256: str | None = None, otherwise: str) -> Path:
    """Download a file into a folder, under its own name, unless it is there already.

    Args:
        url: The address of the file.
        folder: Where it is kept.
        sha256: Its hash, which is checked where it is given.
        otherwise: What to do without a network, for the error message.

    Raises:
        InputError: The file cannot be downloaded or kept, or its hash differs. No part of it is left then.
    """
    pooch.get_logger().setLevel(logging.WARNING)
    try:
        path = pooch.retrieve(
            url, known_hash=sha256 and f"sha256:{sha256}", fname=url.rpartition("/")[2], path=folder
        )
    except ValueError as error:  # how pooch reports a wrong hash
        raise InputError(
            f"{url}: what came is not the file that is wanted (its SHA-256 differs): try again"
        ) from error
    except OSError as error:  # requests' errors are OSErrors too
        if is_disk_error(error):
            raise InputError(
                f"{folder}: cannot be written ({error.strerror}): free the disk, "
                "or set FSEG_CACHE to a folder with room"
            ) from error
        code = getattr(getattr(error, "response", None), "status_code", None)
        reason = f"HTTP {code}" if code else type(error).__name__
        raise InputError(f"{url}: cannot be fetched ({reason}); {otherwise}") from error
    return Path(path)


def fetch_test_slide(url: str = TEST_SLIDE_URL) -> Path:
    """Download OpenSlide's test slide, CMU-1-Small-Region.svs (CC0, 1.9 MB), unless it is in the cache.

    Raises:
        InputError: The slide cannot be downloaded or kept.
    """
    return fetch(
        url,
        find_cache_folder() / "slides",
        sha256=TEST_SLIDE_SHA256,
        otherwise="without a network, run fseg demo without --slide",
    )


def is_disk_error(error: BaseException) -> bool:
    """Return whether an error means that the disk is full, or that a folder cannot be written."""
    return isinstance(error, OSError) and error.errno in _DISK_ERRORS
