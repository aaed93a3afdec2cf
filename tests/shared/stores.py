"""An S3 server and a web server on 127.0.0.1, for what is written to buckets and read at addresses."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

SECRET = "secret-of-the-test"


@contextmanager
def serve_bucket(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[str]:
    """Serve an empty bucket by S3, and yield its address; the environment has its endpoint and a key."""
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    boto3 = pytest.importorskip("boto3")
    from moto.moto_api._internal import moto_api_backend

    moto_api_backend.reset()  # moto keeps its buckets until the process ends
    s3 = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    host, port = s3.get_host_and_port()
    for variable, value in (
        ("AWS_ACCESS_KEY_ID", "of-the-test"),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
    ):
        monkeypatch.setenv(variable, value)
    boto3.client("s3").create_bucket(Bucket=name)
    try:
        yield f"s3://{name}"
    finally:
        s3.stop()


def upload(place: Path, address: str) -> str:
    """Put a file, or a folder's files, into a bucket; return the address."""
    import boto3

    bucket, _, key = address.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    for file in sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]:
        below = f"/{file.relative_to(place).as_posix()}" if place.is_dir() else ""
        client.put_object(Bucket=bucket, Key=key + below, Body=file.read_bytes())
    return address


class WebServer(ThreadingHTTPServer):
    """A server of a folder's files.

    Attributes:
        url: Its address.
        ranges: Whether it sends parts of files.
        asked: The ranges that it was asked for, as (first, last) byte, by path.
        heads: The paths that it was asked about without content.
    """

    daemon_threads = True

    def __init__(self, folder: Path, *, ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.ranges = folder, ranges
        self.asked: dict[str, list[tuple[int, int]]] = {}
        self.heads: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.server.heads.append(self.path)
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        file = self.server.folder / unquote(self.path).lstrip("/")
        if not file.is_file() or self.headers.get("If-Match", "").startswith("W/"):
            self.send_response(412 if file.is_file() else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = file.read_bytes()
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if match and self.server.ranges:
            first = int(match[1]) if match[1] else max(0, len(content) - int(match[2]))
            last = min(int(match[2]), len(content) - 1) if match[1] and match[2] else len(content) - 1
            self.server.asked.setdefault(self.path, []).append((first, last))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            content = content[first : last + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", 'W/"weak"')
        self.end_headers()
        if with_body:
            self.wfile.write(content)


@contextmanager
def serve_folder(folder: Path, *, ranges: bool = True) -> Iterator[WebServer]:
    """Serve a folder's files by HTTP."""
    with WebServer(folder, ranges=ranges) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
