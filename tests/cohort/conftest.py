"""Cohorts that several files run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cohorts import write_codebook, write_slides
from skimage import data as pictures


@pytest.fixture(scope="session")
def manifest(tmp_path_factory) -> Path:
    """Four slides of 160 pixels at 1 µm."""
    return write_slides(tmp_path_factory.mktemp("slides"), pictures.immunohistochemistry(), 4, 160)


@pytest.fixture(scope="session")
def codebook(tmp_path_factory) -> Path:
    return write_codebook(tmp_path_factory.mktemp("codebook") / "c.safetensors")


@pytest.fixture(scope="session")
def finished(manifest, codebook, tmp_path_factory) -> Path:
    """A place where the four slides are done."""
    from cohorts import cohort

    place = tmp_path_factory.mktemp("finished") / "out"
    summary, _ = cohort(manifest, place, codebook)
    assert summary.done == 4 and not summary.failed
    return place


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket of a real S3 server on loopback, as an address."""
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    boto3 = pytest.importorskip("boto3")
    from moto.moto_api._internal import moto_api_backend

    moto_api_backend.reset()  # moto keeps its buckets as long as the process lives
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "of-the-test"),
        ("AWS_SECRET_ACCESS_KEY", "of-the-test"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
    ):
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="cohorts")
    try:
        yield "s3://cohorts"
    finally:
        running.stop()
