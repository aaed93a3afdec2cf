"""The page's server: one process on 127.0.0.1 that fetches nothing from elsewhere. See ``access.py``."""

import asyncio
import logging
import secrets
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from bokeh.document import Document
from bokeh.server.server import BaseServer
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets

from fseg_jax.errors import InputError, first_line
from fseg_jax.process import raise_if_stopped
from fseg_jax.viewer.access import GuardedApplication
from fseg_jax.viewer.download_handler import DownloadHandler
from fseg_jax.viewer.folder import Folder
from fseg_jax.viewer.page import show
from fseg_jax.viewer.tile_handlers import Renderer, list_routes

ADDRESS = "127.0.0.1"
PORT = 5006
_MAX_REQUEST_BYTES = 64 << 20

_log = logging.getLogger(__name__)


class Server(BaseServer):
    """A server of a folder's slides; ``start()`` begins to serve.

    Attributes:
        url: The page's address, with the token.
    """

    def __init__(self, folder: Folder, first: str, port: int | None = None) -> None:
        """Bind the port. An asyncio loop has to run.

        Args:
            folder: The slides.
            first: Name of the slide that the page shows first.
            port: The port; None: ``PORT``, or any free one.

        Raises:
            InputError: The port cannot be bound.
        """
        sockets = _bind_port(port)
        bound_port = sockets[0].getsockname()[1]
        token = secrets.token_urlsafe(24)
        self._renderer = Renderer(folder)
        application = GuardedApplication(
            run_in_this_loop(lambda document: show(document, folder, first)),
            token=token,
            cookie=f"fseg-{bound_port}",
            names=folder.names,
            extra_websocket_origins=[f"{host}:{bound_port}" for host in (ADDRESS, "localhost")],
            extra_patterns=[
                *list_routes(self._renderer),
                (r"/files/(.*)", DownloadHandler, {"path": str(folder.path.resolve())}),
            ],
            include_headers=["Host"],
            include_cookies=[],  # keeps the token out of the page
        )
        http = HTTPServer(application, max_buffer_size=_MAX_REQUEST_BYTES)
        http.add_sockets(sockets)
        super().__init__(IOLoop.current(), application, http)
        self.url = f"http://{ADDRESS}:{bound_port}/?token={token}"

    def stop(self, wait: bool = True) -> None:
        """Stop serving, and wait until no slide is read any more."""
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
    """Serve a folder's slides until interrupted.

    Args:
        folder: The slides.
        name: Name of the slide that the page shows first.
        tell: Called with the page's address.
        port: The port; None: ``PORT``, or any free one.
        seeds: A seeds file to begin with.

    Raises:
        InputError: The slide or the seeds cannot be read, or the port cannot be bound.
    """
    _shorten_logs()

    async def run() -> None:
        server = None
        try:
            session = folder.open(name)
            if seeds:
                session.load_first_seeds(seeds)
            server = Server(folder, name, port)
            server.start()
            if session.picture.notice:
                _log.warning(session.picture.notice)
            ended = asyncio.Event()
            with suppress(NotImplementedError):  # on Windows signals interrupt the loop anyway
                for signal_number in (signal.SIGINT, signal.SIGTERM):
                    asyncio.get_running_loop().add_signal_handler(signal_number, ended.set)
            raise_if_stopped()  # a callback may have swallowed an earlier interrupt
            tell(server.url)
            await ended.wait()
        finally:
            if server:
                server.stop()
            folder.close()

    asyncio.run(run())


def _shorten_logs() -> None:
    """Log errors of the server's libraries, also from bad requests, as one line each; tracebacks with -v."""
    for logger, level in (("tornado.access", logging.CRITICAL), ("bokeh", logging.ERROR)):
        logging.getLogger(logger).setLevel(level)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_shorten_record)


def _shorten_record(record: logging.LogRecord) -> bool:
    if record.name.split(".")[0] in ("asyncio", "bokeh", "tornado") and not _log.isEnabledFor(logging.INFO):
        error = record.exc_info[1] if record.exc_info else None
        text = " ".join(record.getMessage().split())[:200]
        record.msg = (
            f"page: {text}: {type(error).__name__}: {first_line(error)}" if error else f"page: {text}"
        )
        record.args, record.exc_info, record.exc_text, record.stack_info = None, None, None, None
    return True


def run_in_this_loop(fill: Callable[[Document], None]) -> Callable[[Document], None]:
    """Wrap a function that fills documents, so that it runs in the current loop: no other may use slides.

    Some versions of Bokeh call it from another thread.
    """
    loop = asyncio.get_running_loop()

    async def fill_in_loop(document: Document) -> None:
        fill(document)

    def run(document: Document) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run_coroutine_threadsafe(fill_in_loop(document), loop).result()
        else:
            fill(document)

    return run


def _bind_port(port: int | None) -> list[Any]:
    try:
        return bind_sockets(PORT if port is None else port, ADDRESS)
    except OSError as error:
        if port is None:
            return bind_sockets(0, ADDRESS)
        raise InputError(f"--port {port}: cannot be used ({error.strerror}); choose another") from None
