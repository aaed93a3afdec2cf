"""Access to the page's server: who may ask for what, and what browsers may do with the answers.

The printed address contains a secret token. A request for the page with the token gets it as a cookie; any
request without token and cookie gets 403, for the page, a tile, a script or the WebSocket alike. Browsers
send cookies to all ports of a host, so the cookie's name contains the port.

The Content-Security-Policy lets the page run the scripts that bear its nonce, and other answers none. Bokeh
compiles functions from text, for WebGL, and inserts style sheets, so the page's policy has to allow both.
"""

import hmac
from typing import Any
from urllib.parse import unquote, urlencode

from bokeh.server.tornado import BokehTornado
from bokeh.server.views.autoload_js_handler import AutoloadJsHandler
from bokeh.server.views.doc_handler import DocHandler
from bokeh.server.views.metadata_handler import MetadataHandler
from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.web import OutputTransform, RequestHandler

_NO_SCRIPT_POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_PAGE_POLICY = (  # filled with the page's nonce and the addresses of its WebSocket
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


class GuardedApplication(BokehTornado):
    """Bokeh's application, for those who have the token."""

    def __init__(self, page: Any, *, token: str, cookie: str, names: list[str], **options: Any) -> None:
        """Build the application.

        Args:
            page: Fills a document.
            token: The secret.
            cookie: Name of the cookie.
            names: Names of the slides.
            options: Options of Bokeh's application.
        """
        self._token, self._cookie, self._names = token, cookie, names
        super().__init__(page, **options)
        self.add_transform(_SecurityHeaders)

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """Admit, refuse or pass on a request."""
        tokens = [value.decode("latin-1") for value in request.query_arguments.get("token", [])]
        cookie = request.cookies.get(self._cookie)
        if any(self._is_token(value) for value in tokens):
            if request.path == "/":
                options = {"name": self._cookie, "value": self._token}
                return self.get_handler_delegate(request, _AdmitHandler, options)
        elif not (cookie and self._is_token(cookie.value)):
            return self._refuse(request, 403, "open the address that fseg view printed, with its token")
        slides = [value.decode("utf-8", "replace") for value in request.query_arguments.get("slide", [])]
        if request.path == "/" and set(slides) - set(self._names):
            return self._refuse(request, 404, "there is no such slide")
        if "\0" in unquote(request.path):
            return self._refuse(request, 404, "not found")
        if request.path == "/":
            # Bokeh would read more of a request, such as a session's identifier: pass on the slide alone.
            arguments = {"slide": [name.encode() for name in slides[:1]]} if slides else {}
            request.arguments = request.query_arguments = arguments
            request.headers.pop("Bokeh-Session-Id", None)
        return super().find_handler(request, **kwargs)

    def get_handler_delegate(
        self, request: HTTPServerRequest, target_class: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Replace Bokeh's page by ours, and refuse what only pages of other sites would embed."""
        if target_class is DocHandler:
            target_class = _PageHandler
        elif target_class in (AutoloadJsHandler, MetadataHandler):
            return self._refuse(request, 404, "not found")
        return super().get_handler_delegate(request, target_class, *args, **kwargs)

    def _refuse(self, request: HTTPServerRequest, status: int, reason: str) -> Any:
        options = {"status": status, "message": f"{status}: {reason}"}
        return super().get_handler_delegate(request, _RefusalHandler, options)

    def _is_token(self, value: str) -> bool:
        return hmac.compare_digest(value.encode(), self._token.encode())


class _SecurityHeaders(OutputTransform):
    """Adds security headers to every answer, and to all but the page a policy without scripts."""

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, include_footers: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        for name, value in _HEADERS.items():
            headers[name] = value
        headers.setdefault("Content-Security-Policy", _NO_SCRIPT_POLICY)
        return status_code, headers, chunk


class _PageHandler(DocHandler):
    """The page, with a policy that allows the scripts of its nonce."""

    async def get_session(self) -> Any:
        session = await super().get_session()
        nonce = session.document.template_variables["nonce"]
        sockets = " ".join(f"ws://{origin}" for origin in sorted(self.application.websocket_origins))
        self.set_header("Content-Security-Policy", _PAGE_POLICY.format(nonce, sockets))
        return session


class _RefusalHandler(RequestHandler):
    """An answer with a status and a line of text."""

    def initialize(self, status: int, message: str) -> None:
        self._status, self._message = status, message

    def prepare(self) -> None:
        self.set_status(self._status)
        self.set_header("Content-Type", "text/plain")
        self.finish(self._message + "\n")


class _AdmitHandler(RequestHandler):
    """A redirection that turns the token in the address into a cookie."""

    def initialize(self, name: str, value: str) -> None:
        self._name, self._value = name, value

    def get(self) -> None:
        self.set_cookie(self._name, self._value, httponly=True, samesite="Lax", path="/")
        slides = self.get_query_arguments("slide")
        self.redirect("/" + (f"?{urlencode({'slide': slides[0]})}" if slides else ""))
