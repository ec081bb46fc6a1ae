"""Cuts off viewers that send what no viewer needs to, before it fills libzmq.

XPUB reads everything that a connection sends before a call returns: endless subscriptions block every `publish`,
whatever the limits of messages are. So a thread that does not depend on the publisher watches how many bytes the kernel
has received on each connection.

XPUB also stores all that a connection subscribes to, at up to 80 bytes for each byte sent: a viewer that slowly
subscribes to ever new topics would use up all memory. So the subscriptions of each connection are limited as well.
"""

from __future__ import annotations

import logging
import os
import resource
import struct
import threading
import time
from dataclasses import dataclass, field
from errno import EBADF, ENOTSOCK
from socket import AF_INET, AF_INET6, IPPROTO_TCP, SHUT_RDWR, TCP_INFO, socket

import zmq
from zmq.utils.monitor import recv_monitor_message

BURST, RATE = 65_536, 8_192
"""Bytes that a viewer may send at once, and per second: handshake and subscriptions, then heartbeats and requests for
key frames, of 50 bytes each, or 120 if encrypted."""
SUBSCRIBED_MOST, PREFIX_EXTRA = 65_536, 32
"""Bytes of all distinct prefixes that a viewer may subscribe to while it is connected, and what is added to each.

That is enough for 600 topics of the longest names, or 1,400 of usual ones. In libzmq those of one connection take 3 MB
at most, or 6 MB if sent in one `BURST`, before it is cut off; all is freed when it goes. For viewers that speak ZMTP 1
or 2, libzmq does not say who subscribes: such a viewer may send that many bytes in total.
"""
LOOK_SECONDS = 0.1
SHARE_OF_FILES = 4
"""Viewers may use one in so many of the process's file descriptors; the newest beyond that are cut off."""
LOG_INTERVAL_SECONDS = 10.0
"""Minimum time between two log lines."""
BYTES_RECEIVED = struct.Struct("=128xQ")
"""Where Linux's `tcp_info` has `tcpi_bytes_received`."""
GONE = (EBADF, ENOTSOCK)
"""Errors for a file descriptor that is not a socket any more; after any other error the connection is still there."""

log = logging.getLogger(__name__)


@dataclass
class Connection:
    """An accepted connection."""

    inode: int
    """Of what its file descriptor stood for when libzmq's event was read."""
    port: int
    """Of the publisher: with another one, or none, the viewer had gone by then, and the file descriptor was in use
    again, as for a file or a connection to a camera."""
    received: int = 0
    level: float = 0.0
    """Bytes that it has sent beyond `RATE`."""
    looked: float = 0.0
    prefixes: set[bytes] = field(default_factory=set)
    """All that it has subscribed to since it came."""
    subscribed: int = 0
    """Their bytes, as `SUBSCRIBED_MOST` counts them."""
    unwanted: str = ""
    """Why it is to be cut off."""


class Bouncer:
    """Watches the TCP connections of a socket, from construction until `stop`; on Linux, which counts their bytes."""

    def __init__(self, publisher: zmq.SyncSocket) -> None:
        """`publisher` must not be bound yet."""
        self._publisher = publisher
        self._events = publisher.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED)
        self._connections: dict[int, Connection] = {}
        self._nameless = 0
        """Bytes of prefixes whose subscriber libzmq did not name, as `SUBSCRIBED_MOST` counts them."""
        self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // SHARE_OF_FILES
        self._stopping = threading.Event()
        self._logged_at, self._unlogged = -LOG_INTERVAL_SECONDS, 0
        self._thread = threading.Thread(target=self._run, name="nightbridge-bouncer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; the publisher's socket must still be open."""
        self._stopping.set()
        self._thread.join()
        self._publisher.disable_monitor()
        self._events.close(linger=0)

    def hear(self, event: zmq.Frame) -> None:
        """Take an event from the publisher's socket, in whichever thread reads it.

        What a closed connection had sent may count for the one that has taken its place.
        """
        kind, prefix = event.bytes[:1], event.bytes[1:]
        if kind != b"\1":
            return
        try:
            connection = self._connections.get(int(event.get(zmq.SRCFD)))
        except zmq.ZMQError:
            self._nameless += len(prefix) + PREFIX_EXTRA
            return
        if connection is None or connection.unwanted or prefix in connection.prefixes:
            return
        connection.prefixes.add(prefix)
        connection.subscribed += len(prefix) + PREFIX_EXTRA
        if connection.subscribed > SUBSCRIBED_MOST:
            connection.unwanted = f"it subscribed to {len(connection.prefixes)} different topics"

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self._events.poll(round(LOOK_SECONDS * 1000)):
                event = recv_monitor_message(self._events)
                self._note(event["event"], event["value"], event["endpoint"])
            for number, connection in list(self._connections.items()):
                if time.monotonic() - connection.looked >= LOOK_SECONDS:
                    self._look_at(number, connection)

    def _note(self, event: int, number: int, endpoint: bytes) -> None:
        """Note that a connection to `endpoint` has come or gone."""
        if event != zmq.EVENT_ACCEPTED:
            self._connections.pop(number, None)
            return
        try:
            inode = os.fstat(number).st_ino
        except OSError:  # it has gone already
            return
        self._connections[number] = Connection(inode, port=int(endpoint.rpartition(b":")[2]))
        if len(self._connections) > self._most:
            self._connections[number].unwanted = f"more than {self._most} viewers"

    def _look_at(self, number: int, connection: Connection) -> None:
        now = time.monotonic()
        try:
            with socket_of(number, connection) as tcp:
                (received,) = BYTES_RECEIVED.unpack_from(tcp.getsockopt(IPPROTO_TCP, TCP_INFO, BYTES_RECEIVED.size))
                allowed = RATE * (now - connection.looked) if connection.looked else 0.0
                connection.level = max(0.0, connection.level + received - connection.received - allowed)
                connection.received, connection.looked = received, now
                nameless = not connection.prefixes and self._nameless > SUBSCRIBED_MOST
                if connection.level > BURST or (nameless and received > SUBSCRIBED_MOST):
                    connection.unwanted = f"it sent {received} bytes"
                if connection.unwanted:
                    self._cut_off(tcp, connection.unwanted)
                    self._connections.pop(number)
        except (OSError, struct.error) as error:
            if isinstance(error, OSError) and error.errno in GONE:
                self._connections.pop(number)

    def _cut_off(self, tcp: socket, why: str) -> None:
        who = tcp.getpeername()[0]
        tcp.shutdown(SHUT_RDWR)
        self._unlogged += 1
        if time.monotonic() - self._logged_at >= LOG_INTERVAL_SECONDS:
            log.warning("%d viewers were cut off; the last one at %s: %s", self._unlogged, who, why)
            self._logged_at, self._unlogged = time.monotonic(), 0


def socket_of(number: int, connection: Connection) -> socket:
    """A connection's socket under a duplicated file descriptor. Raises `OSError`, one of `GONE` if it is gone."""
    copy = os.dup(number)
    try:
        if os.fstat(copy).st_ino != connection.inode:
            raise OSError(EBADF, os.strerror(EBADF))
        tcp = socket(fileno=copy)
    except OSError:  # also if it is not a socket
        os.close(copy)
        raise
    if tcp.family not in (AF_INET, AF_INET6) or tcp.getsockname()[1] != connection.port:
        tcp.close()
        raise OSError(EBADF, os.strerror(EBADF))
    return tcp
