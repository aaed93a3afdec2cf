"""The slides, codebook, results and bucket that several test files share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cohorts import write_codebook, write_slides
from skimage import data as pictures
from stores import serve_bucket


@pytest.fixture(scope="session")
def manifest(tmp_path_factory) -> Path:
    """Write four slides of 160 × 160 pixels at 1 µm, and their manifest."""
    return write_slides(tmp_path_factory.mktemp("slides"), pictures.immunohistochemistry(), 4, 160)


@pytest.fixture(scope="session")
def codebook(tmp_path_factory) -> Path:
    return write_codebook(tmp_path_factory.mktemp("codebook") / "c.safetensors")


@pytest.fixture(scope="session")
def finished_cohort(manifest, codebook, tmp_path_factory) -> Path:
    """Run the four slides; return the place of their results."""
    from cohorts import run_in_process

    place = tmp_path_factory.mktemp("finished") / "out"
    summary, _ = run_in_process(manifest, place, codebook)
    assert summary.done == 4 and not summary.failed
    return place


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the address of an empty bucket on an S3 server on 127.0.0.1."""
    with serve_bucket(monkeypatch, "cohorts") as url:
        yield url
