"""Handlers of requests for tiles and patches, rendered in threads and cached."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler

from fseg_jax.errors import explain
from fseg_jax.viewer.folder import Folder
from fseg_jax.viewer.session import SlideSession

_log = logging.getLogger(__name__)

_CACHE_BYTES = 192 << 20
_PATCH_PIXELS = 132
_MAX_ZOOM = 40
_NUMBER = r"([0-9]{1,12})"


class Renderer:
    """Renders pictures in threads and caches the last ones.

    Attributes:
        folder: The slides.
    """

    def __init__(self, folder: Folder) -> None:
        """Begin with an empty cache."""
        self.folder = folder
        self._pool = ThreadPoolExecutor(3, thread_name_prefix="fseg-tile")
        self._cache: OrderedDict[Hashable, bytes] = OrderedDict()
        self._cache_bytes = 0

    def close(self) -> None:
        """Wait for pictures being rendered: closing a slide that is read would crash the process."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def render(self, key: Hashable, render: Callable[[], bytes]) -> bytes:
        """Return a picture from the cache, or render it.

        Raises:
            HTTPError: 404: the slide is damaged there.
        """
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        try:
            data = await asyncio.get_running_loop().run_in_executor(self._pool, render)
        except Exception as error:
            _log.info("%s: %s", key, explain(error, ()), exc_info=error)
            raise HTTPError(404) from None
        if key not in self._cache:
            self._cache[key] = data
            self._cache_bytes += len(data)
            while self._cache_bytes > _CACHE_BYTES:
                self._cache_bytes -= len(self._cache.popitem(last=False)[1])
        return data


def list_routes(renderer: Renderer) -> list[tuple[str, type[RequestHandler], dict[str, Any]]]:
    """List the routes of tiles and patches, for tornado."""
    options = {"renderer": renderer}
    return [
        (rf"/tile/([^/]+)/{_NUMBER}/{_NUMBER}/{_NUMBER}", _SlideTileHandler, options),
        (rf"/labels/([^/]+)/{_NUMBER}/{_NUMBER}/{_NUMBER}", _LabelTileHandler, options),
        (rf"/patch/([^/]+)/{_NUMBER}", _PatchHandler, options),
    ]


class _PictureHandler(RequestHandler):
    """The common part of the handlers of rendered pictures."""

    def initialize(self, renderer: Renderer) -> None:
        self.renderer = renderer

    def get_slide(self, name: str) -> SlideSession:
        """Return a slide that a page has opened; no other is served."""
        session = self.renderer.folder.get(name)
        if session is None:
            raise HTTPError(404)
        return session

    async def answer(self, content_type: str, key: tuple[Hashable, ...], render: Callable[[], bytes]) -> None:
        """Answer with a rendered picture.

        Args:
            content_type: Its media type.
            key: What identifies it among pictures of this handler.
            render: Renders it.
        """
        data = await self.renderer.render((type(self).__name__, *key), render)
        self.set_header("Content-Type", content_type)
        self.set_header("Cache-Control", "private, max-age=600")
        with suppress(StreamClosedError):  # the client has left
            await self.finish(data)


class _SlideTileHandler(_PictureHandler):
    """Tiles of the slide."""

    async def get(self, name: str, z: str, x: str, y: str) -> None:
        name = unquote(name)
        picture = self.get_slide(name).picture
        position = _parse_position(z, x, y)
        if position[0] > picture.max_zoom + 1:  # Bokeh requests tiles ahead, beyond the largest zoom
            self.set_status(204)
            return
        await self.answer("image/jpeg", (name, *position), lambda: picture.render_tile(*position))


class _LabelTileHandler(_PictureHandler):
    """Tiles of the label layer, without the labels of ``?hide=``."""

    async def get(self, name: str, z: str, x: str, y: str) -> None:
        name = unquote(name)
        session = self.get_slide(name)
        layer, position = session.layer, _parse_position(z, x, y)
        if layer is None:
            raise HTTPError(404)
        if position[0] > session.picture.max_zoom + 1:
            self.set_status(204)
            return
        try:
            hidden = frozenset(int(v) for v in self.get_query_argument("hide", "").split(",") if v)
        except ValueError:
            raise HTTPError(404) from None
        hidden &= frozenset(range(1, len(layer.labels.names) + 1))
        key = (name, *position, hidden)
        await self.answer("image/png", key, lambda: layer.render_tile(*position, hidden))


class _PatchHandler(_PictureHandler):
    """Pictures of single patches."""

    async def get(self, name: str, index: str) -> None:
        name = unquote(name)
        session = self.get_slide(name)
        i = int(index)
        if session.seeding is None or i >= len(session.seeding.patches):
            raise HTTPError(404)
        patches = session.seeding.patches
        y, x = patches.embedded.centers[i] * patches.mpp
        side = patches.side * patches.mpp
        picture = session.picture
        await self.answer("image/jpeg", (name, i), lambda: picture.render_patch(y, x, side, _PATCH_PIXELS))


def _parse_position(z: str, x: str, y: str) -> tuple[int, int, int]:
    """Parse zoom, column and row of a tile.

    Raises:
        HTTPError: 404: there can be no such tile.
    """
    position = int(z), int(x), int(y)
    if position[0] > _MAX_ZOOM or max(position[1:]) >= 2 ** position[0]:
        raise HTTPError(404)
    return position
