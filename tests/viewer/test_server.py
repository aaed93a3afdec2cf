"""Access to the server: nothing without the token, nothing outside the folder."""

import asyncio
import base64
import html
import http.client
import json
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from contextlib import suppress
from io import BytesIO
from urllib.parse import urlsplit

import pytest
from PIL import Image
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import WebSocketClosedError, websocket_connect

from fseg_jax import cli
from fseg_jax.cli.view import check_packages
from fseg_jax.errors import InputError
from fseg_jax.process import STOPPED, set_verbosity, stop
from fseg_jax.viewer.server import run_in_this_loop

PATCH = '{"msgid": "1", "msgtype": "PATCH-DOC"}'
EVENT = '{"events": [{"kind": "ModelChanged", "model": {"id": "none"}, "attr": "x", "new": 1}]}'
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
    """Request a path; return status, body and headers."""
    parts = urlsplit(url)
    request = urllib.request.Request(f"{parts.scheme}://{parts.netloc}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def make_cookie(url: str) -> dict[str, str]:
    """Make the cookie header of the token in the address."""
    parts = urlsplit(url)
    return {"Cookie": f"fseg-{parts.port}={parts.query.removeprefix('token=')}"}


def test_nothing_without_the_secret(url):
    wrong = make_cookie(url.replace("token=", "token=x"))
    for path in OPEN_PATHS:
        assert fetch(url, path)[0] == 403
        assert fetch(url, path, **wrong)[0] == 403
        assert fetch(url, f"{path}?token=wrong")[0] == 403
    assert fetch(url, "/", **make_cookie(url))[0] == 200


def test_the_secret_becomes_a_cookie(url):
    parts = urlsplit(url)
    connection = socket.create_connection(("127.0.0.1", parts.port))
    connection.sendall(f"GET /?{parts.query} HTTP/1.0\r\n\r\n".encode())
    answer = connection.makefile("rb").read().decode().lower()
    connection.close()
    assert " 302 " in answer.splitlines()[0] and "location: /\r\n" in answer
    assert "httponly" in answer and "samesite=lax" in answer
    _, page, _ = fetch(url, "/", **make_cookie(url))
    assert parts.query.removeprefix("token=").encode() not in page
    token = re.search(rb'"token":"([^"]+)"', page)
    assert token and b"fseg-" not in base64.urlsafe_b64decode(token[1].split(b".")[0] + b"==")


def test_websockets_need_the_secret_and_the_pages_own_address(url):
    parts = urlsplit(url)

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
    assert asyncio.run(connect(**make_cookie(url), Origin="http://evil.example")) == 403


def test_it_listens_on_this_machine_only(url):
    assert urlsplit(url).hostname == "127.0.0.1"
    other = socket.gethostbyname(socket.gethostname())
    if other.startswith("127."):
        pytest.skip("this machine has no other address")
    with pytest.raises(OSError):
        socket.create_connection((other, urlsplit(url).port), timeout=5).close()


def test_files_of_the_folder_and_no_others(url, out):
    cookie = make_cookie(url)
    (out.parent / "secret.txt").write_text("no")
    (out / "link.txt").symlink_to(out.parent / "secret.txt")
    for path in (
        *("../secret.txt", "..%2fsecret.txt", "%2e%2e/secret.txt", "a/../../secret.txt", "link.txt", ""),
        *("/etc/passwd", "%2fetc%2fpasswd", "none.txt", ".tissue.view.lock", "..", "%00"),
    ):
        assert fetch(url, f"/files/{path}", **cookie)[0] == 404, path
    status, data, headers = fetch(url, "/files/tissue.csv", **cookie)
    assert status == 200 and data == (out / "tissue.csv").read_bytes()
    assert "attachment" in headers["Content-Disposition"]
    status, data, _ = fetch(url, "/files/tissue.ome.zarr", **cookie)
    with zipfile.ZipFile(BytesIO(data)) as archive:
        stored = archive.read("tissue.ome.zarr/zarr.json")
        assert stored == (out / "tissue.ome.zarr" / "zarr.json").read_bytes() and archive.testzip() is None


def test_tiles(url):
    cookie = make_cookie(url)
    for path, size in (
        ("/tile/tissue/0/0/0", 512),
        ("/labels/tissue/0/0/0?hide=1,2", 512),
        ("/patch/tissue/3", 64),
    ):
        status, data, headers = fetch(url, path, **cookie)
        assert status == 200 and Image.open(BytesIO(data)).size == (size, size)
        assert headers["Cache-Control"].startswith("private")
    assert fetch(url, "/tile/tissue/9/0/0", **cookie)[0] == 204
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
        assert fetch(url, path, **cookie)[0] == 404, path


def parse_policy(headers: dict) -> dict[str, list[str]]:
    """Parse the Content-Security-Policy."""
    parts = (part.split() for part in headers["Content-Security-Policy"].split("; "))
    return {name: values for name, *values in parts}


def test_every_answer_says_what_it_may_be_used_for(url):
    cookie = make_cookie(url)
    for path in (
        *OPEN_PATHS,
        "/files/tissue.csv",
        "/files/tissue.ome.zarr",
        "/tile/tissue/99/0/0",
        "/?slide=x",
    ):
        for who in (cookie, {}):
            status, _, headers = fetch(url, path, **who)
            assert headers["X-Content-Type-Options"] == "nosniff", path
            assert headers["X-Frame-Options"] == "DENY"
            assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
            rules = parse_policy(headers)
            assert rules["frame-ancestors"] == rules["default-src"] == rules["base-uri"] == ["'none'"]
            assert ("script-src" in rules) == (path == "/" and status == 200)


def test_the_page_runs_no_script_but_its_own(url):
    """Every script bears the nonce, which is new for each request."""
    nonces = set()
    for _ in range(2):
        _, page, headers = fetch(url, "/", **make_cookie(url))
        nonce, functions = parse_policy(headers)["script-src"]
        assert re.fullmatch(r"'nonce-[\w-]{20,}'", nonce)
        assert functions == "'unsafe-eval'"  # WebGL's, of Bokeh
        nonces.add(nonce)
        scripts = re.findall(r"<script[^>]*>", page.decode())
        assert len(scripts) >= 4
        value = nonce.removeprefix("'nonce-").rstrip("'")
        assert all(f'nonce="{value}"' in script for script in scripts)
        assert not any("mathjax" in script for script in scripts)  # half of what the page would load
        assert not re.search(r"\son[a-z]+\s*=", page.decode())  # no script in an element
    assert len(nonces) == 2


@pytest.mark.parametrize("name", ["<img src=x onerror=fail()>", "a'b\"c&amp;d", "</title><script>fail()<"])
def test_a_slides_name_is_no_html(out, run_in_loop, name):
    from fseg_jax.pipeline.clicks import SeedSettings
    from fseg_jax.viewer.folder import Folder
    from fseg_jax.viewer.server import Server

    for path in list(out.iterdir()):
        name = name.replace("/", "\N{DIVISION SLASH}")
        path.rename(out / path.name.replace("tissue", name, 1))

    def begin() -> tuple[Folder, Server]:
        folder = Folder(out, None, SeedSettings())
        server = Server(folder, name, 0)
        server.start()
        return folder, server

    folder, server = run_in_loop(begin)
    _, page, _ = fetch(server.url, "/", **make_cookie(server.url))
    title = re.search(r"<title>(.*?)</title>", page.decode(), re.DOTALL)[1]
    assert html.unescape(title) == f"{name} · fseg" and "<" not in title and name.encode() not in page
    run_in_loop(server.stop)
    run_in_loop(folder.close)


def test_a_page_is_filled_by_the_loop_whatever_thread_bokeh_asks_in(run_in_loop):
    """Bokeh 3.10 calls the function in another thread."""
    calls = []

    async def ask() -> None:
        fill = run_in_this_loop(lambda document: calls.append((document, threading.current_thread())))
        fill("here")
        await asyncio.to_thread(fill, "there")
        calls.append(("loop", threading.current_thread()))

    run_in_loop(ask)
    assert [name for name, _ in calls] == ["here", "there", "loop"]
    assert len({thread for _, thread in calls}) == 1


def test_a_slide_that_cannot_be_shown_is_a_page_that_says_why(out, run_in_loop, start_server):
    shutil.copytree(out / "tissue.ome.zarr", out / "<b>.ome.zarr")
    (out / "<b>.json").write_text("{}")

    folder, server = start_server()
    status, page, headers = fetch(server.url, "/?slide=%3Cb%3E", **make_cookie(server.url))
    assert status == 200 and b"&lt;b&gt;.json: is no record of fseg segment" in page and b"<b>" not in page
    assert "script-src" in parse_policy(headers)
    run_in_loop(server.stop)
    run_in_loop(folder.close)


@pytest.mark.parametrize(
    "number", ["-1", "1e3", "0x1", "1.0", "NaN", "9" * 12, "9" * 30, "9" * 5000, "%D9%A3", "+1", "%201", ""]
)
def test_absurd_numbers_are_not_found(url, number):
    cookie = make_cookie(url)
    for path in (
        *(f"/tile/tissue/{number}/0/0", f"/tile/tissue/1/{number}/0", f"/tile/tissue/1/0/{number}"),
        *(f"/labels/tissue/{number}/0/0", f"/labels/tissue/0/0/{number}", f"/patch/tissue/{number}"),
        *([f"/labels/tissue/0/0/0?hide={number}"] if number in ("1e3", "0x1", "NaN", "9" * 5000) else []),
    ):
        assert fetch(url, path, **cookie)[0] == 404, path[:60]
    if number.isdigit() and len(number) < 4000:  # there is no such cluster to hide
        assert fetch(url, f"/labels/tissue/0/0/0?hide={number}", **cookie)[0] == 200


def test_damage_is_not_found(url, out, caplog):
    """A damaged chunk of the labels gives 404."""
    for path in (out / "tissue.ome.zarr" / "labels").rglob("c/0/0"):
        path.write_bytes(b"none" * 40)
    assert fetch(url, "/labels/tissue/0/0/0", **make_cookie(url))[0] == 404
    assert "Traceback" not in caplog.text


def test_what_is_being_rendered_when_it_stops_is_waited_for(start_server, run_in_loop, monkeypatch):
    """OpenSlide crashes the process if a slide is closed while it is read."""
    events = []

    folder, server = start_server()
    picture, begun = folder.open("tissue").picture, threading.Event()
    close = picture.close

    def render_tile(*_: int) -> bytes:
        begun.set()
        time.sleep(0.5)
        events.append("read")
        return b""

    monkeypatch.setattr(picture, "render_tile", render_tile)
    monkeypatch.setattr(picture, "close", lambda: (events.append("closed"), close()))
    cookie = make_cookie(server.url)

    def ask() -> None:
        with suppress(OSError, http.client.HTTPException):  # it is not answered any more
            fetch(server.url, "/tile/tissue/1/0/0", **cookie)

    asking = threading.Thread(target=ask)
    asking.start()
    assert begun.wait(30)
    run_in_loop(lambda: (server.stop(), folder.close()))
    asking.join()
    assert events == ["read", "closed"]


def test_garbage_is_no_traceback(out, capsys):
    """Malformed requests and messages, with and without the token, are one line each, and it still serves."""

    def send(url: str, data: bytes) -> bytes:
        parts = urlsplit(url)
        with socket.create_connection(("127.0.0.1", parts.port), timeout=60) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            return connection.makefile("rb").read(60)

    async def talk(url: str, protocols: list[str], *messages: str | bytes, **headers: str) -> None:
        parts = urlsplit(url)
        given = {"Origin": f"http://{parts.netloc}", **make_cookie(url), **headers}
        with suppress(HTTPClientError, WebSocketClosedError, TimeoutError):
            line = await websocket_connect(
                HTTPRequest(f"ws://{parts.netloc}/ws", headers=given), subprotocols=protocols
            )
            for message in messages:
                await line.write_message(message, isinstance(message, bytes))
            while await asyncio.wait_for(line.read_message(), 0.3) is not None:
                pass

    statuses: list = []

    def pester(url: str) -> None:
        try:
            cookie = make_cookie(url)
            cookie_lines = f"Host: x\r\nCookie: {cookie['Cookie']}\r\n\r\n".encode()
            for data in (
                *(
                    b"\x16\x03\x01\x02\x00\x01\xfc\x03\x03",
                    b"\0\xff\r\n\r\n",
                    b"GET\r\n\r\n",
                    b"GET / HTTP/9\r\n\r\n",
                ),
                *(b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n", b"GET /?token=\xff HTTP/1.1\r\n\r\n"),
                *(
                    b"GET / HTTP/1.1\r\nCookie: \xff=\x01\r\n\r\n",
                    b"DELETE /files/x HTTP/1.1\r\n" + cookie_lines,
                ),
                *(
                    b"GET /static/%00 HTTP/1.1\r\n" + cookie_lines,
                    b"GET /files/%ff HTTP/1.1\r\n" + cookie_lines,
                ),
            ):
                send(url, data)
            for path in (
                "/?x=%ff&bokeh-token=junk&bokeh-session-id=junk",
                "/static/%00",
                "/files/" + "a" * 3000,
            ):
                assert fetch(url, path, **cookie)[0] in (200, 404)
            _, page, _ = fetch(url, "/", **cookie, **{"Bokeh-Session-Id": "junk"})
            token = re.search(r'"token":"([^"]+)"', page.decode())[1]
            junk = [base64.urlsafe_b64encode(t).decode().rstrip("=") for t in (b"{}", b'{"session_id": 3}')]
            for protocols in ([], ["x"], ["x", "y"], ["bokeh", "x"], *(["bokeh", t] for t in junk)):
                asyncio.run(talk(url, protocols))
            asyncio.run(talk(url, ["bokeh", token], Origin="http://evil.example"))
            for messages in (
                ["junk"],
                [b"\0\xff"],
                ["{}"],
                ["[" * 100_000],
                [PATCH, "{}", "3"],
                [PATCH, "{}", EVENT],
            ):
                asyncio.run(talk(url, ["bokeh", token], *messages))
            statuses.append(fetch(url, "/tile/tissue/0/0/0", **cookie)[0])
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    serving = sys.modules["fseg_jax.viewer.server"]
    begun: list = []
    from fseg_jax.pipeline.clicks import SeedSettings

    def tell(url: str) -> None:
        begun.append(threading.Thread(target=pester, args=(url,)))
        begun[0].start()

    set_verbosity(0)
    serving.serve(serving.Folder(out, None, SeedSettings()), "tissue", tell, port=None)
    begun[0].join()
    _, err = capsys.readouterr()
    assert statuses == [200]
    assert "Traceback" not in err and "  File " not in err
    assert err and all(line.startswith("fseg: ") for line in err.splitlines())


def test_a_signal_swallowed_while_it_starts_ends_it(out, monkeypatch):
    """Nothing is served, and the lock is released."""
    from fseg_jax.pipeline.clicks import SeedSettings
    from fseg_jax.viewer.folder import Folder
    from fseg_jax.viewer.server import serve
    from fseg_jax.viewer.session import SlideSession

    urls: list = []
    before = signal.signal(signal.SIGTERM, stop)

    def begin(session: SlideSession) -> None:
        with suppress(KeyboardInterrupt):  # as a callback does
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    monkeypatch.setattr(SlideSession, "start", begin)
    try:
        with pytest.raises(KeyboardInterrupt):
            serve(Folder(out, None, SeedSettings()), "tissue", urls.append, port=None)
        assert STOPPED.is_set() and urls == []
    finally:
        signal.signal(signal.SIGTERM, before)
        STOPPED.clear()
    SlideSession(out, "tissue", None, SeedSettings()).close()


def test_the_page_asks_nobody_else(url):
    _, page, _ = fetch(url, "/", **make_cookie(url))
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
        ([out, "--port", taken.getsockname()[1]], "cannot be used"),
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
    from fseg_jax.pipeline.clicks import SeedSettings
    from fseg_jax.viewer.session import SlideSession

    async def change():
        session = SlideSession(out, "tissue", None, SeedSettings())
        session.update_page_state(view={"x": 1, "y": 2, "scale": 3}, mode=1)
        session.close()

    asyncio.run(change())
    again = SlideSession(out, "tissue", None, SeedSettings())
    assert again.page_state == {"view": {"x": 1, "y": 2, "scale": 3}, "mode": 1}
    again.close()
    (out / "tissue.view.json").write_text(json.dumps([1]))
    damaged = SlideSession(out, "tissue", None, SeedSettings())
    assert damaged.page_state == {}
    damaged.close()


def test_a_slide_that_is_only_segmented(out, run_in_loop):
    from fseg_jax.pipeline.clicks import SeedSettings
    from fseg_jax.viewer.folder import Folder
    from fseg_jax.viewer.server import Server

    for path in out.glob("tissue.embeddings.*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    def begin() -> tuple[Folder, Server]:
        folder = Folder(out, None, SeedSettings())
        server = Server(folder, "tissue", 0)
        server.start()
        return folder, server

    folder, server = run_in_loop(begin)
    cookie = make_cookie(server.url)
    status, page, _ = fetch(server.url, "/", **cookie)
    assert status == 200 and b"Layers" in page and b"Export" not in page
    assert fetch(server.url, "/labels/tissue/0/0/0", **cookie)[0] == 200
    assert fetch(server.url, "/patch/tissue/0", **cookie)[0] == 404
    run_in_loop(server.stop)
    run_in_loop(folder.close)
