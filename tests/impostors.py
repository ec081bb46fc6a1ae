"""Servers that are none, for tests: they accept connections and then do something wrong."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

Behaviour = Callable[[socket.socket, threading.Event], None]
"""What is done with a connection; ends soon after the event is set."""


class Impostor:
    """Listens at 127.0.0.1 from entering to leaving; every connection gets a thread that behaves like that."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        """Connections so far."""
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._accept, name="impostor", daemon=True)]
        self._connections: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        shut_down(self._listener)
        self._threads[0].join()  # from now on there are no new connections
        for connection in self._connections:
            shut_down(connection)
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._connections):
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.accepted += 1
                self._connections.append(connection)
                self._threads.append(threading.Thread(target=self._behave, args=(connection,), name="impostor"))
                self._threads[-1].start()

    def _behave(self, connection: socket.socket) -> None:
        with suppress(OSError):
            self._behaviour(connection, self._stop)


def shut_down(end: socket.socket) -> None:
    """So that whoever waits for it goes on; it is still open, and its number nobody else's."""
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def is_mute(_: socket.socket, stop: threading.Event) -> None:
    """Say nothing."""
    stop.wait()


def hangs_up(connection: socket.socket, stop: threading.Event) -> None:
    """Close the connection after the first words."""
    connection.recv(4096)
    connection.shutdown(socket.SHUT_RDWR)


def talks_nonsense(connection: socket.socket, stop: threading.Event) -> None:
    """Send noise, without an end."""
    while not stop.is_set():
        connection.sendall(os.urandom(4096))


def never_ends_its_headers(connection: socket.socket, stop: threading.Event) -> None:
    """Begin an answer, and send headers for ever."""
    connection.recv(4096)
    connection.sendall(b"RTSP/1.0 200 OK\r\nCSeq: 1\r\n")
    while not stop.is_set():
        connection.sendall(b"X-Header: " + b"x" * 65_536 + b"\r\n")


def drips(connection: socket.socket, stop: threading.Event) -> None:
    """Answer with one byte now and then."""
    connection.sendall(b"RTSP/1.0 200 OK\r\nX-Header: ")
    while not stop.wait(0.02):
        connection.sendall(b"x")


def answers_until(method: bytes, answer: bytes) -> Behaviour:
    """Talk like an RTSP camera over TCP until asked for this; then say `answer`, with its NUMBER, and hang up."""
    camera = b"v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
    headers = b"Session: 1\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nContent-Type: application/sdp\r\n"

    def talk(connection: socket.socket, _: threading.Event) -> None:
        with connection.makefile("rb") as requests:
            for line in requests:
                asked = dict(header.strip().split(b": ", 1) for header in iter(requests.readline, b"\r\n"))
                if line.startswith(method):
                    connection.sendall(answer.replace(b"NUMBER", asked[b"CSeq"]))
                    connection.shutdown(socket.SHUT_RDWR)
                    return
                body = camera if line.startswith(b"DESCRIBE") else b""
                told = b"CSeq: %s\r\n%sContent-Length: %d\r\n\r\n%s" % (asked[b"CSeq"], headers, len(body), body)
                connection.sendall(b"RTSP/1.0 200 OK\r\n" + told)

    return talk
