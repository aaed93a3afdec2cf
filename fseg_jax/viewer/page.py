"""The page: a slide to look at and to place seeds on, made of Bokeh's models.

All tabs of a slide share its ``Seeding``. Each tab has its own viewpoint and visible layers, and opens with
those of the tab that changed them last.
"""

import json
import logging
import secrets
from typing import Any

from bokeh.document import Document

from fseg_jax.errors import explain
from fseg_jax.viewer import markup
from fseg_jax.viewer.folder import Folder
from fseg_jax.viewer.frame import Frame, read_asset
from fseg_jax.viewer.picture import LabelLayer
from fseg_jax.viewer.seed_layers import MODES
from fseg_jax.viewer.seed_panel import SeedPanel
from fseg_jax.viewer.session import SlideSession

_log = logging.getLogger(__name__)


def show(document: Document, folder: Folder, first: str) -> None:
    """Fill a tab's document with the page of a slide, or with the reason why it cannot be shown.

    The template variable ``nonce`` marks the page's own scripts.

    Args:
        document: The tab's document.
        folder: The slides.
        first: Name of the slide if the address names none.
    """
    arguments = document.session_context.request.arguments if document.session_context else {}
    name = arguments.get("slide", [first.encode()])[0].decode(errors="replace")
    document.template = read_asset("page.html")
    document.template_variables.update(css=read_asset("page.css"), nonce=secrets.token_urlsafe(16))
    try:
        page = Page(document, folder.open(name), folder.names)
    except Exception as error:
        problem = explain(error, ())
        _log.warning("%s: cannot be shown: %s", name, problem)
        _log.info("%s: the traceback:", name, exc_info=error)
        document.clear()
        document.title = "fseg"
        document.template_variables["problem"] = problem
        return
    document.on_session_destroyed(lambda context: page.close())


class Page:
    """One tab with a slide."""

    def __init__(self, document: Document, session: SlideSession, names: list[str]) -> None:
        """Build a tab.

        Args:
            document: Its document.
            session: The open slide.
            names: Names of the slides to choose from.
        """
        self._document, self._session = document, session
        self._refresh_scheduled = False
        modes = MODES if session.seeding else ("Move",)
        self._frame = Frame(document, session, names, modes, self._receive)
        self._clusters: _ClusterPanel | None = None
        self._panel: SeedPanel | None = None
        tools = [self._frame.pan]
        if session.layer:
            self._clusters = _ClusterPanel(self._frame, session.layer, not session.seeding)
        if session.seeding:
            self._panel = SeedPanel(self._frame, session.seeding, self._schedule_refresh, document)
            tools = self._panel.tools
        self._frame.finish(tools, seeding=bool(self._panel), layer=bool(self._clusters))
        session.listeners.add(self._schedule_refresh)
        self._refresh()

    def close(self) -> None:
        """Stop following the slide's changes."""
        self._session.listeners.discard(self._schedule_refresh)

    def _receive(self, message: str) -> None:
        """Execute a message of ``page.js``, [unique number, command, arguments …]; ignore a malformed one."""
        try:
            _, command, *arguments = json.loads(message)
        except (ValueError, TypeError, RecursionError):
            return
        if command == "view" and arguments:
            self._session.update_page_state(view=arguments[0])
        elif command in ("cluster", "all", "none") and self._clusters:
            self._clusters.execute(command, *arguments)
        elif self._panel:
            self._panel.execute(command, *arguments)

    def _schedule_refresh(self) -> None:
        """Redraw at the next tick of the loop, once for all changes until then."""
        if not self._refresh_scheduled:
            self._refresh_scheduled = True
            self._document.add_next_tick_callback(self._refresh)

    def _refresh(self) -> None:
        self._refresh_scheduled = False
        if self._panel:
            self._panel.refresh()
        else:
            self._frame.show_status("", self._session.picture.notice)


class _ClusterPanel:
    """The label layer of F-SEG, with a switch for each of its clusters."""

    def __init__(self, frame: Frame, layer: LabelLayer, visible: bool) -> None:
        self._frame, self._layer = frame, layer
        self._hidden = set(frame.page_state.get("hidden", [])) & {*range(1, len(layer.labels.names) + 1)}
        self._tiles = frame.add_tile_layer(self._format_url(), render_parents=False, smoothing=False)
        frame.add_switch("layer_on", "F-SEG clusters", self._tiles, visible)
        frame.add_opacity_slider("layer_alpha", 0.5, (self._tiles, "alpha"))
        self._text = frame.add_text("clusters")
        self._show()

    def execute(self, command: str, *arguments: Any) -> None:
        """Show ``all`` or ``none``, or switch the ``cluster`` with the label that follows."""
        labels = set(range(1, len(self._layer.labels.names) + 1))
        switched = {label for label in labels if label in arguments}
        hidden = {"all": set(), "none": labels, "cluster": self._hidden ^ switched}
        self._hidden = hidden[command]
        self._tiles.tile_source.url = self._format_url()
        self._show()
        self._frame.session.update_page_state(hidden=sorted(self._hidden))

    def _format_url(self) -> str:
        return self._frame.format_tile_url("labels", "&hide=" + ",".join(map(str, sorted(self._hidden))))

    def _show(self) -> None:
        shares = self._layer.compute_shares()
        self._text.text = markup.render_clusters(self._layer.labels, shares, self._hidden)
