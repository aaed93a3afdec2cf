"""A stand-in for the Hugging Face hub on 127.0.0.1, with the part of its protocol that its client uses."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class StandInHub:
    """The files of the hub, who may read them, and the requests it got."""

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)  # by repository and name
    gated: set[str] = field(default_factory=set)  # repositories that only members read
    members: set[str] = field(default_factory=set)  # tokens with access
    tokens: set[str] = field(default_factory=set)  # tokens that are known
    truncates: bool = False  # whether answers stop half-way
    damaged_answers: int = 0  # how many answers to come have a flipped byte
    requests: list[tuple[str, str]] = field(default_factory=list)  # method and path
    content: str = ""  # the ETag of every file; empty: the file's SHA-256
    commit: str = COMMIT
    error_status: int = 0  # the status of every answer; 0: none

    def answer(self, path: str, token: str | None) -> tuple[int, dict[str, str], bytes]:
        if self.error_status:
            return self.error_status, {}, b""
        repo, _, rest = path.strip("/").removeprefix("datasets/").partition("/resolve/")
        commit = {"X-Repo-Commit": self.commit}
        if token is not None and token not in self.tokens | self.members:
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b""
        if repo not in self.files:
            return (404 if token else 401), {"X-Error-Code": "RepoNotFound"}, b""
        if repo in self.gated and token not in self.members:
            return (403 if token else 401), {"X-Error-Code": "GatedRepo", **commit}, b""
        data = self.files[repo].get(rest.partition("/")[2])
        if data is None:
            return 404, {"X-Error-Code": "EntryNotFound", **commit}, b""
        content = self.content or hashlib.sha256(data).hexdigest()
        return 200, {"ETag": f'"{content}"', **commit}, data

    def list_downloads(self) -> list[str]:
        return [path for method, path in self.requests if method == "GET"]


@contextmanager
def serve(hub: StandInHub) -> Iterator[StandInHub]:
    """Serve the hub at ``hub.url`` while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            hub.requests.append((self.command, self.path))
            token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
            code, headers, data = hub.answer(self.path, token)
            if self.command == "GET" and hub.damaged_answers and data:
                hub.damaged_answers -= 1
                data = data[:-1] + bytes([data[-1] ^ 1])
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data[: len(data) // 2] if hub.truncates else data)
            self.close_connection = self.close_connection or hub.truncates

        do_GET = do_HEAD = respond  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
