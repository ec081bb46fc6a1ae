"""A camera that serves a live stream, with as much of RTSP 1.0 (RFC 2326) as players and recorders use.

RTP goes over UDP, or inside the RTSP connection, as the viewer asks.
"""

from __future__ import annotations

import logging
import secrets
import socket
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from socketserver import StreamRequestHandler, ThreadingTCPServer
from types import TracebackType
from typing import ClassVar, Self
from urllib.parse import urlsplit

from stream.errors import SourceLost
from stream.simulator.rtsp_delivery import Senders, Viewer, hang_up, send_or_hang_up, way_to

log = logging.getLogger(__name__)

PACKET = 1400
"""The most bytes in an RTP packet."""
LONGEST_LINE, MOST_LINES, LONGEST_BODY = 4096, 64, 4096
"""Limits of a request, in bytes, lines and bytes; a larger one ends the connection."""
UNSENT = 1 << 20
"""Bytes that may wait for a viewer inside its connection; one that leaves more unread is cut off."""

ENCODINGS = {"h264": ("H264", "packetization-mode=1"), "hevc": ("H265", ""), "mpeg4": ("MP4V-ES", "")}
"""By codec: its name in RTP, and its format parameters; parameter sets are only in the stream."""

SESSION = """v=0\r
o=- 0 0 IN {family} {host}\r
s=simulated night camera\r
c=IN {family} {anywhere}\r
t=0 0\r
m=video 0 RTP/AVP 96\r
a=rtpmap:96 {encoding}/90000\r
{format}a=framerate:{rate:g}\r
a=control:video\r
"""
METHODS = "OPTIONS, DESCRIBE, SETUP, PLAY, PAUSE, GET_PARAMETER, TEARDOWN"
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 454: "Session Not Found", 455: "Method Not Valid Here"}
REASONS |= {461: "Unsupported Transport", 501: "Not Implemented"}


