"""The page's server: one program on 127.0.0.1, one secret in its address, nothing fetched from elsewhere.

Who comes with the secret in the address gets it as a cookie; every request without either, be it for the
page, a tile, a script or the WebSocket, gets 403. The cookie's name has the port in it, as cookies do not.

Every answer says what it may be used for: nothing but the page runs a script, and the page none but those
that bear its nonce. (Bokeh makes functions of text, for WebGL, and style sheets: those must be allowed.)
"""

import asyncio
import hmac
import logging
import secrets
import signal
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlencode

from bokeh.document import Document
from bokeh.server.server import BaseServer
from bokeh.server.tornado import BokehTornado
from bokeh.server.views.autoload_js_handler import AutoloadJsHandler
from bokeh.server.views.doc_handler import DocHandler
from bokeh.server.views.metadata_handler import MetadataHandler
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.ioloop import IOLoop
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets
from tornado.web import HTTPError, OutputTransform, RequestHandler, StaticFileHandler

from fseg_jax.errors import InputError, explain, first_line
from fseg_jax.process import raise_if_stopped
from fseg_jax.viewer.folder import Folder
from fseg_jax.viewer.page import show
from fseg_jax.viewer.session import SlideSession

ADDRESS = "127.0.0.1"
PORT = 5006
_TILES_KEPT = 192 << 20  # bytes of rendered tiles
_PATCH_PIXELS = 132
_N = r"([0-9]{1,12})"  # a number in an address
_NO_SCRIPTS = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_PAGE = (  # with the page's nonce
    "default-src 'none'; script-src 'nonce-{}' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self' {}; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


_log = logging.getLogger(__name__)


class Server(BaseServer):
    """A server of a folder's slides; ``url`` is its address, secret included. Begins on ``start()``.

    ``port`` None takes 5006, or any that is free. Must be made where an asyncio loop runs. Raises
    ``InputError`` where the port is taken.
    """

    def __init__(self, folder: Folder, first: str, port: int | None = None) -> None:
        sockets = _bound(port)
        self._bound_port = sockets[0].getsockname()[1]
        token = secrets.token_urlsafe(24)
        self._renderer = renderer = _Renderer(folder)
        origins = [f"{host}:{self._bound_port}" for host in (ADDRESS, "localhost")]
        application = _Guarded(
            _on_this_loop(lambda document: show(document, folder, first)),
            token=token,
            cookie=f"fseg-{self._bound_port}",
            names=folder.names,
            extra_websocket_origins=origins,
            extra_patterns=[
                (rf"/tile/([^/]+)/{_N}/{_N}/{_N}", _SlideTile, {"renderer": renderer}),
                (rf"/labels/([^/]+)/{_N}/{_N}/{_N}", _LabelTile, {"renderer": renderer}),
                (rf"/patch/([^/]+)/{_N}", _Patch, {"renderer": renderer}),
                (r"/files/(.*)", _Files, {"path": str(folder.path.resolve())}),
            ],
            include_headers=["Host"],
            include_cookies=[],  # the secret is no part of the page
        )
        http = HTTPServer(application, max_buffer_size=64 << 20)
        http.add_sockets(sockets)
        super().__init__(IOLoop.current(), application, http)
        self.url = f"http://{ADDRESS}:{self._bound_port}/?token={token}"

    def stop(self, wait: bool = True) -> None:
        """Stop serving; when it returns no slide is read any more, and all can be closed."""
        super().stop(wait)
        self._renderer.close()


def serve(
    folder: Folder,
    name: str,
    tell: Callable[[str], None],
    *,
    port: int | None = None,
    seeds: Path | None = None,
) -> None:
    """Serve a folder's slides, ``name`` first, until interrupted; ``tell`` is given the address.

    ``seeds`` is a file to begin with. Raises ``InputError`` where the slide, the seeds or the port cannot be
    had.
    """
    _log_in_lines()

    async def run() -> None:
        server = None
        try:
            session = folder.open(name)
            if seeds:
                session.begin_with(seeds)
            server = Server(folder, name, port)
            server.start()
            if session.picture.notice:
                _log.warning(session.picture.notice)
            ended = asyncio.Event()
            with suppress(NotImplementedError):  # Windows interrupts the loop by itself
                for signal_ in (signal.SIGINT, signal.SIGTERM):  # until here they interrupt what is done
                    asyncio.get_running_loop().add_signal_handler(signal_, ended.set)
            raise_if_stopped()  # one may have been swallowed
            tell(server.url)
            await ended.wait()
        finally:
            if server:
                server.stop()
            folder.close()

    asyncio.run(run())


def _log_in_lines() -> None:
    """Have what the server's libraries log be lines: tracebacks, of what clients send too, only with -v."""
    for logger, level in (("tornado.access", logging.CRITICAL), ("bokeh", logging.ERROR)):
        logging.getLogger(logger).setLevel(level)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_in_one_line)


