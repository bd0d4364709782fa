"""The page on this machine while runs work: answers on the loopback address only, and only to be read."""

from __future__ import annotations

import errno
import json
import logging
import sys
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

from taskvec.errors import UserError, describe
from taskvec.report.page.follow import Follower
from taskvec.report.page.render import environment, fragments, page

log = logging.getLogger(__name__)
ADDRESS = "127.0.0.1"
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
NOTE = "As recorded; follows the runs while they work."


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for the page, its progress and its content; refuses all else.

    A request under another name than this address's is refused too: a page from elsewhere could give its own name to
    this address and read along.
    """

    server_version, sys_version = "taskvec", ""

    def __init__(self, site: Site, *arguments: Any):
        self.site = site
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Answer with what stands under the path."""
        host = self.headers.get("Host", "")
        port = self.server.server_address[1]
        if host not in (f"{ADDRESS}:{port}", f"localhost:{port}"):
            self._send(
                HTTPStatus.FORBIDDEN, "text/plain", "this server answers to its own name only"
            )
            return
        make = self.site.paths.get(self.path)
        if make is None:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", "nothing here")
            return
        kind = "text/html" if self.path == "/" else "application/json"
        try:
            text = make()
        except UserError as error:
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", str(error))
            return
        self._send(HTTPStatus.OK, kind, text)

    do_HEAD = do_GET

    def refuse(self) -> None:
        """Refuse to write."""
        self._send(HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", "this server is read-only")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = refuse

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing of each request."""

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """A server that is not troubled by browsers that leave before they were answered."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say in the log what went wrong with a request, unless it is that nobody waits for the answer."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):
            log.warning("report: a request failed: %s", describe(error))


class Site:
    """What the server has to say: the page, how runs stand, and what the page shows now."""

    def __init__(self, follower: Follower, title: str):
        self.follower, self.title = follower, title
        self.paths = {"/": self.page, "/progress": self.progress, "/content": self.content}
        self._lock = Lock()

    def page(self) -> str:
        """Return the page."""
        with self._lock:
            return page(self.follower.content(), self.title, NOTE, live=True)

    def progress(self) -> str:
        """Return how the runs stand, and a word that changes when the content does."""
        macros: Any = environment().get_template("fragments.html.jinja").module
        parts = [macros.progress(sweep) for sweep in self.follower.progress()]
        return json.dumps({"version": self.follower.version(), "html": "\n".join(parts)})

    def content(self) -> str:
        """Return the parts of the page that follow from the runs."""
        with self._lock:
            found = self.follower.content()
        parts = {"fragments": fragments(found), "data": found.data(), "pictures": found.pictures}
        return json.dumps(parts)


def server(follower: Follower, title: str, port: int) -> Server:
    """Return a server that is bound to the loopback address; port 0 takes one that is free.

    Raises:
        UserError: if the port is taken or not allowed.
    """
    handler = partial(Handler, Site(follower, title))
    try:
        return Server((ADDRESS, port), handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        hint = (
            "; --port 0 takes a free one" if getattr(error, "errno", 0) == errno.EADDRINUSE else ""
        )
        raise UserError(f"report: {ADDRESS}:{port}: {reason}{hint}") from error
