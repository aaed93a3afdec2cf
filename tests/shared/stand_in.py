"""A hub of one's own on 127.0.0.1, which speaks as much of the hub's protocol as its client asks for."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class StandIn:
    """What the hub holds, whom it lets in, and what it was asked."""

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)  # by repository and name
    gated: set[str] = field(default_factory=set)
    members: set[str] = field(default_factory=set)  # tokens with access
    tokens: set[str] = field(default_factory=set)  # tokens that are known
    cut: bool = False  # whether answers stop half-way
    damage: int = 0  # how many answers to come have a flipped byte
    asked: list[tuple[str, str]] = field(default_factory=list)
    content: str = ""  # what it calls a file's content, where that is set: else its SHA-256
    commit: str = COMMIT
    fails: int = 0  # answers every request with this status, where it is set

    def answer(self, path: str, token: str | None) -> tuple[int, dict[str, str], bytes]:
        if self.fails:
            return self.fails, {}, b""
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

    def fetched(self) -> list[str]:
        return [path for method, path in self.asked if method == "GET"]


@contextmanager
def running(hub: StandIn) -> Iterator[StandIn]:
    """The hub behind an address, while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            hub.asked.append((self.command, self.path))
            token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
            code, headers, data = hub.answer(self.path, token)
            if self.command == "GET" and hub.damage and data:
                hub.damage -= 1
                data = data[:-1] + bytes([data[-1] ^ 1])
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data[: len(data) // 2] if hub.cut else data)
            self.close_connection = self.close_connection or hub.cut

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