def _in_one_line(record: logging.LogRecord) -> bool:
    if record.name.split(".")[0] in ("asyncio", "bokeh", "tornado") and not _log.isEnabledFor(logging.INFO):
        error = record.exc_info[1] if record.exc_info else None
        text = " ".join(record.getMessage().split())[:200]
        record.msg = (
            f"page: {text}: {type(error).__name__}: {first_line(error)}" if error else f"page: {text}"
        )
        record.args, record.exc_info, record.exc_text, record.stack_info = None, None, None, None
    return True


def _on_this_loop(fill: Callable[[Document], None]) -> Callable[[Document], None]:
    """What fills a document, run by the loop that runs now: some versions of Bokeh call it in a thread, and
    slides belong to the loop's.
    """
    loop = asyncio.get_running_loop()

    async def filled(document: Document) -> None:
        fill(document)

    def run(document: Document) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run_coroutine_threadsafe(filled(document), loop).result()
        else:
            fill(document)

    return run


def _bound(port: int | None) -> list[Any]:
    try:
        return bind_sockets(PORT if port is None else port, ADDRESS)
    except OSError as error:
        if port is None:
            return bind_sockets(0, ADDRESS)
        raise InputError(f"--port {port}: cannot be had ({error.strerror}); choose another") from None


class _Guarded(BokehTornado):
    """Bokeh's application, for those who have the secret."""

    def __init__(self, page: Any, *, token: str, cookie: str, names: list[str], **options: Any) -> None:
        self._token, self._cookie, self._names = token, cookie, names
        super().__init__(page, **options)
        self.add_transform(_WithHeaders)

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        asked = [value.decode("latin-1") for value in request.query_arguments.get("token", [])]
        cookie = request.cookies.get(self._cookie)
        if any(self._is_it(value) for value in asked):
            if request.path == "/":
                options = {"name": self._cookie, "value": self._token}
                return self.get_handler_delegate(request, _Admit, options)
        elif not (cookie and self._is_it(cookie.value)):
            said = "403: open the address that fseg view printed, with its token"
            return self.get_handler_delegate(request, _Refused, {"status": 403, "said": said})
        slides = [value.decode("utf-8", "replace") for value in request.query_arguments.get("slide", [])]
        if request.path == "/" and set(slides) - set(self._names):
            said = "404: there is no such slide"
            return self.get_handler_delegate(request, _Refused, {"status": 404, "said": said})
        if "\0" in unquote(request.path):
            return self.get_handler_delegate(request, _Refused, {"status": 404, "said": "404: not found"})
        if request.path == "/":  # what else Bokeh would read, such as a session's name, is for its own server
            asked_for = {"slide": [name.encode() for name in slides[:1]]} if slides else {}
            request.arguments = request.query_arguments = asked_for
            request.headers.pop("Bokeh-Session-Id", None)
        return super().find_handler(request, **kwargs)

    def get_handler_delegate(
        self, request: HTTPServerRequest, target_class: Any, *args: Any, **kw: Any
    ) -> Any:
        if target_class is DocHandler:
            target_class = _Document
        elif target_class in (
            AutoloadJsHandler,
            MetadataHandler,
        ):  # for pages of others, which have none of it
            options = {"status": 404, "said": "404: not found"}
            return super().get_handler_delegate(request, _Refused, options)
        return super().get_handler_delegate(request, target_class, *args, **kw)

    def _is_it(self, value: str) -> bool:
        return hmac.compare_digest(value.encode(), self._token.encode())


class _WithHeaders(OutputTransform):
    """Say of every answer what it may be used for, and of those that are not the page that no script is."""

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, include_footers: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        for name, value in _HEADERS.items():
            headers[name] = value
        headers.setdefault("Content-Security-Policy", _NO_SCRIPTS)
        return status_code, headers, chunk


class _Document(DocHandler):
    """The page, whose scripts are those that its template marks with a nonce."""

    async def get_session(self) -> Any:
        session = await super().get_session()
        nonce = session.document.template_variables["nonce"]
        sockets = " ".join(f"ws://{origin}" for origin in sorted(self.application.websocket_origins))
        self.set_header("Content-Security-Policy", _PAGE.format(nonce, sockets))
        return session


class _Refused(RequestHandler):
    def initialize(self, status: int, said: str) -> None:
        self._status, self._said = status, said

    def prepare(self) -> None:
        self.set_status(self._status)
        self.set_header("Content-Type", "text/plain")
        self.finish(self._said + "\n")


class _Admit(RequestHandler):
    """Turn the secret in the address into a cookie, and take it out of the address."""

    def initialize(self, name: str, value: str) -> None:
        self._name, self._value = name, value

    def get(self) -> None:
        self.set_cookie(self._name, self._value, httponly=True, samesite="Lax", path="/")
        slides = self.get_query_arguments("slide")
        self.redirect("/" + (f"?{urlencode({'slide': slides[0]})}" if slides else ""))


