"""Where downloaded files are kept, and the one slide that can be fetched to try things on."""

import logging
import os
from pathlib import Path

import pooch

from fseg_jax.errors import InputError

TEST_SLIDE_URL = (
    "https://openslide.cs.cmu.edu/download/openslide-testdata/Aperio/CMU-1-Small-Region.svs"
)
TEST_SLIDE_SHA256 = "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7"


def cache_folder() -> Path:
    """The folder for downloads: ``$FSEG_CACHE``, or the system's usual place for caches."""
    return Path(os.environ.get("FSEG_CACHE") or pooch.os_cache("fseg_jax"))


def fetch_test_slide(url: str = TEST_SLIDE_URL) -> Path:
    """Fetch OpenSlide's test slide CMU-1-Small-Region.svs (CC0, 1.9 MB) unless it is here, checked by its hash."""
    pooch.get_logger().setLevel(logging.WARNING)
    try:
        path = pooch.retrieve(
            url,
            known_hash=f"sha256:{TEST_SLIDE_SHA256}",
            fname="CMU-1-Small-Region.svs",
            path=cache_folder() / "slides",
        )
    except ValueError as error:  # pooch's word for a wrong hash
        raise InputError(f"{url}: what came is not the test slide (its SHA-256 differs); try again") from error
    except OSError as error:  # requests' errors are OSErrors too
        raise InputError(
            f"{url}: cannot be fetched ({type(error).__name__}); without a network, run fseg demo without --slide"
        ) from error
    return Path(path)
