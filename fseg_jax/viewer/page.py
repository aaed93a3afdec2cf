"""The page: a slide to look at and to place seeds on, made of Bokeh's models.

A :class:`Page` is one tab. What it shows of the seeds it takes from the slide's ``Seeding``, which all tabs
share; where it looks, and which layers it shows, is its own, and what the last tab did is what the next one
opens with.
"""

import json
import logging
import secrets
from typing import Any

from bokeh.document import Document

from fseg_jax.errors import explain
from fseg_jax.viewer import markup
from fseg_jax.viewer.folder import Folder
from fseg_jax.viewer.frame import Frame, text_of
from fseg_jax.viewer.picture import LabelLayer
from fseg_jax.viewer.seed_panel import MODES, SeedPanel
from fseg_jax.viewer.session import SlideSession

_log = logging.getLogger(__name__)


def show(document: Document, folder: Folder, first: str) -> None:
    """Fill a tab's document with the page of the slide that its address names, or of the ``first``.

    A slide that cannot be shown is a page that says why. The ``nonce`` in the template's variables marks the
    scripts that are the page's own.
    """
    arguments = document.session_context.request.arguments if document.session_context else {}
    name = arguments.get("slide", [first.encode()])[0].decode(errors="replace")
    document.template = text_of("page.html")
    document.template_variables.update(css=text_of("page.css"), nonce=secrets.token_urlsafe(16))
    try:
        page = Page(document, folder.open(name), folder.names)
    except Exception as error:
        said = explain(error, ())
        _log.warning("%s: cannot be shown: %s", name, said)
        _log.info("%s: the traceback:", name, exc_info=error)
        document.clear()
        document.title = "fseg"
        document.template_variables["problem"] = said
        return
    document.on_session_destroyed(lambda context: page.leave())


class Page:
    """One tab with a slide."""

    def __init__(self, document: Document, session: SlideSession, names: list[str]) -> None:
        self._document, self._session = document, session
        self._scheduled = False
        modes = MODES if session.seeding else ("Move",)
        self._frame = Frame(document, session, names, modes, self._heed)
        self._clusters = _Clusters(self._frame, session.layer, not session.seeding) if session.layer else None
        self._panel = (
            SeedPanel(self._frame, session.seeding, self._schedule, document) if session.seeding else None
        )
        tools = self._panel.tools if self._panel else [self._frame.pan]
        self._frame.finish(tools, seeding=bool(self._panel), layer=bool(self._clusters))
        session.listeners.add(self._schedule)
        self._refresh()

    def leave(self) -> None:
        self._session.listeners.discard(self._schedule)

    def _heed(self, message: str) -> None:
        """Do what the page's script sends: [a number, what, arguments …]; heed nothing else."""
        try:
            _, what, *arguments = json.loads(message)
        except (ValueError, TypeError, RecursionError):
            return
        if what == "view" and arguments:
            self._session.keep_view(view=arguments[0])
        elif what in ("cluster", "all", "none") and self._clusters:
            self._clusters.heed(what, *arguments)
        elif self._panel:
            self._panel.heed(what, *arguments)

    def _schedule(self) -> None:
        """Redraw soon, once, however much changes until then."""
        if not self._scheduled:
            self._scheduled = True
            self._document.add_next_tick_callback(self._refresh)

    def _refresh(self) -> None:
        self._scheduled = False
        if self._panel:
            self._panel.refresh()
        else:
            self._frame.say("", self._session.picture.notice)


class _Clusters:
    """F-SEG's label layer, with a switch for each of its clusters."""

    def __init__(self, frame: Frame, layer: LabelLayer, on: bool) -> None:
        self._frame, self._layer = frame, layer
        self._hidden = set(frame.left.get("hidden", [])) & {*range(1, len(layer.labels.names) + 1)}
        self._tiles = frame.tile_layer(self._url(), render_parents=False, smoothing=False)
        frame.switch("layer_on", "F-SEG clusters", self._tiles, on)
        frame.opacity("layer_alpha", 0.5, (self._tiles, "alpha"))
        self._text = frame.text("clusters")
        self._show()

    def heed(self, what: str, *arguments: Any) -> None:
        """Show ``all`` or ``none``, or switch the ``cluster`` of that number."""
        everything = set(range(1, len(self._layer.labels.names) + 1))
        switched = {j for j in everything if j in arguments}
        sets = {"all": set(), "none": everything, "cluster": self._hidden ^ switched}
        self._hidden = sets[what]
        self._tiles.tile_source.url = self._url()
        self._show()
        self._frame.session.keep_view(hidden=sorted(self._hidden))

    def _url(self) -> str:
        return self._frame.tile_url("labels", "&hide=" + ",".join(map(str, sorted(self._hidden))))

    def _show(self) -> None:
        self._text.text = markup.clusters(self._layer.labels, self._layer.shares(), self._hidden)
