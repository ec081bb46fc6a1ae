"""Sends packets of a simulated RTSP camera to a viewer: over UDP, or inside the RTSP connection."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Protocol

UDP, TCP = ("RTP/AVP", "RTP/AVP/UDP"), ("RTP/AVP/TCP",)
"""Their names in a `Transport` header."""


@dataclass(frozen=True)
class Senders:
    """The sockets that send RTP and RTCP over UDP."""

    sockets: tuple[socket.socket, socket.socket]
    ports: tuple[int, int]
    """An even one and the next (RFC 3550, section 11)."""

    @classmethod
    def open(cls, family: socket.AddressFamily, host: str, opened: ExitStack) -> Senders:
        """Open them at free ports; `opened` closes them."""
        while True:
            with ExitStack() as tried:
                rtp, rtcp = (tried.enter_context(socket.socket(family, socket.SOCK_DGRAM)) for _ in range(2))
                rtp.bind((host, 0))
                port = rtp.getsockname()[1]
                if port % 2:
                    continue
                try:
                    rtcp.bind((host, port + 1))
                except OSError:
                    continue
                opened.push(tried.pop_all())
                return cls((rtp, rtcp), (port, port + 1))


class Viewer(Protocol):
    """A destination of packets."""

    transport: str
    """For the answer to SETUP."""

    def send(self, packet: bytes, report: bool) -> None:
        """Send an RTP packet, or an RTCP one (`report`); never blocks."""


@dataclass(eq=False)
class UdpViewer:
    """Sends packets over UDP, beside the RTSP connection."""

    senders: Senders
    addresses: tuple[tuple[str, int], tuple[str, int]]
    transport: str

    def send(self, packet: bytes, report: bool) -> None:
        """See `Viewer`; errors are ignored, since the viewer may be gone."""
        with suppress(OSError):
            self.senders.sockets[report].sendto(packet, self.addresses[report])


@dataclass(eq=False)
class InterleavedViewer:
    """Sends packets inside the RTSP connection (RFC 2326, section 10.12)."""

    connection: socket.socket
    lock: threading.Lock
    """To be held while writing into the connection."""
    channels: tuple[int, int]
    transport: str

    def send(self, packet: bytes, report: bool) -> None:
        """See `Viewer`; one that does not read is cut off."""
        framed = b"$" + bytes([self.channels[report]]) + len(packet).to_bytes(2, "big") + packet
        with self.lock:
            send_or_hang_up(self.connection, framed)


def way_to(
    wanted: str, connection: socket.socket, writing: threading.Lock, peer: str, senders: Senders
) -> Viewer | None:
    """The first known way in a `Transport` header (RFC 2326, section 12.39) to send packets; None if there is none.

    `connection` is that of RTSP, to be written into only while holding `writing`; `peer` is the host at its other end.
    """
    for way in wanted.split(","):
        protocol, *rest = [part.strip() for part in way.split(";")]
        options = {name: value for name, _, value in (part.partition("=") for part in rest)}
        if "multicast" in options:
            continue
        if protocol.upper() in TCP and (pair := as_pair(options.get("interleaved", "0-1"), 255)):
            transport = f"RTP/AVP/TCP;unicast;interleaved={pair[0]}-{pair[1]}"
            return InterleavedViewer(connection, writing, pair, transport)
        if protocol.upper() in UDP and (pair := as_pair(options.get("client_port", ""), 65535)):
            ports = f"client_port={pair[0]}-{pair[1]};server_port={senders.ports[0]}-{senders.ports[1]}"
            return UdpViewer(senders, ((peer, pair[0]), (peer, pair[1])), f"RTP/AVP;unicast;{ports}")
    return None


def as_pair(text: str, most: int) -> tuple[int, int] | None:
    """Two numbers up to `most` from text such as 5000-5001; a missing second is the first plus one. None if invalid."""
    first, mark, second = text.partition("-")
    if not first.isdecimal() or (mark and not second.isdecimal()):
        return None
    pair = int(first), int(second) if mark else int(first) + 1
    return pair if max(pair) <= most else None


def send_or_hang_up(connection: socket.socket, data: bytes) -> bool:
    """Write into a connection without blocking, and hang up if not all of it fits, since the other end does not read.

    Returns whether all was written.
    """
    try:
        sent = connection.send(data, socket.MSG_DONTWAIT)
    except OSError:
        sent = 0
    if sent < len(data):
        hang_up(connection)
    return sent == len(data)


def hang_up(connection: socket.socket) -> None:
    """Shut a connection down, also for the thread that reads from it."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