class _Renderer:
    """Renders in threads, and keeps what was rendered last."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._pool = ThreadPoolExecutor(3, thread_name_prefix="fseg-tile")
        self._kept: OrderedDict[tuple, bytes] = OrderedDict()
        self._size = 0

    def close(self) -> None:
        """Wait for what is being rendered: a slide that is closed meanwhile ends the program."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def render(self, key: tuple, make: Callable[[], bytes]) -> bytes:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        try:
            data = await asyncio.get_running_loop().run_in_executor(self._pool, make)
        except Exception as error:  # the slide is damaged there
            _log.info("%s: %s", key, explain(error, ()), exc_info=error)
            raise HTTPError(404) from None
        if key not in self._kept:
            self._kept[key] = data
            self._size += len(data)
            while self._size > _TILES_KEPT:
                self._size -= len(self._kept.popitem(last=False)[1])
        return data


class _Rendered(RequestHandler):
    def initialize(self, renderer: _Renderer) -> None:
        self.renderer = renderer

    def session(self, name: str) -> SlideSession:
        """Get a slide that the page has opened; no other is served."""
        session = self.renderer.folder.get(name)
        if session is None:
            raise HTTPError(404)
        return session

    async def answer(self, kind: str, key: tuple, make: Callable[[], bytes]) -> None:
        data = await self.renderer.render((type(self).__name__, *key), make)
        self.set_header("Content-Type", kind)
        self.set_header("Cache-Control", "private, max-age=600")
        with suppress(StreamClosedError):  # whoever asked has gone on
            await self.finish(data)


class _SlideTile(_Rendered):
    async def get(self, name: str, z: str, x: str, y: str) -> None:
        name = unquote(name)
        picture = self.session(name).picture
        place = _place(z, x, y)
        if place[0] > picture.deepest + 1:  # Bokeh looks ahead, past what there is
            self.set_status(204)
            return
        await self.answer("image/jpeg", (name, *place), lambda: picture.tile(*place))


class _LabelTile(_Rendered):
    async def get(self, name: str, z: str, x: str, y: str) -> None:
        name = unquote(name)
        session = self.session(name)
        layer, place = session.layer, _place(z, x, y)
        if layer is None:
            raise HTTPError(404)
        if place[0] > session.picture.deepest + 1:
            self.set_status(204)
            return
        try:
            hidden = frozenset(int(v) for v in self.get_query_argument("hide", "").split(",") if v)
        except ValueError:
            raise HTTPError(404) from None
        hidden &= frozenset(range(1, len(layer.labels.names) + 1))
        await self.answer("image/png", (name, *place, hidden), lambda: layer.tile(*place, hidden))


class _Patch(_Rendered):
    async def get(self, name: str, index: str) -> None:
        name = unquote(name)
        session = self.session(name)
        seeding, i = session.seeding, int(index)
        if seeding is None or i >= len(seeding.embedded.centers):
            raise HTTPError(404)
        y, x = seeding.embedded.centers[i] * seeding.mpp
        side = seeding.side * seeding.mpp
        await self.answer("image/jpeg", (name, i), lambda: session.picture.patch(y, x, side, _PATCH_PIXELS))


def _place(z: str, x: str, y: str) -> tuple[int, int, int]:
    place = int(z), int(x), int(y)
    if place[0] > 40 or max(place[1:]) >= 2 ** place[0]:
        raise HTTPError(404)
    return place


class _Files(StaticFileHandler):
    """What lies in the output folder, for download: a file as it is, a folder as a ZIP archive."""

    def validate_absolute_path(self, root: str, absolute_path: str) -> str:
        try:
            path = Path(absolute_path).resolve()
            exists = path.exists()
        except (OSError, ValueError):  # names that no file can have
            raise HTTPError(404) from None
        inside = path.is_relative_to(root) and path != Path(root)
        if not inside or any(part.startswith(".") for part in path.relative_to(root).parts):
            raise HTTPError(404)
        if not exists:
            raise HTTPError(404)
        return str(path)

    async def get(self, path: str, include_body: bool = True) -> None:
        found = Path(self.validate_absolute_path(self.root, str(Path(self.root) / unquote(path))))
        self.set_header("Content-Disposition", f'attachment; filename="{_ascii(found)}"')
        self.set_header("Cache-Control", "no-store")
        if not found.is_dir():
            await super().get(path, include_body)
            return
        loop = asyncio.get_running_loop()
        with tempfile.TemporaryFile() as file:
            await loop.run_in_executor(None, _zip, found, file)
            file.seek(0)
            self.set_header("Content-Type", "application/zip")
            with suppress(StreamClosedError):
                while block := file.read(1 << 20):
                    self.write(block)
                    await self.flush()

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Cache-Control", "no-store")


def _ascii(path: Path) -> str:
    name = path.name + (".zip" if path.is_dir() else "")
    return "".join(c if c.isascii() and c.isprintable() and c not in '"\\' else "_" for c in name)


def _zip(folder: Path, file: Any) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:  # its chunks are compressed already
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, folder.name / path.relative_to(folder))