def rtsp_address(url: str) -> tuple[str, int, str]:
    """Host, port and path of `rtsp://HOST:PORT/PATH`; raises `ValueError` for anything else."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("url; must be rtsp://HOST:PORT/PATH") from None
    if parts.scheme != "rtsp" or not host or not port or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(f"url {url.rpartition('@')[2]!r}; must be rtsp://HOST:PORT/PATH, without a login")
    return host, port, parts.path.rstrip("/")


class RtspCamera:
    """A file for an RTP muxer to write into: every write is one packet for all viewers, sent or lost.

    It listens inside its `with` block, whose end closes all threads and sockets. Raises `SourceLost` if the address is
    taken or not this machine's.
    """

    muxer: ClassVar[str] = "rtp"
    options: ClassVar[Mapping[str, str]] = {"packetsize": str(PACKET), "payload_type": "96"}
    largest: ClassVar[int] = PACKET

    def __init__(self, url: str, codec: str, rate: Fraction, loss: float = 0.0, seed: int = 0) -> None:
        """`rate` is in pictures per second; `loss` is the share of RTP packets that no viewer gets, 0 to 1."""
        host, port, self.path = rtsp_address(url)
        self.count = 0
        """RTP packets written while somebody watched."""
        self.lost = 0
        """Those of them that were not sent."""
        self._loss = loss
        self._random = Random(seed)  # noqa: S311 (a link is no secret)
        self._lock = threading.Lock()
        self._viewers: dict[Viewer, None] = {}
        self._connections: set[socket.socket] = set()
        self._closing = False
        with ExitStack() as opened:
            try:
                family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
                host = str(address[0])
                self._server = opened.enter_context(Server(self, family, (host, port)))
                self.senders = Senders.open(family, host, opened)
            except OSError as error:
                raise SourceLost(f"{url}: {error.strerror}") from error
            self._opened = opened.pop_all()
        version = "IP6" if family == socket.AF_INET6 else "IP4"
        encoding, parameters = ENCODINGS[codec]
        self.description = SESSION.format(
            family=version,
            host=host,
            anywhere="::" if version == "IP6" else "0.0.0.0",  # noqa: S104
            encoding=encoding,
            rate=float(rate),
            format=f"a=fmtp:96 {parameters}\r\n" if parameters else "",
        ).encode()
        """The SDP that describes the stream."""
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="rtsp-camera")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        with self._lock:
            self._closing = True
            for connection in self._connections:
                hang_up(connection)
        self._opened.close()

    def write(self, data: bytes) -> int:
        """Send one packet of RTP or RTCP to all viewers, or lose it (RTP only); returns its size either way."""
        packet = bytes(data)
        report = 192 <= packet[1] <= 223  # RFC 5761, section 4
        with self._lock:
            viewers = list(self._viewers)
        if viewers and not report:
            self.count += 1
            if self._random.random() < self._loss:
                self.lost += 1
                return len(packet)
        for viewer in viewers:
            viewer.send(packet, report)
        return len(packet)

    def connected(self, connection: socket.socket, *, here: bool) -> None:
        """A connection was opened (`here`) or closed."""
        with self._lock:
            (self._connections.add if here else self._connections.discard)(connection)
            if self._closing:
                hang_up(connection)

    def watched(self, viewer: Viewer, *, here: bool) -> None:
        """A viewer wants packets (`here`), or wants no more."""
        with self._lock:
            if here:
                self._viewers[viewer] = None
            else:
                self._viewers.pop(viewer, None)


class Server(ThreadingTCPServer):
    """Accepts connections, each with a thread of its own; closing waits for these threads."""

    allow_reuse_address = True

    def __init__(self, camera: RtspCamera, family: socket.AddressFamily, address: tuple[str, int]) -> None:
        self.camera = camera
        self.address_family = family
        super().__init__(address, Conversation)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """Log unexpected errors; a viewer that goes away in the middle of an exchange is not one."""
        if not isinstance(sys.exception(), OSError):
            log.exception("a viewer's connection failed")


@dataclass(frozen=True)
class Request:
    """What a viewer asks for."""

    method: str
    path: str
    headers: Mapping[str, str]
    """By name in lower case."""


class Conversation(StreamRequestHandler):
    """One viewer's connection, from its first request to its end."""

    server: Server
    wbufsize = 0
    disable_nagle_algorithm = True

    def setup(self) -> None:
        """See `StreamRequestHandler`."""
        super().setup()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNSENT)
        self._camera, self._writing, self._session = self.server.camera, threading.Lock(), secrets.token_hex(8)
        self._viewer: Viewer | None = None
        self._camera.connected(self.connection, here=True)

    def finish(self) -> None:
        """See `StreamRequestHandler`."""
        if self._viewer is not None:
            self._camera.watched(self._viewer, here=False)
        self._camera.connected(self.connection, here=False)
        super().finish()

    def handle(self) -> None:
        """Answer until the viewer leaves, or sends nonsense."""
        with suppress(OSError):
            while (request := self._read()) is not None:
                status, headers, body = self._answer(request)
                if "cseq" in request.headers:
                    headers = {"CSeq": request.headers["cseq"]} | headers
                if body:
                    headers = headers | {"Content-Length": str(len(body))}
                lines = [
                    f"RTSP/1.0 {status} {REASONS[status]}",
                    *(f"{name}: {value}" for name, value in headers.items()),
                ]
                with self._writing:
                    written = send_or_hang_up(self.connection, "\r\n".join([*lines, "", ""]).encode() + body)
                if not written:  # requests that came meanwhile need no answer
                    return
                if request.method == "PLAY" and status == 200 and self._viewer is not None:
                    self._camera.watched(self._viewer, here=True)
                if (request.method, status) == ("TEARDOWN", 200) or status == 400:
                    return

    def _read(self) -> Request | None:
        """The next request; None if there is none, or it is too large. Bodies and interleaved reports are skipped."""
        while (first := self.rfile.read(1)) == b"$":
            self.rfile.read(int.from_bytes(self.rfile.read(3)[1:], "big"))
        lines = [first + self.rfile.readline(LONGEST_LINE)]
        while lines[-1].strip():
            if not lines[-1].endswith(b"\n") or len(lines) == MOST_LINES:
                return None
            lines.append(self.rfile.readline(LONGEST_LINE))
        start, *rest = [line.decode("utf-8", "replace").strip() for line in lines]
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > LONGEST_BODY or len(self.rfile.read(int(length))) < int(length):
            return None
        method, _, target = start.removesuffix(" RTSP/1.0").partition(" ")
        with suppress(ValueError):
            return Request(method if start.endswith(" RTSP/1.0") else "", urlsplit(target).path.rstrip("/"), headers)
        return Request("", "", headers)

    def _answer(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        path, session = self._camera.path, {"Session": self._session}
        known = request.path in (path, f"{path}/video")
        named = request.headers.get("session", "").partition(";")[0]
        match request.method:
            case "OPTIONS":
                return 200, {"Public": METHODS}, b""
            case "DESCRIBE" | "SETUP" if not known:
                return 404, {}, b""
            case "DESCRIBE":
                host, port = self.connection.getsockname()[:2]
                base = f"rtsp://{f'[{host}]' if ':' in host else host}:{port}{path}/"
                return 200, {"Content-Base": base, "Content-Type": "application/sdp"}, self._camera.description
            case _ if named and (named != self._session or self._viewer is None):
                return 454, {}, b""
            case "SETUP" if named:
                return 455, {"Allow": METHODS}, b""
            case "SETUP":  # without a session: begins a new one, as when FFmpeg falls back from UDP to TCP
                wanted, peer = request.headers.get("transport", ""), self.client_address[0]
                viewer = way_to(wanted, self.connection, self._writing, peer, self._camera.senders)
                if viewer is None:
                    return 461, {}, b""
                if self._viewer is not None:
                    self._camera.watched(self._viewer, here=False)
                self._viewer = viewer
                return 200, session | {"Transport": self._viewer.transport}, b""
            case "PLAY" | "PAUSE" | "TEARDOWN" if self._viewer is None:
                return 454, {}, b""
            case "PAUSE" | "TEARDOWN":
                assert self._viewer is not None
                self._camera.watched(self._viewer, here=False)
                return 200, session, b""
            case "PLAY":
                return 200, session | {"Range": "npt=now-"}, b""
            case "GET_PARAMETER":
                return 200, session, b""
            case "":
                return 400, {}, b""
        return 501, {"Allow": METHODS}, b""
