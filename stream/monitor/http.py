"""Small HTTP pages for the machines that watch a relay, robust against any client."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socket import AI_PASSIVE, SHUT_RDWR, SOCK_STREAM, getaddrinfo
from socketserver import ThreadingTCPServer
from typing import Any, Self

from stream.errors import WireError
from stream.feed import place_of, reason_of

CONNECTIONS = 8
"""Open at once, each with a thread of its own; one more cuts off the oldest."""

CONNECTION_SECONDS = 10.0
"""The longest life of a connection, from its opening to the end of its answer."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Page:
    """The answer to a request."""

    text: str
    type: str = "text/plain; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK


class PageServer(ThreadingTCPServer):
    """Serves pages by path at HOST:PORT. A context manager that can be entered once.

    Each page is made anew for every request, in a thread for its client. Raises `WireError` if it cannot listen.
    """

    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, address: str, pages: Mapping[str, Callable[[], Page]]) -> None:
        self.pages = pages
        self._clients: dict[Any, float] = {}  # the open connections, each with the time it was opened
        self._closing = threading.Lock()  # so that no connection is cut while it closes
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), name="nightbridge-http", daemon=True)
        host, _, port = address.rpartition(":")
        try:
            found = getaddrinfo(host.strip("[]"), port, type=SOCK_STREAM, flags=AI_PASSIVE)
            self.address_family, _, _, _, where = found[0]
            super().__init__(where, PageHandler)  # type: ignore[arg-type]  # an IPv6 address has four parts
        except OSError as error:
            raise WireError(f"cannot serve metrics at {address}: {error.strerror}") from None
        self.address = f"{host}:{self.socket.getsockname()[1]}"
        """Where it listens, with its real port."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self._cut(0)
        self.server_close()  # waits for the threads of the clients

    def process_request(self, request: Any, client_address: Any) -> None:
        """Let a client in. If there are too many, cut off the oldest: silent clients must not keep others out."""
        with self._closing:
            if len(self._clients) >= CONNECTIONS:
                oldest = next(iter(self._clients))
                del self._clients[oldest]
                with suppress(OSError):  # it has gone already
                    oldest.shutdown(SHUT_RDWR)
            self._clients[request] = time.monotonic()
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        """Let a client go."""
        with self._closing:
            self._clients.pop(request, None)
            super().close_request(request)

    def service_actions(self) -> None:
        """Cut off connections that are too old, and pause, so that a flood of clients cannot take the relay's CPU."""
        self._cut(CONNECTION_SECONDS)
        time.sleep(0.01)

    def _cut(self, age: float) -> None:
        """Shut down all connections of at least this age, in seconds; their threads then end."""
        with self._closing:
            for client, opened in self._clients.items():
                if time.monotonic() - opened >= age:
                    with suppress(OSError):  # it has gone already
                        client.shutdown(SHUT_RDWR)

    def handle_error(self, *_: object) -> None:
        """Log why a client got no complete answer."""
        log.debug("a client of %s was lost", self.address, exc_info=True)


class PageHandler(BaseHTTPRequestHandler):
    """Answers one request with the page of its path."""

    server: PageServer
    server_version, sys_version = "nightbridge", ""

    def do_GET(self) -> None:
        """Send the page. If making it fails, only the log gets the type and place of the error; its message, which may
        hold anything, goes nowhere."""
        pages = self.server.pages
        known = "".join(f"{path}\n" for path in pages)
        try:
            page = pages.get(self.path.partition("?")[0], lambda: Page(known, status=HTTPStatus.NOT_FOUND))()
        except Exception as error:
            log.error("a page cannot be made: %s%s", reason_of(error), place_of(error))
            page = Page("internal error\n", status=HTTPStatus.INTERNAL_SERVER_ERROR)
        body = page.text.encode()
        self.send_response(page.status)
        self.send_header("Content-Type", page.type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Log no requests."""
