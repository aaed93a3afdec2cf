"""The server's door: nothing without the secret, nothing outside the folder."""

import asyncio
import base64
import json
import re
import shutil
import socket
import sys
import urllib.error
import urllib.request
import zipfile
from io import BytesIO
from urllib.parse import urlsplit

import pytest
from PIL import Image
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from fseg_jax import cli
from fseg_jax.cli.view import check_packages
from fseg_jax.errors import InputError

OPEN_PATHS = [
    "/",
    "/ws",
    "/autoload.js",
    "/static/js/bokeh.min.js",
    "/tile/tissue/0/0/0",
    "/labels/tissue/0/0/0",
]
OPEN_PATHS += ["/patch/tissue/0", "/files/tissue.png", "/nothing", "/metadata", "/favicon.ico"]


def fetch(url: str, path: str, **headers: str) -> tuple[int, bytes, dict]:
    parts = urlsplit(url)
    request = urllib.request.Request(f"{parts.scheme}://{parts.netloc}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def admitted(url: str) -> dict[str, str]:
    parts = urlsplit(url)
    return {"Cookie": f"fseg-{parts.port}={parts.query.removeprefix('token=')}"}


def test_nothing_without_the_secret(served):
    wrong = admitted(served.replace("token=", "token=x"))
    for path in OPEN_PATHS:
        assert fetch(served, path)[0] == 403
        assert fetch(served, path, **wrong)[0] == 403
        assert fetch(served, f"{path}?token=wrong")[0] == 403
    assert fetch(served, "/", **admitted(served))[0] == 200


def test_the_secret_becomes_a_cookie(served):
    parts = urlsplit(served)
    connection = socket.create_connection(("127.0.0.1", parts.port))
    connection.sendall(f"GET /?{parts.query} HTTP/1.0\r\n\r\n".encode())
    answer = connection.makefile("rb").read().decode().lower()
    connection.close()
    assert " 302 " in answer.splitlines()[0] and "location: /\r\n" in answer
    assert "httponly" in answer and "samesite=lax" in answer
    _, page, _ = fetch(served, "/", **admitted(served))
    assert parts.query.removeprefix("token=").encode() not in page
    token = re.search(rb'"token":"([^"]+)"', page)
    assert token and b"fseg-" not in base64.urlsafe_b64decode(token[1].split(b".")[0] + b"==")


def test_websockets_need_the_secret_and_the_pages_own_address(served):
    parts = urlsplit(served)

    async def connect(**headers: str) -> int:
        request = HTTPRequest(
            f"ws://{parts.netloc}/ws", headers={"Origin": f"http://{parts.netloc}", **headers}
        )
        try:
            await websocket_connect(request, subprotocols=["bokeh", "x"])
        except HTTPClientError as error:
            return error.code
        return 101

    assert asyncio.run(connect()) == 403
    assert asyncio.run(connect(**admitted(served), Origin="http://evil.example")) == 403


def test_it_listens_on_this_machine_only(served):
    assert urlsplit(served).hostname == "127.0.0.1"
    other = socket.gethostbyname(socket.gethostname())
    if other.startswith("127."):
        pytest.skip("this machine has no other address")
    with pytest.raises(OSError):
        socket.create_connection((other, urlsplit(served).port), timeout=5).close()


def test_files_of_the_folder_and_no_others(served, out):
    me = admitted(served)
    (out.parent / "secret.txt").write_text("no")
    (out / "link.txt").symlink_to(out.parent / "secret.txt")
    for path in (
        *("../secret.txt", "..%2fsecret.txt", "%2e%2e/secret.txt", "a/../../secret.txt", "link.txt", ""),
        *("/etc/passwd", "%2fetc%2fpasswd", "none.txt", ".tissue.view.lock", "..", "%00"),
    ):
        assert fetch(served, f"/files/{path}", **me)[0] == 404, path
    status, data, headers = fetch(served, "/files/tissue.csv", **me)
    assert status == 200 and data == (out / "tissue.csv").read_bytes()
    assert "attachment" in headers["Content-Disposition"]
    status, data, _ = fetch(served, "/files/tissue.ome.zarr", **me)
    with zipfile.ZipFile(BytesIO(data)) as archive:
        stored = archive.read("tissue.ome.zarr/zarr.json")
        assert stored == (out / "tissue.ome.zarr" / "zarr.json").read_bytes() and archive.testzip() is None


def test_tiles(served):
    me = admitted(served)
    for path, size in (
        ("/tile/tissue/0/0/0", 512),
        ("/labels/tissue/0/0/0?hide=1,2", 512),
        ("/patch/tissue/3", 64),
    ):
        status, data, headers = fetch(served, path, **me)
        assert status == 200 and Image.open(BytesIO(data)).size == (size, size)
        assert headers["Cache-Control"].startswith("private")
    assert fetch(served, "/tile/tissue/9/0/0", **me)[0] == 204
    for path in (
        *(
            "/tile/none/0/0/0",
            "/tile/tissue/0/1/0",
            "/tile/tissue/99/0/0",
            "/labels/none/0/0/0",
            "/patch/tissue/9999",
        ),
        *("/labels/tissue/0/0/0?hide=x", "/tile/..%2ftissue/0/0/0", "/?slide=none"),
    ):
        assert fetch(served, path, **me)[0] == 404, path


def test_the_page_asks_nobody_else(served):
    _, page, _ = fetch(served, "/", **admitted(served))
    for attribute in ('src="http', "src='http", 'href="http', "@import", "url(http"):
        assert attribute not in page.decode()
    assert b"/static/js/bokeh.min.js" in page


def test_mistakes_are_one_line(out, tmp_path, capsys):
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    taken = socket.create_server(("127.0.0.1", 0))
    (tmp_path / "empty").mkdir()
    for arguments, says in (
        ([tmp_path / "none"], "no such folder"),
        ([tmp_path / "empty"], "holds no slide to look at"),
        ([out, "--slide", "other"], "holds no slide 'other'; it holds tissue"),
        ([out, "--seeds", bad], "not valid JSON"),
        ([out, "--slides", tmp_path / "empty"], "holds no tissue.png"),
        ([out, "--classes", "one"], "1 classes: choose 2 to 9"),
        ([out, "--port", taken.getsockname()[1]], "cannot be had"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(["view", *map(str, arguments)])
        _, err = capsys.readouterr()
        assert (
            ended.value.code == 2 and says in err and err.count("\n") == 1 and err.startswith("fseg: error: ")
        )
    taken.close()
    assert not (out / "tissue.seeds.geojson").exists()


def test_a_missing_package_is_named(monkeypatch):
    # The package's attribute of that name is the command.
    monkeypatch.setattr(sys.modules["fseg_jax.cli.view"], "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the package bokeh: pip install 'fseg-jax\[view\]'"):
        check_packages()


def test_how_the_page_was_left_is_kept(out):
    from fseg_jax.cohort.seeds import SeedSettings
    from fseg_jax.viewer.opened import Opened

    async def change():
        opened = Opened(out, "tissue", None, SeedSettings())
        opened.keep_view(view={"x": 1, "y": 2, "scale": 3}, mode=1)
        opened.close()

    asyncio.run(change())
    again = Opened(out, "tissue", None, SeedSettings())
    assert again.view == {"view": {"x": 1, "y": 2, "scale": 3}, "mode": 1}
    again.close()
    (out / "tissue.view.json").write_text(json.dumps([1]))
    damaged = Opened(out, "tissue", None, SeedSettings())
    assert damaged.view == {}
    damaged.close()


def test_a_slide_that_is_only_segmented(out, in_loop):
    from fseg_jax.cohort.seeds import SeedSettings
    from fseg_jax.viewer.server import Folder, Server

    for path in out.glob("tissue.embeddings.*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    def begin() -> tuple[Folder, Server]:
        folder = Folder(out, None, SeedSettings())
        server = Server(folder, "tissue", 0)
        server.start()
        return folder, server

    folder, server = in_loop(begin)
    me = admitted(server.url)
    status, page, _ = fetch(server.url, "/", **me)
    assert status == 200 and b"Layers" in page and b"Export" not in page
    assert fetch(server.url, "/labels/tissue/0/0/0", **me)[0] == 200
    assert fetch(server.url, "/patch/tissue/0", **me)[0] == 404
    in_loop(server.stop)
    in_loop(folder.close)
