"""A web server that answers as a test wants, and a source that is not waited for long."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from stream.settings import FeedSettings
from tests.reading import feed

CANNOT_BE_LOOKED_UP = "the host name cannot be looked up at the moment"
PATIENCE = 1.0
"""Seconds that a source may take to open, in these tests."""


def impatient(url: str, **settings: object) -> FeedSettings:
    return feed(url, open_timeout=PATIENCE, **settings)


Answer = Callable[[Any], None]


class WebServer(http.server.ThreadingHTTPServer):
    """Serves a folder and answers of its own at 127.0.0.1."""

    daemon_threads = True

    def __init__(self, folder: Path, answers: dict[str, Answer]) -> None:
        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = answers.get(self.path, http.server.SimpleHTTPRequestHandler.do_GET)
                with suppress(OSError):  # of a client that has heard enough
                    answer(self)

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), lambda *args: Handler(*args, directory=str(folder)))
        threading.Thread(target=self.serve_forever, args=(0.05,), name="web", daemon=True).start()

    def url(self, path: str, scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.server_port}{path}"

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


def send(handler: http.server.BaseHTTPRequestHandler, status: int, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
